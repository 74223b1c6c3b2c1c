"""What the user says: a scenario, validated and frozen.

A scenario is YAML: cluster, models, workload, service classes, engine options and policy. `load_scenario` reads and
checks it, `override` applies `--set a.b.0.c=value`, `resolved` gives back everything with defaults filled in, and
`run_id` names a run by the hash of all that affects it. Nothing here knows profiles, traces or SimPy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sim.common.errors import ConfigError, did_you_mean, shown
from sim.common.yaml_files import parse_value, read_yaml
from sim.scenario.faults import FaultOptions
from sim.scenario.fields import Count, Frozen, Name, NonNegative, Positive, first_problem
from sim.scenario.workload import GenerateWorkload, ModelTraffic, TraceWorkload

GIB = 2**30
Setting = str | tuple[str, Any]  # "a.b.0.c=value", its value read as YAML; or the path and the value itself

__all__ = ["GenerateWorkload", "ModelTraffic", "TraceWorkload"]  # besides what is defined here: for whoever needs both


class GpuGroup(Frozen):
    """`count` equal GPUs of one kind (a name in profiles/gpus.csv) in a node."""

    gpu: str
    count: Annotated[int, Field(ge=1, le=100_000)] = 1


class NodeSpec(Frozen):
    """A host (a name in profiles/nodes.csv) with GPUs; `count` of them. None: the value of the host's table."""

    host: str
    gpus: tuple[GpuGroup, ...]
    name: Name | None = None
    count: Annotated[int, Field(ge=1, le=100_000)] = 1
    memory_gib: Annotated[Positive, Field(le=1e9)] | None = None
    weight_cache_gib: Annotated[NonNegative, Field(le=1e9)] | None = None
    cache_at_start: Literal["all", "none"] = "all"

    @model_validator(mode="after")
    def _has_gpu(self) -> NodeSpec:
        if not self.gpus:
            raise ValueError("a node needs at least one GPU, for example gpus: [{gpu: rtx-a6000, count: 2}]")
        return self


class ClusterSpec(Frozen):
    nodes: tuple[NodeSpec, ...]
    gpu_reserve_gib: Annotated[NonNegative, Field(le=1e9)] = 0.5  # per GPU, for the driver and the engine's own buffers

    @model_validator(mode="after")
    def _has_node(self) -> ClusterSpec:
        if not self.nodes:
            raise ValueError("a cluster needs at least one node with a GPU")
        gpus = sum(node.count * sum(group.count for group in node.gpus) for node in self.nodes)
        if gpus > 100_000:
            raise ValueError(f"{gpus:,} GPUs are too many; at most 100,000")
        return self


class ModelSpec(Frozen):
    """One served model. `max_context` bounds prompt + output tokens, as vLLM's max-model-len: longer ones are
    refused as impossible. `kv_tokens` is the KV pool that a load gets when the policy does not say (at least
    `max_context`). `engine` picks the profile tables."""

    name: Name
    model: str
    quantization: str = "FP16"
    engine: str | None = None  # None: hf-transformers for FP16, llama.cpp for the others
    own_weights: bool = False  # a fine-tuned model: a host that holds others of its kind has yet to read its weights
    max_context: Count | None = None  # None: the smaller of 16,384 and what the model can do
    kv_tokens: Count | None = None
    weight: Positive = 1.0

    @property
    def engine_name(self) -> str:
        return self.engine or ("hf-transformers" if self.quantization == "FP16" else "llama.cpp")


class ServiceClass(Frozen):
    """What a class of requests is promised. A request attains its SLO when every limit that is given holds."""

    name: Name
    ttft_s: Positive | None = None
    tpot_s: Positive | None = None
    e2e_s: Positive | None = None
    patience_s: Positive | None = None  # the client leaves if its prompt is not even being computed by then
    weight: Positive = 1.0


class EngineOptions(Frozen):
    """How every instance runs (model.md sections 4 to 6).

    `prefill`: `first` runs prompts alone before decoding goes on, up to `prefill_tokens` in an iteration;
    `chunked` cuts them so that prompt and decode tokens of an iteration stay within `prefill_tokens`.
    `watermark`: a sequence is admitted only if this share of the KV pool stays free after it (vLLM's default).
    `resize`: what changing an instance's layers costs (`none`: a restart, `sleep`: the process survives, all or
    nothing, `elastic`: only the moved layers and their KV).
    `ideal`: bounds that no machine is within: `memory` has no end, on GPUs and hosts; `switches` (loads, stops,
    resizes, KV saves and restores, engine starts) take no time. Such a run is marked as an oracle's.
    """

    max_sequences: Annotated[int, Field(ge=1, le=100_000)] = 32
    prefill: Literal["first", "chunked"] = "first"
    prefill_tokens: Count = 8192
    watermark: Annotated[float, Field(ge=0, lt=1)] = 0.01
    block_tokens: Annotated[int, Field(ge=1, le=4096)] = 16
    sequence_preemption: Literal["recompute", "swap"] = "recompute"
    sequence_order: Literal["arrival", "priority"] = "arrival"
    resize: Literal["none", "sleep", "elastic"] = "none"
    ideal: tuple[Literal["memory", "switches"], ...] = ()

    @field_validator("ideal")
    @classmethod
    def _in_order(cls, ideal: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(dict.fromkeys(ideal)))  # the same world, however it is written, is the same run

    @model_validator(mode="after")
    def _budget_moves(self) -> EngineOptions:
        if self.prefill == "chunked" and self.prefill_tokens <= self.max_sequences:
            raise ValueError("with prefill: chunked, prefill_tokens must be above max_sequences, or no prompt moves on")
        return self


class SharingOptions(Frozen):
    """How instances share GPUs and CPUs, and transfers share links (model.md section 5)."""

    contention: Literal["proportional", "processor_sharing", "time_slice"] = "proportional"
    links: Literal["fair", "serial"] = "fair"


class PredictorOptions(Frozen):
    """Where a policy's estimates of output length come from (model.md section 3)."""

    kind: Literal["running-mean", "oracle", "noisy-oracle"] = "running-mean"
    prior_tokens: Positive = 256.0  # running-mean: the estimate before any request of the model has finished
    sigma: NonNegative = 0.5  # noisy-oracle: standard deviation of the log error


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("use printable characters")
    return name


class PolicySpec(BaseModel):
    """The policy's name (or the path of its file) and its parameters, which the policy itself checks."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: Annotated[str, AfterValidator(_printable)] = "residency-aware"

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Scenario(Frozen):
    """A whole experiment: everything that affects a run but the code and the data files themselves."""

    name: Name
    cluster: ClusterSpec
    models: tuple[ModelSpec, ...]
    workload: Annotated[TraceWorkload | GenerateWorkload, Field(discriminator="kind")]
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    horizon_s: Positive | None = None  # None: until every request has ended
    warm_up_s: NonNegative = 0.0  # no number of requests has those that arrive before; the run itself is the same
    starvation_s: Positive = 300.0  # a request that waits longer than this for its first token counts as starved
    service_classes: tuple[ServiceClass, ...] = (ServiceClass(name="default"),)
    engine: EngineOptions = EngineOptions()
    sharing: SharingOptions = SharingOptions()
    predictor: PredictorOptions = PredictorOptions()
    faults: FaultOptions | None = None  # None: nothing ever fails
    policy: PolicySpec = PolicySpec()
    profiles: str | None = None  # a folder laid out like profiles/; None: the one that ships with the project

    @model_validator(mode="after")
    def _names_agree(self) -> Scenario:
        if not self.models:
            raise ValueError("a scenario needs at least one model")
        if self.horizon_s is not None and self.warm_up_s >= self.horizon_s:
            raise ValueError("warm_up_s must end before horizon_s does")
        drawn = self.workload if isinstance(self.workload, GenerateWorkload) else None
        models, classes = [model.name for model in self.models], [each.name for each in self.service_classes]
        for what, names in (("model", models), ("service class", classes)):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{what} '{twice[0]}' is listed twice")
        named_models, named_classes = (drawn.models_named(), drawn.classes_named()) if drawn else ((), ())
        for what, known, named in (("model", models, named_models), ("service class", classes, named_classes)):
            for field, name in named:
                if name not in known:
                    raise ValueError(f"{field}: unknown {what} '{name}'; {did_you_mean(name, known)}")
        return self


def parse_scenario(data: Any, where: str) -> Scenario:
    """A validated scenario from plain data. Raises ConfigError: the field, and a known one where its name is not."""
    try:
        return Scenario.model_validate(_long_form(data, where))
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_problem(error, Scenario, 'scenario')}") from None


def _long_form(data: Any, where: str) -> dict[str, Any]:
    """The scenario's data with its shorthands written out: a policy by its name alone, a workload without its kind."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: a scenario is a mapping with name, cluster, models and workload")
    if isinstance(data.get("workload"), dict) and "kind" not in data["workload"]:
        kind = "trace" if "file" in data["workload"] else "generate"
        data = {**data, "workload": {"kind": kind, **data["workload"]}}
    if isinstance(data.get("policy"), str):
        data = {**data, "policy": {"name": data["policy"]}}
    return dict(data)


def override(data: dict[str, Any], settings: Iterable[Setting]) -> dict[str, Any]:
    """A copy of a scenario's data with settings applied, for example cluster.nodes.0.count=4.

    Mappings gain keys (validation then refuses unknown ones); lists only change items that exist. Raises ConfigError
    when a path leads nowhere.
    """
    result = deepcopy(data)
    for setting in settings:
        if isinstance(setting, tuple):
            assign(result, setting[0], deepcopy(setting[1]), f"settings: {setting[0]}")
            continue
        path, separator, text = setting.partition("=")
        if not separator or not path:
            raise ConfigError(f"--set {setting}: write path=value, for example cluster.nodes.0.count=4")
        assign(result, path, parse_value(text, f"--set {setting}"), f"--set {setting}")
    return result


def path_set(setting: Setting) -> str:
    """The dotted path of the field that a setting sets."""
    return setting[0] if isinstance(setting, tuple) else setting.partition("=")[0]


def assign(data: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Set one field of a scenario's data, given by its dotted path. Raises ConfigError when the path leads nowhere."""
    target: Any = data
    steps = path.split(".")
    for position, step in enumerate(steps):
        here = ".".join(steps[:position]) or "scenario"
        place: Any = step
        if isinstance(target, list):
            if not step.isdigit() or int(step) >= len(target):
                raise ConfigError(f"{where}: '{here}' has items 0 to {len(target) - 1}, not '{step}'")
            place = int(step)
        elif not isinstance(target, dict):
            raise ConfigError(f"{where}: '{here}' is a plain value, it has no '{step}'")
        if position == len(steps) - 1:
            target[place] = value
        else:
            target = target[place] if isinstance(target, list) else target.setdefault(place, {})


def is_code(name: str) -> bool:
    """Is a policy named by the path of its file?"""
    return name.endswith(".py") or "/" in name


def refuse_code(data: dict[str, Any], where: str, said: Iterable[str] = ()) -> None:
    """A scenario is plain data: it names no file of code, neither as its policy nor in a parameter of one (but for the
    fields in `said`, which the command line or a caller sets). Raises ConfigError."""
    policy = data.get("policy")
    fields = policy if isinstance(policy, dict) else {"name": policy}
    given = list(said)
    for key, value in fields.items() if "policy" not in given else ():
        file = value if key == "name" and isinstance(value, str) and is_code(value) else _code_within(value)
        if file is None or f"policy.{key}" in given:
            continue
        mend = f"--policy {file}" if key == "name" else f"--set policy.{key}=..."
        raise ConfigError(
            f"{where}: field 'policy{'' if key == 'name' else f'.{key}'}': {shown(file)} is a file of code, and a "
            f"scenario cannot run code; if you trust it, give it yourself: {mend}"
        )


def _code_within(value: Any) -> str | None:
    """The first text in a parameter that may be the path of a Python file."""
    if isinstance(value, str):
        return value if value.endswith(".py") else None
    inside = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return next((file for file in map(_code_within, inside) if file is not None), None)


def load_scenario(path: Path, settings: Iterable[Setting] = ()) -> Scenario:
    """A scenario file with settings. Relative paths in it begin in its own folder. Raises ConfigError."""
    return scenario_of(read_yaml(path), str(path), path.parent, settings)


def scenario_of(data: Any, where: str, folder: Path, settings: Iterable[Setting] = ()) -> Scenario:
    """As load_scenario, from a file's data. where: what messages call it; folder: where relative paths begin; but
    profiles of `settings`, which a person types, where that person is."""
    settings = list(settings)
    whole, paths = _long_form(data, where), [path_set(setting) for setting in settings]
    refuse_code(whole, where, paths)
    scenario = parse_scenario(override(whole, settings), where)
    if scenario.profiles and not any(path.strip() == "profiles" for path in paths):
        scenario = scenario.model_copy(update={"profiles": str(folder / scenario.profiles)})
    if isinstance(scenario.workload, TraceWorkload):
        try:
            file = (folder / scenario.workload.file).resolve()
        except (OSError, ValueError, RuntimeError) as error:  # a link in a circle, a name that no file can have
            raise ConfigError(f"{where}: field 'workload.file': {shown(scenario.workload.file)}: {error}") from None
        scenario = scenario.model_copy(update={"workload": scenario.workload.model_copy(update={"file": str(file)})})
    return scenario


def resolved(scenario: Scenario) -> dict[str, Any]:
    """The scenario as plain data with every default filled in; `parse_scenario` of it gives the same scenario."""
    data = scenario.model_dump(mode="json")
    if scenario.faults is None:
        del data["faults"]
    return data


def run_id(scenario: Scenario, ingredients: Iterable[tuple[str, str]]) -> str:
    """The name of a run: a hash of the scenario and of (name, content hash) of all else that affects its result."""
    data = resolved(scenario)
    # Files count by their content, which is among the ingredients, not by where they lie on this machine.
    if data["workload"]["kind"] == "trace":
        data["workload"]["file"] = None
    data["policy"]["name"] = Path(data["policy"]["name"]).name
    data["profiles"] = None
    payload = {"scenario": data, "ingredients": sorted(ingredients)}
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
