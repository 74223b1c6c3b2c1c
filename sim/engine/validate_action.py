"""The one way from a policy's actions to the world: checks each, always, and carries it out at once.

An illegal action is a PolicyError that names policy, time, action and reason; the run stops there. Later actions of one
decision see what earlier ones did.
"""

from __future__ import annotations

from collections.abc import Callable
from sys import float_info
from typing import Any

from sim.common.errors import PolicyError, shown
from sim.core.core import Core
from sim.core.state.instance import ASLEEP, LOADING, PENDING, READY, STARTING, Instance, Model
from sim.core.state.machines import Gpu, Placement
from sim.core.state.memory_fit import gib, host_missing, need, status_word, why_not_layers, why_not_resize
from sim.core.state.request import REJECTED, Request
from sim.policy.interface.actions import Load, Preempt, Reject, Resize, Route, Stop, Wake
from sim.policy.interface.machines import GpuView
from sim.policy.interface.models import InstanceView, ModelView
from sim.policy.interface.requests import RequestView

_MOST_KV_TOKENS = 2**60  # what an ideal memory holds, at a byte a token
_LONGEST_REASON = 1_000


class Gate:
    """Checks and applies the actions of one policy."""

    def __init__(self, core: Core, policy_name: str, wake: Callable[[float], None]) -> None:
        self.core = core
        self.policy_name = policy_name
        self._wake = wake
        self._made: list[tuple[Load, Instance]] = []
        self._handlers: dict[type, Callable[[Any], None]] = {
            Load: self._load,
            Route: self._route,
            Resize: self._resize,
            Stop: self._stop,
            Preempt: self._preempt,
            Reject: self._reject,
            Wake: self._wake_at,
        }

    def open(self) -> None:
        """A new decision begins."""
        self._made = []

    def apply(self, action: object) -> None:
        """Carry out one action of the decision. Raises PolicyError when it is illegal."""
        handler = self._handlers.get(type(action))
        if handler is None:
            raise PolicyError(
                f"policy '{self.policy_name}' at t={self.core.now_s:.6f} s: {shown(action)} is not an action; "
                "return Load, Route, Resize, Stop, Preempt, Reject or Wake from sim.policy"
            )
        handler(action)

    def _refuse(self, action: object, reason: str) -> PolicyError:
        return PolicyError(
            f"policy '{self.policy_name}' at t={self.core.now_s:.6f} s: {_describe(action)} refused: {reason}"
        )

    def _unwrap(self, action: object, view: object, kind: type, what: str) -> Any:
        if not isinstance(view, kind):
            raise self._refuse(action, f"{what} must be taken from the view, not {shown(view)}")
        return view._of  # type: ignore[attr-defined]

    # A policy's action may hold anything, whatever its fields are declared as: nothing is taken for granted below.

    # --- load

    def _load(self, action: Any) -> None:
        model: Model = self._unwrap(action, action.model, ModelView, "the model")
        gpu: Gpu = self._unwrap(action, action.gpu, GpuView, "the GPU")
        if gpu.down:
            raise self._refuse(action, f"{gpu.name} is down; view.gpus has those that are up")
        kv_tokens = action.model.default_kv_tokens if action.kv_tokens is None else action.kv_tokens
        self._check_layers(action, model, gpu, action.layers)
        if not isinstance(kv_tokens, int) or not model.max_context <= kv_tokens <= _MOST_KV_TOKENS:
            hold = f"cannot hold one request of max_context {model.max_context}"
            if isinstance(kv_tokens, int) and kv_tokens > _MOST_KV_TOKENS:
                hold = f"is beyond any memory; at most {_MOST_KV_TOKENS:,}"
            raise self._refuse(action, f"a KV pool of {shown(kv_tokens)} tokens {hold}")
        most = self.core.options.max_sequences
        sequences = most if action.max_sequences is None else action.max_sequences
        if not isinstance(sequences, int) or not 1 <= sequences <= most:
            raise self._refuse(action, f"max_sequences must be a whole number from 1 to the engine's {most}")
        residency = model.residency(action.layers)
        needed = need(model, residency, kv_tokens, self.core.options)
        if needed.gpu > gpu.available_bytes:
            raise self._refuse(
                action,
                f"it needs {gib(needed.gpu)} on {gpu.name} and {gib(gpu.available_bytes)} of "
                f"{gib(gpu.capacity_bytes)} are available",
            )
        self._check_host(action, model, gpu, needed.host_weights, needed.host_kv)
        self._made.append((action, self.core.load(model, Placement((gpu,)), residency, kv_tokens, sequences)))

    def _check_layers(self, action: object, model: Model, gpu: Gpu, layers: object) -> None:
        reason = why_not_layers(model, gpu, layers)
        if reason:
            raise self._refuse(action, reason)

    def _check_host(self, action: object, model: Model, gpu: Gpu, host_weights: int, host_kv: int) -> None:
        """Host memory for the layers outside the GPU (or a host copy of all) and their KV."""
        missing = host_missing(model, gpu.node, host_weights, host_kv)
        if missing > 0:
            raise self._refuse(action, f"host memory of {gpu.node.name} lacks {gib(missing)} for it")

    # --- requests

    def _route(self, action: Any) -> None:
        request: Request = self._unwrap(action, action.request, RequestView, "the request")
        instance = self._target(action)
        if request.model is not instance.model:
            raise self._refuse(action, f"the instance serves {instance.model.name}")
        if not instance.accepts:
            raise self._refuse(action, f"the instance is {status_word(instance)}")
        self._take_waiting(action, request)
        self.core.route(request, instance, bool(action.recompute))

    def _target(self, action: Any) -> Instance:
        if isinstance(action.instance, Load):
            for load, instance in self._made:
                if load is action.instance:
                    return instance
            raise self._refuse(action, "its Load must come before it in the same decision")
        found: Instance = self._unwrap(action, action.instance, InstanceView, "the instance")
        return found

    def _take_waiting(self, action: object, request: Request) -> None:
        """Out of the queue it waits in. Raises PolicyError when it does not wait."""
        if request.outcome >= 0:
            raise self._refuse(action, "the request has ended")
        if not self.core.take_back(request):
            raise self._refuse(action, "the request is not waiting: it runs, or its KV is moving")

    def _preempt(self, action: Any) -> None:
        request: Request = self._unwrap(action, action.request, RequestView, "the request")
        instance = request.instance
        if instance is None or (request.index not in instance.decoding and request not in instance.prefilling):
            raise self._refuse(action, "the request does not run")
        if action.mode not in ("save", "recompute"):
            raise self._refuse(action, "mode must be save or recompute")
        self.core.preempt(request, instance, action.mode)

    def _reject(self, action: Any) -> None:
        request: Request = self._unwrap(action, action.request, RequestView, "the request")
        reason = action.reason
        if not isinstance(reason, str) or not reason.isprintable() or not 0 < len(reason) <= _LONGEST_REASON:
            raise self._refuse(action, f"give the reason for the rejection, at most {_LONGEST_REASON} printable signs")
        self._take_waiting(action, request)
        self.core.end(request, REJECTED, reason)

    # --- instances

    def _stop(self, action: Any) -> None:
        instance: Instance = self._unwrap(action, action.instance, InstanceView, "the instance")
        if action.mode not in ("drain", "preempt", "abort"):
            raise self._refuse(action, "mode must be drain, preempt or abort")
        if (
            instance.status not in (PENDING, STARTING, LOADING, READY, ASLEEP)
            or instance.stop_mode
            or instance.resizing
        ):
            raise self._refuse(action, f"the instance is {status_word(instance)}")
        self.core.stop(instance, action.mode)

    def _resize(self, action: Any) -> None:
        instance: Instance = self._unwrap(action, action.instance, InstanceView, "the instance")
        reason = why_not_resize(instance, action.layers, self.core.options)
        if reason:
            raise self._refuse(action, reason)
        asleep = instance.status == ASLEEP
        sleeps = self.core.options.resize == "sleep" and not asleep
        if action.drop_weights is not False and not (action.drop_weights is True and sleeps):
            raise self._refuse(action, "drop_weights is for an instance that is put to sleep (resize: sleep)")
        instance.drops_weights = bool(action.drop_weights)
        self.core.resize(instance, instance.model.residency(0 if sleeps else action.layers))

    def _wake_at(self, action: Any) -> None:
        at_s = action.at_s
        is_number = isinstance(at_s, int | float)  # a whole number may be larger than any float
        if not is_number or not abs(at_s) <= float_info.max:
            raise self._refuse(action, "at_s must be a finite time in seconds")
        if at_s <= self.core.now_s:
            raise self._refuse(action, "at_s must lie in the future")
        self._wake(float(at_s))


def _describe(action: object) -> str:
    fields = getattr(action, "__dict__", {})
    inside = ", ".join(f"{name}={shown(value)}" for name, value in fields.items() if not isinstance(value, Load))
    return f"{type(action).__name__}({inside})"
