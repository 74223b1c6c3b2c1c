"""Which policies a study plays: names, tiers, files and parameters in one line of text -> distinct labelled policies.

`all` and the names of tiers stand for every policy of that kind; oracles know what no scheduler can know and are only
in the tier `oracle`, never in `all`. Called by `compare` and `capacity`. Runs nothing but a policy's own file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.common.errors import ConfigError, did_you_mean
from sim.common.yaml_files import parse_value
from sim.policy.loader import asked_policy, policy_class, policy_names
from sim.scenario.scenario import PolicySpec, Scenario, is_code

TIERS = ("naive", "production", "research", "ours", "oracle")
ALL = "all"
_PARAMETER = re.compile(r":(?=[A-Za-z_]\w*=)")


@dataclass(frozen=True)
class StudiedPolicy:
    """What a study's results say first of each policy."""

    label: str
    name: str
    parameters: dict[str, Any]
    tier: str
    oracle: str


@dataclass(frozen=True)
class PolicyChoice:
    """A policy with parameters under a label that no other one of the study has. oracle: what it knows; else ""."""

    label: str
    spec: PolicySpec
    tier: str
    oracle: str

    @property
    def called(self) -> dict[str, Any]:
        """The fields of a StudiedPolicy."""
        spec = self.spec
        return vars(StudiedPolicy(self.label, spec.name, spec.parameters, self.tier, self.oracle))

    def of(self, scenario: Scenario, seed: int) -> Scenario:
        """The scenario as this policy plays it with this seed."""
        return scenario.model_copy(update={"policy": self.spec, "seed": seed})


def choose(asked: str | Sequence[str | Path], scenario: Scenario) -> list[PolicyChoice]:
    """The policies of `a,b,tier,path.py,name:parameter=value,{name: x, parameter: value}`, or of a list of such texts
    and of paths, each once, in that order.

    A policy named alone has the parameters that the scenario gives to it, if it is the scenario's own. Raises
    ConfigError or PolicyError: nothing asked, unknown names (with the closest), bad parameters, equal labels.
    """
    found: dict[str, PolicyChoice] = {}
    for item, meant in _each(asked):
        for name, parameters in meant:
            own = not parameters and name == scenario.policy.name
            choice = _choice(name, scenario.policy.parameters if own else parameters, _label(name, parameters))
            before = found.setdefault(choice.label, choice)
            if before.spec != choice.spec:
                raise ConfigError(
                    f"--policies {item}: '{choice.label}' already stands for {before.spec.name}; rename the file"
                )
    if not found:
        raise ConfigError("--policies: names no policy; give names or tiers, for example lru-swap,production")
    return list(found.values())


def oracles() -> list[PolicyChoice]:
    """Every installed policy that knows what no scheduler can know."""
    return [_choice(name, {}, name) for name in _of_tier("oracle")]


def _each(asked: str | Sequence[str | Path]) -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """What is asked item by item: as messages call it, and (name, parameters) of what it stands for."""
    for part in [asked] if isinstance(asked, str) else asked:
        if isinstance(part, Path):
            yield str(part), [(str(part), {})]
        else:
            yield from ((item, _meant(item)) for item in _items(part))


def _items(text: str) -> Iterator[str]:
    """The parts of a list at commas outside brackets and quotes."""
    depth, quote, start = 0, "", 0
    for place, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        elif sign == "," and not depth:
            yield from filter(None, [text[start:place].strip()])
            start = place + 1
    if depth or quote:
        raise ConfigError(f"--policies {text}: a bracket or quote is not closed")
    yield from filter(None, [text[start:].strip()])


def _meant(item: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, parameters) of every policy that an item stands for."""
    if item == ALL:
        return [(name, {}) for name in policy_names() if not _is_oracle(name)]
    if item in TIERS:
        names = _of_tier(item)
        if not names:
            raise ConfigError(f"--policies {item}: there is no policy of this tier; see: python -m sim policies")
        return [(name, {}) for name in names]
    if item.startswith("{"):
        data = parse_value(item, f"--policies {item}")
        if not isinstance(data, dict) or not isinstance(data.get("name"), str):
            raise ConfigError(f"--policies {item}: give {{name: NAME, parameter: value}}")
        return [(data["name"], {str(key): value for key, value in data.items() if key != "name"})]
    name, *given = _PARAMETER.split(item)
    parameters = {}
    for pair in given:
        key, _, value = pair.partition("=")
        parameters[key] = parse_value(value, f"--policies {item}")
    return [(name, parameters)]


def _label(name: str, parameters: dict[str, Any]) -> str:
    base = Path(name).stem.replace("_", "-") if is_code(name) else name
    return base + "".join(f":{key}={value}" for key, value in parameters.items())


def _choice(name: str, parameters: dict[str, Any], label: str) -> PolicyChoice:
    names = policy_names()
    if not is_code(name) and name not in names:
        raise ConfigError(f"--policies: unknown policy '{name}'; {did_you_mean(name, [*names, ALL, *TIERS])}")
    policy, _ = asked_policy(name, parameters)
    return PolicyChoice(label, PolicySpec(name=name, **parameters), tier_of(type(policy)), policy.oracle)


def tier_of(policy: Any) -> str:
    """The tier that a policy's class says; that of an oracle is always `oracle`."""
    return "oracle" if policy.oracle else str(getattr(policy, "tier", "other"))


def _is_oracle(name: str) -> bool:
    return tier_of(policy_class(name)[0]) == "oracle"


def _of_tier(tier: str) -> list[str]:
    return [name for name in policy_names() if tier_of(policy_class(name)[0]) == tier]
