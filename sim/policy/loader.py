"""How a policy is found and made: by name, by the path of a file, or as an installed entry point.

A policy is one file with one subclass of `Policy` and one method, `decide(view) -> actions`. Its file name is its name
on the command line (residency_aware.py: residency-aware). Policies are looked for in the source tree or the installed
package, in entry points of the group `sim.policies`, and by the path of a file; only a path runs code from elsewhere.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sim.common.errors import ConfigError, PolicyError, SimError, did_you_mean, message_of, shown
from sim.common.safe_open import plain_bytes
from sim.common.time_limit import Overtime, not_for_ever
from sim.policy.interface.policy import IDEAL_WORLDS, Policy, PolicyParameters
from sim.scenario.scenario import is_code

_MOST_BYTES = 16 << 20  # of a policy's file
_PART_IMPORT = re.compile(rb"^\s*(?:from|import) policies\._parts\.(\w+)", re.MULTILINE)
_FACE_IMPORT = re.compile(rb"^\s*from sim\.policy import (\([^)]*\)|.*)", re.MULTILINE)  # it forwards names of parts
_DEFINED = re.compile(rb"^(?:class |def )?(\w+)(?: = |\(|:)", re.MULTILINE)


def policies_folder() -> Path:
    """Where the policies of the project lie. Raises PolicyError."""
    spec = importlib.util.find_spec("policies")
    if spec is None or not spec.submodule_search_locations:
        raise PolicyError("the package 'policies' is missing; install the project again")
    return Path(next(iter(spec.submodule_search_locations)))


def policy_names() -> list[str]:
    """Every policy that can be chosen by name: those of the project and of installed entry points."""
    files = [path.stem.replace("_", "-") for path in policies_folder().glob("*.py") if not path.stem.startswith("_")]
    return sorted([*files, *(entry.name for entry in importlib.metadata.entry_points(group="sim.policies"))])


def read_policy(name: str) -> tuple[type[Policy], str]:
    """The class of a policy given by name or path, its file executed anew, and the hash of its source.

    Raises PolicyError: no such policy, a file that does not import, or one without exactly one policy.
    """
    path, digest = _file_of(name)
    return _class_in_file(path, digest), digest


_asked: dict[tuple[Path, str], type[Policy]] = {}


def policy_class(name: str) -> tuple[type[Policy], str]:
    """As `read_policy`, but its file is executed once a process, as long as it stays as it is: a class to ask, not one
    that plays, since what a module keeps in its variables is not to pass from run to run."""
    path, digest = _file_of(name)
    key = path.absolute(), digest
    if key not in _asked:
        _asked[key] = _class_in_file(path, digest)
    return _asked[key], digest


def _file_of(name: str) -> tuple[Path, str]:
    """A policy's file, and the hash of what it and its parts hold. Raises PolicyError."""
    path = _path_of(name)
    try:
        return path, _digest(plain_bytes(path, _MOST_BYTES))
    except OSError as error:
        raise PolicyError(f"{path}: cannot read the policy ({error.strerror}); check the path") from None


def _path_of(name: str) -> Path:
    if is_code(name):
        path = Path(name)
        if not path.is_file():
            raise PolicyError(f"{name}: no such policy file; give a path to a .py file, or a name from: sim policies")
        if path.suffix != ".py":
            raise PolicyError(f"{name}: no Python file; a policy is a file whose name ends in .py")
        return path
    path = policies_folder() / f"{name.replace('-', '_')}.py"
    if path.is_file() and not path.stem.startswith("_"):
        return path
    for entry in importlib.metadata.entry_points(group="sim.policies"):
        if entry.name == name:
            return Path(inspect.getfile(entry.load()))
    raise PolicyError(f"unknown policy '{name}'; {did_you_mean(name, policy_names())}")


def part_files(source: bytes) -> list[Path]:
    """The files of `policies._parts` that a policy's source imports, and those that they import, in order of name."""
    texts, homes = _parts(policies_folder() / "_parts")
    found: dict[Path, None] = {}
    sources = [source]
    while sources:
        source = sources.pop()
        named = [word for names in _FACE_IMPORT.findall(source) for word in re.findall(rb"\w+", names)]
        named += re.findall(rb"\bpolicy\.(\w+)", source)  # of from sim import policy
        for path in (homes[name] for name in (*_PART_IMPORT.findall(source), *named) if name in homes):
            if path not in found:
                found[path] = None
                sources.append(texts[path])
    return sorted(found)


@cache
def _parts(folder: Path) -> tuple[dict[Path, bytes], dict[bytes, Path]]:
    """The parts' sources, and the file of each name in them; read once, since this process imports them once."""
    texts = {path: path.read_bytes() for path in sorted(folder.glob("*.py"))}
    return texts, {name: path for path, text in texts.items() for name in (path.stem.encode(), *_DEFINED.findall(text))}


def _digest(source: bytes) -> str:
    """The hash of all that a policy is made of: its file, and its parts beside the shipped policies."""
    digest = hashlib.sha256(source)
    texts, _ = _parts(policies_folder() / "_parts")
    for path in part_files(source):
        digest.update(texts[path])
    return digest.hexdigest()


def _class_in_file(path: Path, digest: str) -> type[Policy]:
    spec = importlib.util.spec_from_file_location(f"_policy_{path.stem}_{digest[:8]}", path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pydantic looks up the types of its parameters
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing beside the user's own file
    try:
        with not_for_ever(lambda: 1, lambda reason: f"{path}: cannot import the policy ({reason})"):
            spec.loader.exec_module(module)
    except KeyboardInterrupt as error:
        error.add_note(f"{path} was being imported")
        raise
    except SimError:
        raise
    except BaseException as error:  # a policy file may fail in any way; that is its author's to mend
        raise PolicyError(f"{path}: cannot import the policy ({type(error).__name__}: {message_of(error)})") from error
    finally:
        sys.dont_write_bytecode = writes_bytecode
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Policy) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        names = f" ({', '.join(cls.__name__ for cls in found[:5])})" if found else ""
        raise PolicyError(
            f"{path}: a policy file defines exactly one subclass of sim.policy.Policy, not {len(found)}{names}"
        )
    if reason := _why_no_policy(found[0]) or why_not_marked(found[0]):
        raise PolicyError(f"{path}: {reason}")
    return found[0]


def _why_no_policy(policy: type[Policy]) -> str:
    """Empty if what a policy's class says of itself is of the kind that it has to be."""
    name = policy.__name__
    if not (isinstance(policy.Parameters, type) and issubclass(policy.Parameters, PolicyParameters)):
        return f"{name}.Parameters is no subclass of PolicyParameters"
    for method in ("decide", "start", "parts"):
        if not callable(getattr(policy, method)):
            return f"{name}.{method} is no method, but {shown(getattr(policy, method))}"
        if inspect.iscoroutinefunction(getattr(policy, method)) or inspect.isasyncgenfunction(getattr(policy, method)):
            return f"{name}.{method} is async; write it with def, without await"
    kinds: dict[str, type] = {"tier": str, "oracle": str, "ideal": tuple, "patient": tuple}
    kinds |= dict.fromkeys(("foresees", "keeps_placement", "follows_every_finish"), bool)
    for field, kind in kinds.items():
        value = getattr(policy, field)
        if not isinstance(value, kind):
            return f"{name}.{field} is {shown(value)}, not a {kind.__name__}"
    unknown = [world for world in policy.ideal if world not in IDEAL_WORLDS]
    if unknown:
        return f"{name}.ideal has {shown(unknown[0])}; known: {', '.join(IDEAL_WORLDS)}"
    return ""


def why_not_marked(policy: type[Policy] | Policy) -> str:
    """Empty if the policy says of itself all that no scheduler can know or have."""
    if policy.oracle:
        return ""
    if policy.foresees:
        return "it foresees, but has no `oracle` text; say there what it knows that no scheduler can know"
    if policy.ideal:
        return "it asks for an ideal world, but has no `oracle` text; say there what no machine can do"
    return ""


def load_policy(name: str, parameters: dict[str, Any] | None = None) -> tuple[Policy, str]:
    """A policy by name or path with its checked parameters, and the hash of its source.

    Raises PolicyError (no such policy) or ConfigError (an unknown or bad parameter).
    """
    cls, digest = read_policy(name)
    return policy_of(cls, name, parameters), digest


def asked_policy(name: str, parameters: dict[str, Any] | None = None) -> tuple[Policy, str]:
    """As `load_policy`, of the class that is asked and does not play."""
    cls, digest = policy_class(name)
    return policy_of(cls, name, parameters), digest


def policy_of(cls: type[Policy], name: str, parameters: dict[str, Any] | None = None) -> Policy:
    """A policy of a class with its checked parameters. Raises ConfigError: an unknown or bad parameter."""
    try:
        checked = cls.Parameters.model_validate(parameters or {})
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(step) for step in problem["loc"])
        if problem["type"] == "extra_forbidden":
            hint = did_you_mean(field, cls.Parameters.model_fields)
            raise ConfigError(f"policy '{name}' has no parameter '{field}'; {hint}") from None
        raise ConfigError(f"policy '{name}', parameter '{field}': {problem['msg'].lower()}") from None
    except SimError:
        raise
    except Exception as error:  # its own validators may fail in any way
        raise PolicyError(_unmade(name, error)) from error
    try:
        made = cls(checked)
    except ValueError as error:  # what the policy itself finds wrong with them
        raise ConfigError(f"policy '{name}': {message_of(error)}") from None
    except (SimError, KeyboardInterrupt, Overtime):  # SimError: of another policy that it makes inside
        raise
    except BaseException as error:
        raise PolicyError(_unmade(name, error)) from error
    if not hasattr(made, "_future"):
        raise PolicyError(f"policy '{name}': its __init__ must call super().__init__(parameters)")
    return made


def _unmade(name: str, error: BaseException) -> str:
    return f"policy '{name}' cannot be made ({type(error).__name__}: {message_of(error)})"
