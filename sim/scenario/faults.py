"""What a user may say about faults: events at given times, and random ones; frozen, checked, plain data again.

GPUs and nodes are named as in every table of results, for example `box-1/rtx-a6000-0`; `check_names` sees whether they
exist. `engine.faults` lets faults happen. Nothing is drawn here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sim.common.errors import ConfigError, did_you_mean
from sim.scenario.fields import Frozen, Share

_LONGEST_S = 1e12  # 30,000 years: further on a clock of floats hardly moves
Time = Annotated[float, Field(ge=0, le=_LONGEST_S)]
# At least a millisecond: what fails and recovers more often would only ever fail and recover.
Duration = Annotated[float, Field(ge=1e-3, le=_LONGEST_S)]
Factor = Annotated[float, Field(ge=1e-6, le=1)]
Direction = Literal["h2d", "d2h", "disk", "network"]
OF_GPUS: tuple[Direction, ...] = ("h2d", "d2h")
OF_NODES: tuple[Direction, ...] = ("h2d", "d2h", "disk", "network")


class GpuFailure(Frozen):
    """A GPU is gone for `repair_s` (None: for good), and all that was on it."""

    kind: Literal["gpu_failure"] = "gpu_failure"
    at_s: Time
    gpu: str
    repair_s: Duration | None = None


class NodeLoss(Frozen):
    """A node is gone for `repair_s` (None: for good): its GPUs, and all that was in its host memory."""

    kind: Literal["node_loss"] = "node_loss"
    at_s: Time
    node: str
    repair_s: Duration | None = None


class SlowLink(Frozen):
    """Links of a GPU (h2d, d2h) or of a node (those its GPUs share, disk, network; none given: all) have only this part
    of their rate for `for_s` (None: to the end)."""

    kind: Literal["slow_link"] = "slow_link"
    at_s: Time
    gpu: str | None = None
    node: str | None = None
    links: tuple[Direction, ...] = ()
    factor: Factor
    for_s: Duration | None = None

    @model_validator(mode="after")
    def _has_links(self) -> SlowLink:
        if (self.gpu is None) == (self.node is None):
            raise ValueError("a slow link is that of a gpu or that of a node; give one of the two")
        wrong = [name for name in self.links if self.gpu is not None and name not in OF_GPUS]
        if wrong:
            raise ValueError(f"a GPU has links {' and '.join(OF_GPUS)}; {wrong[0]} is a node's")
        return self


class LoadFailure(Frozen):
    """Of all loads on this GPU the first that ends at `at_s` or later fails then."""

    kind: Literal["load_failure"] = "load_failure"
    at_s: Time
    gpu: str


class Cancellation(Frozen):
    """The client of a request (its place by arrival, from 0) leaves, unless it is yet to come or has its answer."""

    kind: Literal["cancellation"] = "cancellation"
    at_s: Time
    request: Annotated[int, Field(ge=0, le=10**12)]


Event = GpuFailure | NodeLoss | SlowLink | LoadFailure | Cancellation


class Outages(Frozen):
    """Of each GPU (or node): exponential times up, with this mean; then down for `repair_s`, or for exponential times
    with the mean `mean_repair_s`."""

    mean_between_s: Duration
    repair_s: Duration | None = None
    mean_repair_s: Duration | None = None

    @model_validator(mode="after")
    def _is_repaired(self) -> Outages:
        if (self.repair_s is None) == (self.mean_repair_s is None):
            raise ValueError("give either repair_s (always as long) or mean_repair_s (exponential)")
        return self


class SlowSpells(Frozen):
    """Of each GPU's links: exponential times at full rate, with this mean; then slow for `for_s`, or for exponential
    times with the mean `mean_for_s`."""

    mean_between_s: Duration
    factor: Factor
    for_s: Duration | None = None
    mean_for_s: Duration | None = None

    @model_validator(mode="after")
    def _ends(self) -> SlowSpells:
        if (self.for_s is None) == (self.mean_for_s is None):
            raise ValueError("give either for_s (always as long) or mean_for_s (exponential)")
        return self


class LoadFailures(Frozen):
    """Each load fails at its end with this probability."""

    probability: Annotated[float, Field(ge=0, lt=1)]


class Cancellations(Frozen):
    """Each client leaves with this probability, if it has no answer by then: an exponential time after its arrival."""

    probability: Share
    mean_after_s: Duration


class RandomFaults(Frozen):
    """What happens by chance; each thing that may fail has its own random numbers, whatever the policy does."""

    gpu_failure: Outages | None = None
    node_loss: Outages | None = None
    slow_link: SlowSpells | None = None
    load_failure: LoadFailures | None = None
    cancellation: Cancellations | None = None


class FaultOptions(Frozen):
    """Faults of a run. `retries`: how often a request whose GPU, node or load failed goes back to the queue before it
    is given up as failed; None: always."""

    retries: Annotated[int, Field(ge=0, le=10**6)] | None = 3
    events: tuple[Annotated[Event, Field(discriminator="kind")], ...] = ()
    random: RandomFaults = RandomFaults()


def check_names(options: FaultOptions, gpus: Sequence[str], nodes: Sequence[str]) -> None:
    """Raises ConfigError: an event names a GPU or a node that is not there."""
    for place, event in enumerate(options.events):
        for field, what, known in (("gpu", "GPU", gpus), ("node", "node", nodes)):
            name = getattr(event, field, None)
            if name is not None and name not in known:
                where = f"faults.events.{place}.{field}"
                raise ConfigError(f"{where}: the cluster has no {what} '{name}'; {did_you_mean(name, known)}")
