"""What a fixed placement loses to faults, and gets back: each instance as it was, once its GPU is up and takes it.

For policies that place once and for all, as a service manager that starts the same servers whenever a machine boots.
Which place is whose was decided before; nothing here decides. Policies import it from sim.policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sim.policy.interface.actions import Load
from sim.policy.interface.machines import GpuView
from sim.policy.interface.models import InstanceView, ModelView
from sim.policy.interface.view import View


class Standing:
    """Instances that are missing, by their GPUs."""

    def __init__(self) -> None:
        self._missing: dict[GpuView, list[InstanceView]] = {}

    def restore(self, view: View) -> Iterable[Load]:
        """Load again what was lost, where that is possible now. To be asked in every decision."""
        lost = view.lost
        return self._again(lost) if lost or self._missing else ()

    def _again(self, lost: list[InstanceView]) -> Iterator[Load]:
        for instance in lost:
            self._missing.setdefault(instance.gpu, []).append(instance)
        for gpu in [gpu for gpu in self._missing if gpu.up]:
            left = []
            for instance in self._missing.pop(gpu):
                if gpu.takes(instance.model, instance.layers, instance.kv_tokens):
                    limits = (instance.kv_tokens, instance.max_sequences)
                    yield Load(instance.model, gpu, instance.layers, *limits)
                else:
                    left.append(instance)
            if left:
                self._missing[gpu] = left

    def expects(self, model: ModelView) -> bool:
        """Is an instance of the model missing, that will be back when its GPU is?"""
        return any(instance.model is model for lost in self._missing.values() for instance in lost)
