"""llama-swap with its matrix planner: the user says which models may be loaded together, and what each costs to evict.

Source: mostlygeek/llama-swap 0bdb3720, internal/router/matrix.go, matrix_solver.go and internal/matrix. `sets` are
expressions of model names with & (and), | (or), parentheses and +name (another set): "(small | medium) & embedder".
Of all sets with the wanted model the one is taken that evicts running models of the least total cost, the first in
definition order among equals; only who is not in it is stopped, only the wanted model is started. A model in no set
runs alone. A model that runs evicts nobody. Queue, collation, ttl and limit are llama-swap's
(sim/policy/kit/swap_queue.py). Without `sets`, and that is not llama-swap's but the obvious next step: every set that
fits whole into the GPU is allowed, and eviction costs the seconds that a reload would take. Servers and their front
door are as in llama-swap. Left out: aliases for models (vars).
"""

from __future__ import annotations

from collections.abc import Iterator

from policies._parts.llama_swap_sets import combinations_of
from sim import policy
from sim.policy import Action, Field, InstanceView, ModelView, Policy, PolicyParameters, View


class LlamaSwapMatrix(Policy):
    """The allowed set that costs least to reach."""

    tier = "production"
    patient = ("concurrency_limit=1000",)

    class Parameters(PolicyParameters, policy.SwapServerParameters):
        sets: dict[str, str] = Field({}, description="name -> expression of models that may run together; empty: auto")
        evict_costs: dict[str, float] = Field(
            {}, description="model -> cost of evicting it; default 1, or with automatic sets its reload in seconds"
        )

    def start(self, view: View) -> Iterator[Action]:
        asked = self.parameters
        self._sets: list[dict[str, bool]] = []
        for name in asked.sets:
            for chosen in combinations_of("sets", asked.sets, name):
                policy.known_models(view, f"sets.{name}", chosen)
                self._sets.append(dict.fromkeys(chosen, True))
        policy.known_models(view, "evict_costs", asked.evict_costs)
        self._servers = policy.SwapServers(view, asked, self._evicted, lambda _: False)
        yield from ()

    def decide(self, view: View) -> Iterator[Action]:
        return self._servers.decide(view)

    def _evicted(self, box: policy.Box, model: ModelView, loaded: list[InstanceView]) -> list[InstanceView]:
        if not loaded or box.instance(model) is not None:
            return []
        if not self.parameters.sets:
            return self._cheapest_to_fit(box, model, loaded)
        best, least = loaded, float("inf")  # in no set: alone
        for allowed in self._sets:
            if model.name in allowed:
                evicted = [instance for instance in loaded if instance.model.name not in allowed]
                cost = sum([self._cost(instance) for instance in evicted], 0.0)
                if cost < least:
                    best, least = evicted, cost
        return best

    def _cheapest_to_fit(self, box: policy.Box, model: ModelView, loaded: list[InstanceView]) -> list[InstanceView]:
        """On the GPU where it costs least: keep what is worth most beside the model, as a knapsack."""
        best, best_rank = loaded, (0, float("inf"))
        for gpu in box.gpus:
            held = [instance for instance in loaded if instance.gpu is gpu]
            layers = model.layers_within(gpu.capacity_bytes)
            room = gpu.available_bytes - model.gpu_bytes(layers)
            evicted: list[InstanceView] = []
            if room < 0:
                options = [((0.0, 0.0), (float(i.gpu_bytes), self._cost(i))) for i in held]
                keeps = policy.choose_options(options, room + sum(i.gpu_bytes for i in held), quantum=2**24)
                evicted = [i for i, kept in zip(held, keeps, strict=True) if not kept]
            rank = (-layers, sum([self._cost(instance) for instance in evicted], 0.0))
            if rank < best_rank:
                best, best_rank = evicted, rank
        return best

    def _cost(self, instance: InstanceView) -> float:
        default = 1.0 if self.parameters.sets else policy.costs.reload_s(instance)
        return float(self.parameters.evict_costs.get(instance.model.name, default))
