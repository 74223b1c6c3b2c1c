"""A slow, obvious engine that the real one is compared with: it steps every iteration of every instance.

It plays a fixed placement (`Site`s, all loaded from time 0 on) and a fixed routing (`Job`s) by the rules of sections 4,
5 and 7 of the model, with nothing closed-form: no leaps, no heaps, no counters kept up to date, every sum taken anew.
Of `sim` it uses only the profile tables' lookups and the option records; test_reference.py compares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf

from sim.profiles.profile import Profile
from sim.scenario.scenario import EngineOptions, SharingOptions
from tests.support.reference.links import Machine, ReferenceLinks

PHASES = ("queued", "load_wait", "prefill", "decode", "stalled", "preempted", "kv_transfer", "recompute")


@dataclass(eq=False)
class Job:
    """A request, and all that happens to it."""

    index: int
    site: Site
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    priority: int
    phase: str = "queued"
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    token_times_s: list[float] = field(default_factory=list)
    computed: int = 0  # tokens of its prompt (or recompute) that are done
    saved: bool = False  # its KV lies in host memory
    order: int = 0  # of admission
    preemptions: int = 0
    cold: bool = False
    end_s: float = -1.0
    completed: bool = False

    @property
    def context(self) -> int:
        return self.prompt_tokens + len(self.token_times_s)


@dataclass(eq=False)
class Iteration:
    """One iteration under way: seconds on (GPU, host) of its decoding and of its prompts, uncontended."""

    decoding: list[Job]
    chunks: list[tuple[Job, int]]
    decode_s: tuple[float, float]
    prompt_s: tuple[float, float]
    stretches: tuple[float, float] | None = None
    fraction: float = 0.0
    end_s: float = inf

    def duration_s(self) -> float:
        assert self.stretches is not None
        return sum(s * (d + p) for s, d, p in zip(self.stretches, self.decode_s, self.prompt_s, strict=True))

    def prompt_share(self) -> float:
        """The part of each of its seconds that goes to prompts: decoding sequences are stalled for it."""
        assert self.stretches is not None
        return sum(s * p for s, p in zip(self.stretches, self.prompt_s, strict=True)) / self.duration_s()


@dataclass(eq=False)
class Site:
    """An instance that is loaded once and stays. GPUs and nodes by index; the KV pool in blocks."""

    node: int
    gpu: int
    layers: int
    blocks: int
    profile: Profile
    ready: bool = False
    starts_s: float = 0.0  # when the fixed costs of its load are paid
    waiting: list[Job] = field(default_factory=list)
    prefilling: list[Job] = field(default_factory=list)
    decoding: list[Job] = field(default_factory=list)
    restoring: list[Job] = field(default_factory=list)
    joining: list[Job] = field(default_factory=list)  # restored, they decode from the next boundary on
    saving: list[Job] = field(default_factory=list)
    iteration: Iteration | None = None
    composition: object = None  # that its shares were read from; None while it is idle
    shares: tuple[float, float] = (0.0, 0.0)
    preempted_s: float = -1.0  # when it last preempted somebody

    def members(self) -> list[Job]:
        return self.prefilling + self.decoding + self.restoring + self.joining

    def kv_bytes(self, job: Job) -> int:
        """On its GPU."""
        return job.context * self.profile.weights.kv_bytes_per_token_layer * self.layers


class ReferenceEngine:
    """One run. Afterwards the jobs, `now_s`, `activity_s` (per GPU), `links.moved` and `closest_s` tell what happened.

    `closest_s` is the least time between two different instants. Where it is near the clock's rounding, the order of
    the two is chance, and no two engines need to agree.
    """

    def __init__(self, machine: Machine, options: EngineOptions, sharing: SharingOptions) -> None:
        self.machine = machine
        self.options = options
        self.sharing = sharing
        self.sites: list[Site] = []
        self.jobs: list[Job] = []
        self.links = ReferenceLinks(machine, sharing.links)
        self.now_s = 0.0
        self.admitted = 0
        self.closest_s = inf
        self.activity_s = [dict.fromkeys(("computing", "loading", "transferring", "idle"), 0.0) for _ in machine.gpus]

    # --- time

    def run(self, horizon_s: float = inf) -> None:
        """From time 0 until the last request has ended, or the horizon."""
        for site in self.sites:
            site.starts_s = site.profile.switch.start_s + site.profile.switch.reload_fixed_s
        self._events()
        while not all(job.completed for job in self.jobs):
            self._end_of_instant()
            next_s = min(self._times())
            self._advance(min(next_s, horizon_s))
            if next_s >= horizon_s:
                return
            self._events()

    def _times(self) -> list[float]:
        """Of everything that is going to happen."""
        return [
            *(job.arrival_s for job in self.jobs if job.arrival_s > self.now_s),
            *(site.starts_s for site in self.sites if site.starts_s > self.now_s),
            *(transfer.end_s for transfer in self.links.transfers if transfer.end_s < inf),
            *(site.iteration.end_s for site in self.sites if site.iteration is not None),
        ]

    def _advance(self, to_s: float) -> None:
        seconds = to_s - self.now_s
        if seconds > 0:
            self.closest_s = min(self.closest_s, seconds)
        for gpu, activity_s in enumerate(self.activity_s):
            activity_s[self._activity(gpu)] += seconds
        for job in self.jobs:
            if job.arrival_s <= self.now_s and job.end_s < 0:
                self._spend(job, seconds)
        self.links.advance(to_s)
        for site in self.sites:
            if site.iteration is not None:
                site.iteration.fraction += seconds / site.iteration.duration_s()
        self.now_s = to_s

    def _spend(self, job: Job, seconds: float) -> None:
        """Give these seconds of its life their names."""
        if job.phase != "decode":
            job.seconds[job.phase] += seconds
            return
        # A decoding sequence whose instance runs no iteration waits for another's KV to be saved.
        stalled = 1.0 if job.site.iteration is None else job.site.iteration.prompt_share()
        job.seconds["stalled"] += stalled * seconds
        job.seconds["decode"] += (1.0 - stalled) * seconds

    def _activity(self, gpu: int) -> str:
        sites = [site for site in self.sites if site.gpu == gpu]
        if any(site.iteration is not None for site in sites):
            return "computing"
        if any(not site.ready for site in sites):
            return "loading"
        return "transferring" if any(transfer.gpu == gpu for transfer in self.links.transfers) else "idle"

    # --- what happens at an instant

    def _events(self) -> None:
        for job in self.jobs:
            if job.arrival_s == self.now_s:
                job.cold = not job.site.ready
                job.phase = "load_wait" if job.cold else "queued"
                job.site.waiting.append(job)
        for site in self.sites:
            if not site.ready and site.starts_s == self.now_s:
                weights = float(site.profile.weights.gpu_bytes(site.layers))
                self._send("weights", site, weights, partial(self._loaded, site))
        self.links.end_transfers()
        for site in self.sites:
            if site.iteration is not None and site.iteration.end_s <= self.now_s:
                self._end_iteration(site, site.iteration)

    def _loaded(self, site: Site) -> None:
        site.ready = True
        for job in site.waiting:
            job.phase = "queued"

    def _end_iteration(self, site: Site, iteration: Iteration) -> None:
        site.iteration = None
        for job in iteration.decoding:
            job.token_times_s.append(self.now_s)
        for job, tokens in iteration.chunks:
            job.computed += tokens
            if job.computed == job.context:
                job.computed = 0
                job.token_times_s.append(self.now_s)
                job.phase = "decode"
                site.prefilling.remove(job)
                site.decoding.append(job)
        for job in list(site.decoding):
            if len(job.token_times_s) == job.output_tokens:
                job.end_s = self.now_s
                job.completed = True
                site.decoding.remove(job)

    def _end_of_instant(self) -> None:
        """Boundaries, then iterations; but what a boundary sends may arrive at once (no bytes) and come first."""
        while True:
            for site in self.sites:
                if site.ready and site.iteration is None and not site.saving:
                    self._boundary(site)
            if not self.links.end_transfers():
                break
        for site in self.sites:
            if site.ready and site.iteration is None:
                self._start_iteration(site)
        self._stretch()

    # --- an iteration boundary

    def _boundary(self, site: Site) -> None:
        for job in site.joining:
            job.phase = "decode"
            site.decoding.append(job)
        site.joining = []
        self._make_room(site)
        if site.preempted_s != self.now_s:
            self._admit(site)

    def _blocks(self, jobs: list[Job]) -> int:
        """KV blocks that these need for their context and the token to come."""
        return sum(job.context // self.options.block_tokens + 1 for job in jobs)

    def _urgency(self, job: Job) -> tuple[int, int]:
        return (job.priority if self.options.sequence_order == "priority" else 0, job.index)

    def _make_room(self, site: Site) -> None:
        while self._blocks(site.members()) > site.blocks:
            candidates = site.prefilling + site.decoding
            if self.options.sequence_order == "priority":
                victim = max(candidates, key=self._urgency)
            else:
                victim = max(candidates, key=lambda job: job.order)
            victim.preemptions += 1
            site.preempted_s = self.now_s
            if victim in site.prefilling or self.options.sequence_preemption == "recompute":
                (site.prefilling if victim in site.prefilling else site.decoding).remove(victim)
                victim.computed = 0
                victim.phase = "preempted"
                site.waiting.append(victim)
            else:
                site.decoding.remove(victim)
                site.saving.append(victim)
                victim.phase = "kv_transfer"
                size = site.kv_bytes(victim)
                self._send("kv_save", site, size, partial(self._saved, victim))

    def _saved(self, job: Job) -> None:
        job.saved = True
        job.phase = "preempted"
        job.site.saving.remove(job)
        job.site.waiting.append(job)
        job.site.preempted_s = -1.0

    def _admit(self, site: Site) -> None:
        chunked = self.options.prefill == "chunked"
        budget = self.options.prefill_tokens - sum(job.context - job.computed for job in site.prefilling)
        if chunked:
            budget -= len(site.decoding)
        for job in sorted(site.waiting, key=self._urgency):
            members = site.members()
            keep_free = self.options.watermark * site.blocks if members else 0
            if len(members) == self.options.max_sequences:
                return
            if site.blocks - self._blocks([*members, job]) < keep_free:
                return
            if not job.saved:
                if budget <= 0 or (not chunked and site.prefilling and job.context > budget):
                    return
                budget -= job.context
            site.waiting.remove(job)
            self.admitted += 1
            job.order = self.admitted
            if job.saved:
                job.phase = "kv_transfer"
                site.restoring.append(job)
                size = site.kv_bytes(job)
                self._send("kv_restore", site, size, partial(self._restored, job))
            else:
                job.phase = "recompute" if job.token_times_s else "prefill"
                site.prefilling.append(job)

    def _restored(self, job: Job) -> None:
        job.saved = False
        job.site.restoring.remove(job)
        job.site.joining.append(job)

    def _start_iteration(self, site: Site) -> None:
        if site.saving or not (site.prefilling or site.decoding):
            site.composition = None
            return
        chunks = []
        decoding = list(site.decoding)
        if self.options.prefill == "first" and site.prefilling:
            decoding = []
            chunks = [(job, job.context) for job in site.prefilling]
        budget = self.options.prefill_tokens - len(decoding)
        if self.options.prefill == "chunked":
            for job in site.prefilling:
                tokens = min(budget, job.context - job.computed)
                budget -= tokens
                if tokens:
                    chunks.append((job, tokens))
        prefill = site.profile.prefill_curve(site.layers)
        decode_s = (0.0, 0.0)
        prompt_s = prefill.at(0.0) if chunks and not decoding else (0.0, 0.0)
        for job, tokens in chunks:
            before_s, after_s = prefill.at(float(job.computed)), prefill.at(float(job.computed + tokens))
            prompt_s = (prompt_s[0] + after_s[0] - before_s[0], prompt_s[1] + after_s[1] - before_s[1])
        if decoding:
            context = sum(job.context for job in decoding) / len(decoding)
            decode_s = site.profile.decode_curve(site.layers, len(decoding)).at(context)
        site.iteration = Iteration(decoding, chunks, decode_s, prompt_s)
        composition = (sorted(job.index for job in site.decoding), [(job.index, tokens) for job, tokens in chunks])
        if composition != site.composition:
            site.composition = composition
            parts = (decode_s[0] + prompt_s[0], decode_s[1] + prompt_s[1])
            site.shares = (parts[0] / sum(parts), parts[1] / sum(parts))

    # --- sharing

    def _stretch(self) -> None:
        """Every iteration runs at the speed that today's company allows; what it has done already is kept."""
        for site in self.sites:
            iteration = site.iteration
            if iteration is None:
                continue
            stretches = (self._gpu_stretch(site), self._host_stretch(site))
            if stretches != iteration.stretches:
                iteration.stretches = stretches
                iteration.end_s = self.now_s + (1.0 - iteration.fraction) * iteration.duration_s()

    def _demand(self, shares: list[float]) -> float:
        if self.sharing.contention == "time_slice":
            return sum(1 for share in shares if share > 0)
        return sum(shares)

    def _stretch_of(self, shares: list[float], mine: float, others: float = 0.0) -> float:
        """The stretch of one that asks for `mine`, which is among `shares`."""
        if self.sharing.contention == "processor_sharing":
            return 1.0 + sum(shares) - mine + others
        return max(1.0, self._demand(shares) + others)

    def _gpu_stretch(self, site: Site) -> float:
        shares = [s.shares[0] for s in self.sites if s.gpu == site.gpu and s.iteration is not None]
        return self._stretch_of(shares, site.shares[0])

    def _host_stretch(self, site: Site) -> float:
        """Of the CPU of its node, or of the link to its GPU; loads (and on the link all else) take their share."""
        if site.shares[1] == 0:
            return 1.0
        users = [s for s in self.sites if s.iteration is not None and s.profile.offload == site.profile.offload]
        if site.profile.offload == "cpu":
            users = [other for other in users if other.node == site.node]
            gpus = [gpu for gpu, (node, _) in enumerate(self.machine.gpus) if node == site.node]
            rates = [t.rate for t in self.links.transfers if t.cause == "weights" and t.gpu in gpus]
            others = sum(rates) / self.machine.hosts[site.node].cpu_bytes_per_s
        else:
            users = [other for other in users if other.gpu == site.gpu]
            rates = [t.rate for t in self.links.transfers if t.cause != "kv_save" and t.gpu == site.gpu]
            others = sum(rates) / self.machine.gpus[site.gpu][1].h2d_bytes_per_s
        return self._stretch_of([other.shares[1] for other in users], site.shares[1], others)

    # --- links

    def _send(self, cause: str, site: Site, size: float, on_done: Callable[[], None]) -> None:
        self.links.send(cause, site.gpu, size, (self.sites.index(site), site.profile.switch), on_done)
