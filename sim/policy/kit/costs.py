"""Estimates in seconds that policies reason with: what serving, waiting, saving and reloading would take now.

Everything comes from views and profile tables, nothing from the future. Interference follows the contention model: who
computes on a GPU or CPU beside others is slowed by the sum of their shares, or by their number. Policies import it from
sim.policy.
"""

from __future__ import annotations

from math import exp

from sim.policy.interface.machines import Crowd, GpuView
from sim.policy.interface.models import InstanceView, ModelView
from sim.policy.interface.view import View

NOBODY = Crowd(0.0, 0.0, "proportional")
_LOOKED_AT = 32  # sequences of a batch, for the one that runs longest
# A typical context for questions that are not about one request, in tokens.
TYPICAL_CONTEXT = 1024.0


class ArrivalRates:
    """Requests per second of each model, with exponentially fading memory."""

    def __init__(self, memory_s: float) -> None:
        self.memory_s = memory_s
        self._seen: dict[str, tuple[float, float]] = {}

    def saw(self, model: ModelView, now_s: float) -> None:
        """A request of this model arrived."""
        count, since_s = self._seen.get(model.name, (0.0, now_s))
        self._seen[model.name] = (count * exp((since_s - now_s) / self.memory_s) + 1.0, now_s)

    def per_s(self, model: ModelView, now_s: float) -> float:
        """Arrivals per second; while the run is younger than the memory, over its age (at least a tenth of it)."""
        count, since_s = self._seen.get(model.name, (0.0, now_s))
        known_s = self.memory_s * (1.0 - exp(-max(now_s, self.memory_s / 10) / self.memory_s))
        return count * exp((since_s - now_s) / self.memory_s) / known_s


def service_s(
    model: ModelView,
    gpu: GpuView,
    layers: int,
    batch: int,
    tokens: tuple[float, float],
    others: Crowd = NOBODY,
) -> float:
    """Seconds to serve one request of (prompt, output) tokens in a batch of `batch` beside `others` (GpuView.crowd)."""
    prompt_tokens = min(tokens[0], model.max_context)
    output_tokens = min(tokens[1], max(1.0, model.max_context - prompt_tokens))
    profile = model.profile(gpu)
    gpu_s, host_s = profile.decode_curve(layers, batch).at(min(prompt_tokens + output_tokens / 2, model.max_context))
    step_s = gpu_s + host_s
    gpu_stretch, host_stretch = others.stretch(gpu_s / step_s, host_s / step_s)
    decode_s = output_tokens * (gpu_s * gpu_stretch + host_s * host_stretch)
    return decode_s + profile.prefill_s(layers, prompt_tokens) * gpu_stretch


def shares(model: ModelView, gpu: GpuView, layers: int, batch: int) -> tuple[float, float]:
    """How much of the GPU and of the CPU a decoding batch asks for, 0 to 1."""
    context = min(TYPICAL_CONTEXT, model.max_context)
    gpu_s, host_s = model.profile(gpu).decode_curve(layers, batch).at(context)
    return gpu_s / (gpu_s + host_s), host_s / (gpu_s + host_s)


def drain_s(instance: InstanceView, layers: int | None = None) -> float:
    """Seconds until those who run and wait at the instance are expected to be through, if nobody else comes.

    With `layers`: if it had so many on the GPU. Of those who run the one with the most expected tokens left counts; who
    waits comes in after them, a batch at a time. A load under way counts whole.
    """
    running, waiting = instance.running_count, instance.waiting_count
    if not running and not waiting:
        return reload_s(instance) if instance.loading else 0.0
    model = instance.model
    held = instance.layers if layers is None else layers
    batch = max(running, min(waiting, instance.max_sequences))
    step_s = model.profile(instance.gpu).known_step_s(held, batch, min(TYPICAL_CONTEXT, model.max_context))
    tokens = instance.longest_left_tokens(_LOOKED_AT)
    rounds = -(-waiting // batch)
    wait_s = reload_s(instance) if instance.loading else 0.0
    return wait_s + (tokens + rounds * model.expected_output_tokens) * step_s


def save_s(instance: InstanceView) -> float:
    """Seconds to save the KV of the instance's sequences to host memory, at a typical context."""
    used_bytes = instance.running_count * TYPICAL_CONTEXT * instance.model.kv_layer_bytes * instance.layers
    return used_bytes / instance.model.profile(instance.gpu).switch.kv_save_bytes_per_s


def recompute_s(instance: InstanceView) -> float:
    """Seconds to compute again what its sequences have in their KV, at a typical context, with its layers."""
    model = instance.model
    context = min(TYPICAL_CONTEXT, model.max_context)
    return instance.running_count * model.profile(instance.gpu).prefill_s(instance.layers, context)


def reload_s(instance: InstanceView) -> float:
    """Seconds to load the instance as it is once more, engine start included."""
    return instance.model.load_s(instance.gpu, instance.layers)


def return_s(view: View, instance: InstanceView) -> float:
    """Seconds to have the instance back as it is, once it has had to leave the GPU, as the engine can."""
    switch = instance.model.profile(instance.gpu).switch
    whole_s = reload_s(instance)
    if view.resize == "none":
        return whole_s
    spared_s = switch.start_s + switch.reload_fixed_s
    return whole_s - spared_s + (switch.wake_fixed_s if view.resize == "sleep" else 0.0)


def host_relief(view: View, model: ModelView) -> InstanceView | None:
    """The idle instance to stop, used longest ago, when host memory alone keeps the model from every GPU.

    Partly resident instances, and all where the engine can sleep or resize, hold their weights in host memory. Stopping
    one takes time, so its room is there at a later decision. None: something else is in the way.
    """
    candidates: list[InstanceView] = []
    for gpu in view.shortlist():
        idle = [instance for instance in gpu.instances if instance.idle]
        layers = model.layers_within(gpu.available_bytes + sum(instance.gpu_bytes for instance in idle))
        if layers < model.profile(gpu).fewest_layers:
            continue
        if not gpu.lacks_host_bytes(model, layers):
            return None
        idlers = [i for other in gpu.node.gpus for i in other.instances if i.idle and not i.resizing]
        candidates += [i for i in idlers if i not in candidates]
    return min(candidates, key=lambda instance: (instance.last_used_s, instance.number), default=None)
