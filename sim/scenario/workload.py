"""What a workload may be: requests from a file, or requests drawn from streams; frozen, checked, plain data again.

`GenerateWorkload` holds streams (arrivals, models, lengths, sessions, prefixes, classes; `laws` describes the numbers)
and the older, shorter `traffic`. A preset is written out into streams before anything is checked, so that what is kept
remakes the workload even after the preset has changed. Nothing is drawn here: `generate` does that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Field, ValidationError, model_serializer, model_validator

from sim.common.errors import ConfigError, did_you_mean
from sim.scenario import distributions as laws
from sim.scenario.distributions import Fixed, Frames, Law, LogNormal, Popularity, RateShape
from sim.scenario.fields import Count, Frozen, Name, NonNegative, Positive, Share, first_problem
from sim.scenario.presets import written_out

MOST_MODELS = 10_000
DEFAULT_CLASS = "default"

Priority = Annotated[int, Field(ge=-(10**9), le=10**9)]


class TraceWorkload(Frozen):
    """Requests from a file. A single-service trace gets its models by `assign` (for example zipf:1.0)."""

    kind: Literal["trace"] = "trace"
    file: str
    format: str | None = None  # None: the native format
    assign: str | None = None
    time_scale: Positive = 1.0  # arrival times are divided by this: 2 doubles the rate
    limit: Count | None = None
    strict: bool = False


class ModelTraffic(Frozen):
    """One model's generated traffic: bursts at `rate_per_s` on average, log-normal prompt and output lengths.

    A two-state on/off process: in bursts (mean length `burst_s`) requests come as Poisson arrivals at
    `burst_factor` times the mean rate, in between at the rate that keeps the mean. burst_factor 1 is plain Poisson.
    Lengths: log-normal with the given median and mean (mean >= median), cut to 1..max.
    """

    model: Name
    rate_per_s: Positive
    burst_factor: Annotated[float, Field(ge=1, le=1000)] = 1.0
    burst_s: Positive = 30.0
    idle_share: NonNegative = 0.1  # rate outside bursts, as a share of the mean rate (below 1)
    prompt_median: Positive = 512
    prompt_mean: Positive = 800
    prompt_max: Count = 8192
    output_median: Positive = 128
    output_mean: Positive = 200
    output_max: Count = 2048
    service_class: Name = DEFAULT_CLASS

    @model_validator(mode="after")
    def _consistent(self) -> ModelTraffic:
        if self.prompt_mean < self.prompt_median or self.output_mean < self.output_median:
            raise ValueError("a log-normal length has a mean of at least its median")
        if self.idle_share >= 1:
            raise ValueError("idle_share must be below 1")
        return self


class Sessions(Frozen):
    """Each arrival begins a session of several turns: a chat, or an agent at work.

    `prompt` of the stream is then what a turn adds. With `grows`, a turn's prompt is all that was said before (prompts
    and answers) and what it adds. Closed loop: a turn is sent `think_s` after the answer before it has ended, whenever
    that is in the simulation. Open loop: that moment is reckoned with `answer_s` and `answer_per_token_s`.
    """

    turns: Law = Field(description="how many turns, rounded, at least 1")
    think_s: Law = Field(description="seconds between an answer and the next turn")
    closed_loop: bool = Field(True, description="the next turn waits for the answer")
    answer_s: NonNegative = Field(1.0, description="open loop: an answer is taken to last this")
    answer_per_token_s: NonNegative = Field(0.03, description="open loop: and this for each of its tokens")
    grows: bool = Field(True, description="each turn's prompt holds the conversation so far")
    first_prompt: Law | None = Field(None, description="prompt tokens of the first turn; None: as of the others")
    context_max: Count | None = Field(
        None, description="the longest prompt (a longer first one is cut); None: no limit"
    )
    when_full: Literal["end", "restart"] = Field(
        "end", description="at context_max: the session ends, or it goes on from a fresh first prompt"
    )
    restart_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="probability that a turn begins with a fresh first prompt (compaction)"
    )
    switch_share: Share = Field(0.0, description="probability that a turn draws its model anew; 0: one model a session")
    pattern: tuple[Name, ...] = Field((), description="the models of the turns in this order, again and again")

    @model_validator(mode="after")
    def _consistent(self) -> Sessions:
        if self.pattern and self.switch_share:
            raise ValueError("give pattern or switch_share, one of the two")
        if not self.grows and (self.context_max is not None or self.restart_share):
            raise ValueError("context_max and restart_share need grows: true")
        return self


class Prefix(Frozen):
    """Ids of the prompts' blocks, equal where prompts begin alike: a system prompt shared by a group, and history."""

    block_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = Field(16, description="tokens in a block")
    shared_tokens: Law = Field(Fixed(value=0), description="length of a group's shared beginning, drawn once per group")
    groups: Annotated[int, Field(ge=1, le=1_000_000)] = Field(1, description="how many different beginnings")
    exponent: Annotated[float, Field(ge=0, le=100)] = Field(
        1.0, description="zipf popularity of the groups; 0 is uniform"
    )


class ForModel(Frozen):
    """What one model's requests have of their own; None: as the stream says."""

    prompt: Law | None = Field(None, description="prompt tokens")
    output: Law | None = Field(None, description="output tokens")


class ForClass(Frozen):
    """What one service class's requests have of their own; None: as the stream says."""

    priority: Priority | None = Field(None, description="smaller is more urgent")
    deadline_s: Positive | None = Field(None, description="seconds after arrival by which the answer is needed")


def _models_in_full(value: Any) -> Any:
    if value == "all":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= MOST_MODELS:
            raise ValueError(f"give names, or a number of models from 1 to {MOST_MODELS:,}")
        return tuple(f"model-{number}" for number in range(1, value + 1))
    return (value,) if isinstance(value, str) else value


def _shares_in_full(value: Any) -> Any:
    return {value: 1.0} if isinstance(value, str) else value


class StreamSpec(Frozen):
    """One kind of traffic: when requests come, which models they ask for, how long they are, what they are promised.

    Every stream and purpose has its own random numbers, named by the stream's `name`: changing one stream, or adding
    one, changes nothing of the others.
    """

    name: Name | None = Field(None, description="names its random numbers and sessions; None: stream-1, stream-2, ...")
    models: Annotated[tuple[Name, ...] | None, BeforeValidator(_models_in_full)] = Field(
        None,
        description="a list from most to least popular; all (the scenario's); or a number, for model-1, model-2, ...",
    )
    popularity: laws.PopularityField = Field(Popularity(), description="how requests are spread over the models")
    arrivals: laws.Arrivals = Field(description="when requests come; with sessions, when sessions begin")
    rate_shape: RateShape = Field(RateShape(), description="factors on the rate over time")
    prompt: Law = Field(LogNormal(median=512, mean=800), description="prompt tokens; with sessions, those a turn adds")
    output: Law = Field(LogNormal(median=128, mean=200), description="output tokens")
    correlation: Annotated[float, Field(ge=-1, le=1)] = Field(
        0.0, description="of prompt and output, as normal scores (Gaussian copula)"
    )
    per_model: dict[Name, ForModel] = Field({}, description="{model: {prompt, output}}")
    sessions: Sessions | None = Field(None, description="turns that belong together")
    prefix: Prefix | None = Field(None, description="ids of prompt blocks, for prefix caches")
    service_class: Annotated[dict[Name, NonNegative] | None, BeforeValidator(_shares_in_full)] = Field(
        None, description="a class, or {class: weight}; None: the scenario's only class, or default"
    )
    priority: Priority = Field(0, description="smaller is more urgent")
    deadline_s: Positive | None = Field(None, description="seconds after arrival by which the answer is needed")
    deadline_per_token_s: NonNegative = Field(0.0, description="added to deadline_s for each output token")
    per_class: dict[Name, ForClass] = Field({}, description="{class: {priority, deadline_s}}")
    from_s: NonNegative = Field(0.0, description="the stream is silent before")
    until_s: Positive | None = Field(None, description="and from then on; None: never")

    @model_validator(mode="after")
    def _names_agree(self) -> StreamSpec:
        if self.models is None:
            return self
        twice = sorted({name for name in self.models if self.models.count(name) > 1}) if len(self.models) < 1000 else []
        if not self.models or len(self.models) > MOST_MODELS or twice:
            but = f", not '{twice[0]}' twice" if twice else ""
            raise ValueError(f"models: give each of 1 to {MOST_MODELS:,} models once{but}")
        for where, name in self._models_inside():
            if name not in self.models:
                raise ValueError(f"{where}: the stream has no model '{name}'; {did_you_mean(name, self.models)}")
        return self

    @model_validator(mode="after")
    def _times_agree(self) -> StreamSpec:
        if self.until_s is not None and self.until_s <= self.from_s:
            raise ValueError("until_s must be above from_s")
        if self.deadline_per_token_s and self.deadline_s is None:
            raise ValueError("deadline_per_token_s adds to deadline_s; give that too")
        if isinstance(self.arrivals, Frames) and self.rate_shape != RateShape():
            raise ValueError("frames come at a fixed rate; leave rate_shape out")
        if self.arrivals.per == "model" and self.popularity.stay:
            raise ValueError("popularity.stay needs arrivals of per: stream; with per: model every model has its own")
        if isinstance(self.arrivals, Frames) and self.arrivals.per == "model" and self.popularity != Popularity():
            raise ValueError("with frames per: model every model gets all frames; leave popularity out")
        sessions = self.sessions
        if self.arrivals.per == "model" and sessions is not None and (sessions.pattern or sessions.switch_share):
            raise ValueError("sessions that change models need arrivals of per: stream")
        cv = getattr(self.arrivals, "cv", None)
        low, high = (0.05, 50) if isinstance(self.arrivals, laws.Weibull) else (0.01, 100)
        if isinstance(cv, Fixed) and not low <= cv.value <= high:
            raise ValueError(f"arrivals.cv: from {low:g} to {high:g}, not {cv.value:g}")
        return self

    @model_validator(mode="after")
    def _classes_agree(self) -> StreamSpec:
        if self.service_class is not None and not 0 < sum(self.service_class.values()) < float("inf"):
            raise ValueError("service_class: at least one class needs a weight above 0")
        known = self.per_class if self.service_class is None else self.service_class
        for name in self.per_class:
            if name not in known:
                raise ValueError(f"per_class: the stream has no service class '{name}'; {did_you_mean(name, known)}")
        return self

    def _models_inside(self) -> Iterator[tuple[str, str]]:
        yield from (("per_model", name) for name in self.per_model)
        yield from (("popularity.shares", name) for name in self.popularity.shares or ())
        yield from (("popularity.schedule", name) for item in self.popularity.schedule for name in item.shares)
        if self.sessions is not None:
            yield from (("sessions.pattern", name) for name in self.sessions.pattern)

    def models_named(self) -> Iterator[tuple[str, str]]:
        """(field, name) of every model that the stream names."""
        yield from (("models", name) for name in self.models or ())
        yield from self._models_inside()

    def classes_named(self) -> Iterator[tuple[str, str]]:
        """(field, name) of every service class that the stream names."""
        yield from (("service_class", name) for name in self.service_class or ())
        yield from (("per_class", name) for name in self.per_class)


class GenerateWorkload(Frozen):
    """Requests drawn from a seed: `streams`, `traffic`, or both, from 0 to `duration_s` or up to `rows` requests.

    `preset: NAME` with the fields of a stream beside it stands for the preset's streams with those fields changed.
    """

    kind: Literal["generate"] = "generate"
    duration_s: Positive | None = Field(None, le=1e12, description="requests arrive before this; None: `rows` ends it")
    traffic: tuple[ModelTraffic, ...] = Field((), description="one model each, in short")
    streams: tuple[StreamSpec, ...] = Field((), description="kinds of traffic")
    rows: Count | None = Field(None, description="at most so many requests, the first in time")

    @model_validator(mode="before")
    @classmethod
    def _write_out(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return written_out(data, tuple(cls.model_fields), tuple(StreamSpec.model_fields))

    @model_validator(mode="after")
    def _whole(self) -> GenerateWorkload:
        if not self.traffic and not self.streams:
            raise ValueError("give at least one model's traffic, or one stream")
        if self.duration_s is None and (self.rows is None or self.traffic):
            raise ValueError("give duration_s" + ("; traffic needs it" if self.traffic else ", or rows"))
        names = [stream.name for stream in self.streams]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two streams are named '{twice}'; rename one")
        return self

    @model_serializer(mode="wrap")
    def _brief(self, write: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A workload that says nothing new is written, and so hashed, as it was before streams existed.
        data: dict[str, Any] = write(self)
        return {name: value for name, value in data.items() if name not in ("streams", "rows") or value}

    def models_named(self) -> Iterator[tuple[str, str]]:
        """(field, name) of every model that the workload names."""
        yield from (("workload.traffic", traffic.model) for traffic in self.traffic)
        for stream in self.streams:
            yield from ((f"workload: stream '{stream.name}': {field}", name) for field, name in stream.models_named())

    def classes_named(self) -> Iterator[tuple[str, str]]:
        """(field, name) of every service class that the workload names."""
        yield from (("workload.traffic", traffic.service_class) for traffic in self.traffic)
        for stream in self.streams:
            yield from ((f"workload: stream '{stream.name}': {field}", name) for field, name in stream.classes_named())


def parse_workload(data: Any, where: str) -> GenerateWorkload:
    """A checked workload from plain data. Raises ConfigError: one line with the field and how to mend it."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: a workload is a mapping with duration_s and streams, or with preset")
    if data.get("kind", "generate") != "generate" or "file" in data:
        raise ConfigError(f"{where}: this workload plays a file; give one with streams, traffic or preset")
    try:
        return GenerateWorkload.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_problem(error, GenerateWorkload, 'workload')}") from None
