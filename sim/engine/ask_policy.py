"""Asks a policy for a decision and has its actions carried out one by one; whatever it does wrong is named as its own.

A policy is somebody else's code: it may raise, exit, return nonsense or never come to an end. Each of these is a
PolicyError with the policy's name, the time and the place, so that the user knows whose mistake it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sim.common.errors import PolicyError, SimError, message_of, shown
from sim.common.time_limit import Overtime
from sim.core.core import Core
from sim.core.world import Changes
from sim.engine.validate_action import Gate
from sim.policy.interface.models import Views
from sim.policy.interface.view import View

# A decision with so many actions has lost itself.
_MOST_ACTIONS = 1_000_000


class Asking:
    """The engine's way to its policy."""

    def __init__(self, core: Core, views: Views, gate: Gate, policy_name: str) -> None:
        self.core = core
        self.views = views
        self.gate = gate
        self.policy_name = policy_name
        self.asked = 0  # decisions so far
        self.deciding = False

    def running(self) -> int:
        """The number of the decision that is being made; 0: none."""
        return self.asked if self.deciding else 0

    def ask(self, method: Callable[[View], Any], changes: Changes) -> None:
        """One decision. Each action is carried out before the policy is asked for the next, so a policy that is written
        as a generator sees what its earlier actions did. Raises PolicyError."""
        view = View(self.core.world, self.views, changes)
        self.gate.open()
        ours: BaseException | None = None
        taken = 0
        self.asked += 1
        self.deciding = True
        try:
            for action in _actions(method(view)):
                taken += 1
                try:
                    self.gate.apply(action)
                except BaseException as error:
                    ours = error  # the gate's refusal, or a fault of the engine: not the policy's code that failed
                    raise
                if taken == _MOST_ACTIONS:
                    raise PolicyError(f"it took {_MOST_ACTIONS} actions in one decision without an end")
        except KeyboardInterrupt as error:
            now_s = self.core.now_s
            error.add_note(f"policy '{self.policy_name}' was deciding at t={now_s:.6f} s ({_place(error)})")
            raise
        except MemoryError:  # of the machine: whoever asked for the last byte is not to blame
            raise
        except BaseException as error:  # also what is no Exception: a policy may raise anything
            if error is ours and not isinstance(error, Overtime):
                raise
            if isinstance(error, SimError | Overtime):
                what = str(error)
            else:
                what = f"{type(error).__name__}: {message_of(error)} ({_place(error)})"
            raise PolicyError(self.blame(what)) from error
        finally:
            self.deciding = False
        view.expire()

    def blame(self, what: str) -> str:
        """An error message for something that the policy did."""
        return f"policy '{self.policy_name}' failed at t={self.core.now_s:.6f} s: {what}"


def _actions(answer: Any) -> Iterator[Any]:
    try:
        return iter(answer)
    except TypeError:
        close = getattr(answer, "close", None)
        if close is not None:  # of a coroutine, which else complains later that nobody awaited it
            close()
        raise PolicyError(
            f"its decision is {shown(answer)}; yield actions, or return them in a list (or () for none)"
        ) from None


def _place(error: BaseException) -> str:
    """File and line of a policy's mistake."""
    place, trace = "no place", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith("<"):  # the generated methods of our dataclasses are nobody's file
            place = f"{Path(file).name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return place
