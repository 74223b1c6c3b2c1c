"""llama-swap in group mode: requests for a model that is ready go straight to it, the others wait for their swap.

Source: mostlygeek/llama-swap 0bdb3720, internal/router/group.go, scheduler/fifo.go and config.example.yaml. Before a
model is loaded its siblings are stopped if its group has `swap`, and the models of all groups that are not persistent
if its group is `exclusive`; models in no group form a default group with both. Nobody busy is interrupted: the swap
waits, and because who is ready serves on, A B C A B C becomes A A B B C C (and C may starve). The scheduler, shared
with llama-swap-matrix, is sim/policy/kit/swap_queue.py. It counts neither bytes nor cost: a model is loaded with the
layers that fit beside whatever its group lets stay (llama.cpp's fit), and is refused if none can. One server a GPU, as
users pin processes with CUDA_VISIBLE_DEVICES, or one a node; a front door sends a request to the server that has its
model, from `spill_requests` of them on (the concurrency limit) also to the next with the fewest. Left out: peers,
preload hooks, health checks and stop timeouts (no process fails or hangs here), the 1 s grid of ttl.
"""

from __future__ import annotations

from collections.abc import Iterator

from sim import policy
from sim.policy import Action, Field, InstanceView, ModelView, Policy, PolicyParameters, View


class SwapGroup(PolicyParameters):
    """Models that are swapped by the same rule."""

    members: list[str] = Field(description="names of models")
    swap: bool = Field(True, description="only one member is loaded at a time")
    exclusive: bool = Field(True, description="loading a member stops the models of all other groups")
    persistent: bool = Field(False, description="other groups never stop its members")


class LlamaSwap(Policy):
    """Groups, collation and ttl."""

    tier = "production"
    patient = ("concurrency_limit=1000",)

    class Parameters(PolicyParameters, policy.SwapServerParameters):
        groups: dict[str, SwapGroup] = Field({}, description="group -> members, swap, exclusive, persistent")

    def start(self, view: View) -> Iterator[Action]:
        asked = self.parameters
        self._group_of: dict[str, SwapGroup] = {}
        for name, group in asked.groups.items():
            for member in policy.known_models(view, f"groups.{name}.members", group.members):
                if member in self._group_of:
                    raise ValueError(f"groups.{name}.members: '{member}' is in another group already")
                self._group_of[member] = group
        default = SwapGroup(members=[])
        for model in view.models:
            self._group_of.setdefault(model.name, default)
        self._servers = policy.SwapServers(view, asked, self._evicted, self._stays)
        yield from ()

    def decide(self, view: View) -> Iterator[Action]:
        return self._servers.decide(view)

    def _evicted(self, box: policy.Box, model: ModelView, loaded: list[InstanceView]) -> list[InstanceView]:
        """Siblings if the group swaps; who is in other groups, not persistent, if it is exclusive."""
        group = self._group_of[model.name]
        evicted = []
        for instance in loaded:
            other = self._group_of[instance.model.name]
            if group.swap if other is group else group.exclusive and not other.persistent:
                evicted.append(instance)
        return evicted

    def _stays(self, instance: InstanceView) -> bool:
        return self._group_of[instance.model.name].persistent
