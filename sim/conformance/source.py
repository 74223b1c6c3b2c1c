"""Checks of a policy's text: what it imports, and that it does not reach behind the views.

Nobody is kept from reading what a view hides, in Python; whoever does it by accident is told here.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from sim.conformance.subject import Failed, Subject
from sim.policy.loader import part_files

_LIBRARIES = ("numpy", "scipy")
# Of the standard library, but ways around the views.
_WAYS_AROUND = ("ctypes", "gc", "importlib", "inspect")
_HIDDEN = ("_changes", "_of", "_valid", "_views", "_world")  # the fields of views and facades
_INSIDES = ("__dict__", "__globals__", "__setattr__")
_OF_TUPLES = ("_asdict", "_fields", "_make", "_replace")  # public in named tuples


def imports_what_it_may(policy: Subject, _resize: str) -> str:
    """Only sim.policy, the standard library, numpy and scipy."""
    for file in _files(policy):
        _imports_of(file)
    return ""


def _imports_of(file: Path) -> None:
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise Failed(f"{file.name}, line {node.lineno}: a policy is one file, without relative imports")
            module = node.module or ""
            names = [f"sim.{alias.name}" for alias in node.names] if module == "sim" else [module]
        else:
            continue
        for name in names:
            top = name.split(".")[0]
            ours = top in _LIBRARIES or (top in sys.stdlib_module_names and top not in _WAYS_AROUND)
            if name != "sim.policy" and not name.startswith("policies._parts.") and not ours:
                raise Failed(
                    f"{file.name}, line {node.lineno}: it imports {name}; a policy imports sim.policy, the standard"
                    f" library (without {', '.join(_WAYS_AROUND)}), numpy and scipy"
                )


def stays_before_the_views(policy: Subject, _resize: str) -> str:
    """No private names of others, spelt as attributes or as texts."""
    for file in _files(policy):
        tree = _tree(file)
        own = dict.fromkeys(_own_names(tree))
        for node, name, owner in _private_names(tree):
            if name in _INSIDES or (owner != "self" and (name in _HIDDEN or name not in own)):
                raise Failed(
                    f"{file.name}, line {node.lineno}: {ast.unparse(node)} reaches behind the views; what a policy"
                    " may know has a name without an underscore"
                )
    return ""


def _files(policy: Subject) -> list[Path]:
    """The policy's file, and the parts of it that stand beside the shipped policies."""
    return [policy.file, *part_files(policy.file.read_bytes())]


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _private_names(tree: ast.AST) -> Iterator[tuple[ast.Attribute | ast.Call, str, str]]:
    """Each use of an attribute with an underscore in front: the node, its name, and whose it is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            yield node, node.attr, ast.unparse(node.value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "attrgetter", "vars"):
            for argument in node.args:
                if isinstance(argument, ast.Constant) and _is_private(str(argument.value)):
                    yield node, str(argument.value), ast.unparse(node.args[0])


def _is_private(name: str) -> bool:
    return (name.startswith("_") and not name.startswith("__") and name not in _OF_TUPLES) or name in _INSIDES


def _own_names(tree: ast.AST) -> Iterator[str]:
    """What the file's own classes call their private parts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))
