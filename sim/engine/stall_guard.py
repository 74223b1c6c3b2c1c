"""Does a run get anywhere? A policy that keeps it going for ever without serving anybody is told so.

Tokens and ended requests are progress, and so is an arrival. The engine looks at every decision; nothing here changes
what happens.
"""

from __future__ import annotations

from sim.common.errors import PolicyError
from sim.core.core import Core
from sim.core.world import Changes
from sim.engine.ask_policy import Asking

# So many wake-ups in a row, asked for by the policy, with no other event in between: it waits for nothing.
_IDLE_WAKES = 10_000
# So many decisions in a row between which no request arrived, got a token or ended: loads that take no time, it may be.
_FRUITLESS = 20_000
_FRUITLESS_EACH = 20  # or so many for each GPU, where that is more: a large cluster may load for long before anything
# So long without a token after the last arrival, with work left and something always going on: loads without an end.
_STALLED_S = 86_400.0
# So often somebody may be waiting for the repair that has just been done.
_REPAIRS = 1_000


class StallGuard:
    """Of one run."""

    def __init__(self, core: Core, asking: Asking) -> None:
        self.core = core
        self.asking = asking
        self._reached = 0  # tokens and ends so far
        self._since_s = 0.0  # since when there are no more
        self._loads = 0  # until then
        self._repairs = 0  # since then
        self._fruitless = 0  # decisions since then
        self._wakes = 0  # in a row

    def look(self, changes: Changes, all_sent: bool, waiting: int) -> bool:
        """Before a decision. False: for a day nobody has been served and nothing loaded, only faults go on. `all_sent`:
        no request is still to come; `waiting`: so many have not ended. Raises PolicyError."""
        recorder, now_s = self.core.recorder, self.core.now_s
        reached = recorder.output_tokens + recorder.all_ended
        if reached != self._reached or changes.arrived:
            self._fruitless = 0
        elif not (changes.failed or changes.repaired):
            self._fruitless += 1
        most = max(_FRUITLESS, _FRUITLESS_EACH * len(self.core.cluster.gpus))
        if self._fruitless > most:
            reason = f"it decided {most} times in a row while no request arrived, got a token or ended"
            raise PolicyError(self.asking.blame(reason))
        if reached != self._reached or changes.arrived or not all_sent:
            self._reached, self._since_s, self._loads, self._repairs = reached, now_s, recorder.counts["loads"], 0
        elif changes.repaired and self._repairs < _REPAIRS:
            self._since_s, self._repairs = now_s, self._repairs + 1
        elif now_s - self._since_s > _STALLED_S:
            if recorder.faults is not None and recorder.counts["loads"] == self._loads:
                return False
            raise PolicyError(self.asking.blame(f"no token in a simulated day while {waiting} requests wait"))
        if (
            not changes.woken
            or changes.arrived
            or changes.finished
            or changes.loaded
            or changes.freed
            or changes.failed
        ):
            self._wakes = 0
            return True
        self._wakes += 1
        if self._wakes > _IDLE_WAKES:
            raise PolicyError(
                self.asking.blame(f"it asked to be woken {_IDLE_WAKES} times in a row while nothing else happened")
            )
        return True
