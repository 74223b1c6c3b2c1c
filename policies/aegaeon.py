"""Aegaeon: token-level autoscaling. Some GPUs compute prompts, others decode in turns, models change within seconds.

Source: Zyyeric/Aegaeon ca8caccf (the artifact, Zenodo 10.5281/zenodo.16673199): prefill_dispatcher,
prefill_scheduler, decode_scheduler; Xiang et al., SOSP 2025. Prefill: a request joins a queued group of its model
with fewer than 8, else makes a new one on the GPU with the fewest groups; groups are served in order, their requests
one by one, and KV leaves after the first token. Decode: a request joins a batch of its model with room, else makes
one on the GPU with the fewest; a GPU goes round its batches, each with a turn of q_i = c0 / (n_i (alpha - sum 1/n)),
where n_i = TPOT / step time, c0 is what it takes to bring in each model once, and alpha = max(c0 / (min n QMAX) + sum
1/n, 0.5). At the end of a turn KV leaves by preemption, and the next model comes, prefetched where memory was free.
Not as published: pools are split 6:10 over all GPUs, and one GPU alone has both roles, a group and a turn by turns;
so has a GPU that gets a model which no GPU of the other pool can hold. Switch times are the tables' instead of bytes
over PCIe rates; a turn counts from when its model is in. Left out: the simulator's rule that fails requests after 15
s without progress, and prefix caches. Promises enter by `tpot_s` alone, as in the code (TTFT 10 s is only measured
there).
"""

from __future__ import annotations

from collections.abc import Iterator

from policies._parts.aegaeon_turns import Batch, Group, Turns, TurnWorker
from sim.policy import Action, Field, GpuView, ModelView, Policy, PolicyParameters, RequestView, View


class Aegaeon(Policy):
    """Prefill and decode pools; decoding in weighted turns."""

    tier = "research"

    class Parameters(PolicyParameters):
        prefill_parts: int = Field(6, ge=1, description="parts of the GPUs that compute prompts (16 GPUs: 6)")
        decode_parts: int = Field(10, ge=1, description="parts of the GPUs that decode (16 GPUs: 10)")
        group_size: int = Field(8, ge=1, description="most requests that wait in a prefill group")
        longest_turn_s: float = Field(4.0, gt=0, description="QMAX: no turn is longer")
        tpot_s: float = Field(0.1, gt=0, description="promised seconds per token, which turns are weighted by")
        prefetch: bool = Field(True, description="load the next model ahead where memory is free")

    def __init__(self, parameters: Parameters | None = None) -> None:
        super().__init__(parameters)
        self.workers: dict[GpuView, TurnWorker] = {}
        self._pools: dict[bool, list[TurnWorker]] = {}
        self._able: dict[tuple[bool, ModelView], list[TurnWorker]] = {}
        self._place: dict[int, tuple[TurnWorker, Batch | Group]] = {}
        asked = self.parameters
        self.turns = Turns(asked.tpot_s, asked.longest_turn_s, asked.prefetch, self._joins)

    def start(self, view: View) -> Iterator[Action]:
        """Deal the GPUs to the two pools, evenly over nodes."""
        gpus = view.gpus
        share = self.parameters.prefill_parts / (self.parameters.prefill_parts + self.parameters.decode_parts)
        prefills = max(1, min(len(gpus) - 1, round(len(gpus) * share)))
        self.workers = {gpu: TurnWorker(gpu) for gpu in gpus}
        self._pools = {True: [], False: []}
        for place, worker in enumerate(self.workers.values()):
            picked = (place + 1) * prefills // len(gpus) > place * prefills // len(gpus)
            if picked or len(gpus) == 1:
                self._pools[True].append(worker)
            if not picked or len(gpus) == 1:
                self._pools[False].append(worker)
        return iter(())

    def pool(self, prefill: bool, model: ModelView) -> list[TurnWorker]:
        """The GPUs for one of the two stages of a model: those that take the most of its layers."""
        if (prefill, model) not in self._able:
            everybody = list(self.workers.values())
            up = [worker for worker in everybody if worker.gpu.up]
            pool = [worker for worker in self._pools[prefill] if worker.gpu.up]
            for workers in (pool, up, everybody):  # if none can do it now, one that will when it is repaired
                layers = {worker: worker.gpu.layers_when_empty(model) for worker in workers}
                most = max((number for number in layers.values() if number is not None), default=None)
                if most is not None:
                    break
            self._able[prefill, model] = [worker for worker in workers if layers[worker] == most]
        return self._able[prefill, model]

    def decide(self, view: View) -> Iterator[Action]:
        touched = [*self.turns.rung(view), *(i.gpu for i in (*view.loaded, *view.idled))]
        touched += [gpu for freed in view.freed for gpu in freed.node.gpus]
        workers = dict.fromkeys(self.workers[gpu] for gpu in touched)
        for request in view.finished:
            workers[self._forget(request)] = None
        moved: dict[RequestView, None] = {}
        if view.failed or view.repaired:
            self._able = {}
        for worker in [self.workers[gpu] for gpu in view.failed if not gpu.up]:
            moved.update(dict.fromkeys(worker.give_up()))
        moved.update(dict.fromkeys([r for r in view.requeued if not self._place[r.number][0].gpu.up]))
        for request in moved:
            self._forget(request)
        requeued = [request for request in view.requeued if request not in moved]
        for request in (*moved, *requeued, *view.arrived):
            self.turns.queued[request.number] = True
            workers[self._dispatch(view, request)] = None
        for worker in workers:
            yield from self.turns.step(view, worker)

    # --- dispatch

    def _dispatch(self, view: View, request: RequestView) -> TurnWorker:
        known = self._place.get(request.number)
        if request.produced_tokens:
            if known is not None and isinstance(known[1], Batch):
                return known[0]  # its batch's turn is over
            return self._dispatch_decode(view, request)
        if known is not None:  # its prompt was cut off: next again
            worker = known[0]
            self.turns.fragile[request.number] = True
            self._place[request.number] = (worker, worker.add_group(request, first=True))
            worker.prompt = None if worker.prompt is request else worker.prompt
            return worker
        able = self.pool(True, request.model)
        for worker in able:
            if (group := worker.group_for(request.model, self.parameters.group_size)) is not None:
                group.requests.append(request)
                break
        else:
            worker = min(able, key=lambda worker: worker.group_count)
            group = worker.add_group(request)
        self._place[request.number] = (worker, group)
        return worker

    def _dispatch_decode(self, view: View, request: RequestView) -> TurnWorker:
        able = self.pool(False, request.model)
        for worker in able:
            if (batch := worker.batch_for(request, view.max_sequences)) is not None:
                break
        else:
            worker = min(able, key=lambda worker: len(worker.batches))
            worker.add_batch(batch := Batch(request.model))
        batch.requests[request.number] = request
        self._joins(request, worker, batch)
        return worker

    def _forget(self, request: RequestView) -> TurnWorker:
        worker, place = self._place.pop(request.number)
        self.turns.queued.pop(request.number, None)
        self.turns.fragile.pop(request.number, None)
        if isinstance(place, Batch):
            place.requests.pop(request.number, None)
        elif worker.prompt is request:
            worker.prompt = None
        elif request in place.requests:
            place.requests.remove(request)
        return worker

    def _joins(self, request: RequestView, worker: TurnWorker, batch: Batch) -> None:
        self._place[request.number] = (worker, batch)
