"""All that a policy may import: views, actions, the base class, and the parts that several policies share.

`interface` is what a policy sees and may ask for, `kit` what many policies are made of, `loader` how they are found.
"""

from __future__ import annotations

import importlib
from typing import Any

from pydantic import Field

from sim.policy.interface.actions import Action, Load, Preempt, Reject, Resize, Route, Stop, Wake
from sim.policy.interface.future import Future
from sim.policy.interface.machines import GpuView, NodeView
from sim.policy.interface.models import InstanceView, ModelView
from sim.policy.interface.policy import Policy, PolicyParameters
from sim.policy.interface.requests import RequestView
from sim.policy.interface.view import View
from sim.policy.kit import costs
from sim.policy.kit.costs import ArrivalRates
from sim.policy.kit.eviction import least_recent_first, longest_waiting_first, lru_place, lru_victims
from sim.policy.kit.fairness import TokenCounters, max_min_shares
from sim.policy.kit.keepalive import KeepAlive, KeepAliveChoice
from sim.policy.kit.knapsack import choose_options
from sim.policy.kit.model_switching import Alarms, bring, fullest_layers, holders, leave, resident, switch_s
from sim.policy.kit.prices import Option, Prices, Queue
from sim.policy.kit.restore_after_fault import Standing
from sim.policy.kit.single_hosts import Box, FrontDoor, IdleTimers, known_models, most_layers
from sim.policy.kit.swap_queue import SwapQueue, SwapServerParameters, SwapServers
from sim.policy.loader import load_policy, policy_names

__all__ = [
    "Action", "Alarms", "ArrivalRates", "Box", "Field", "FrontDoor", "Future", "GpuView", "IdleTimers",
    "InstanceView", "KeepAlive", "KeepAliveChoice", "Load", "ModelView", "NodeView", "Option", "Policy",
    "PolicyParameters", "Preempt", "Prices", "Queue", "Reject", "RequestView", "Resize", "Route", "Standing",
    "Stop", "SwapQueue", "SwapServerParameters", "SwapServers", "TokenCounters", "View", "Wake", "bring",
    "choose_options", "costs", "fullest_layers", "holders", "known_models", "least_recent_first", "leave",
    "load_policy", "longest_waiting_first", "lru_place", "lru_victims", "max_min_shares", "most_layers", "policy_names",
    "resident", "switch_s",
]  # fmt: skip

# Second halves of single policies, which were here before they stood beside their policies: found on demand.
_PARTS = {
    "aegaeon_turns": ("Batch", "Group", "Turns", "TurnWorker"),
    "alpaserve_replicas": ("Placement", "ReplicaQueues", "Traffic", "full_batch_s", "matched", "traffic_seen"),
    "fastserve_queues": ("FeedbackQueues", "Job"),
    "llama_swap_sets": ("combinations_of",),
    "moore_hodgson": ("least_violation",),
    "prism_pressure": ("PressureRoom", "least_pressed", "pressure_moves", "pressure_rooms"),
    "prism_slack": ("SlackQueue",),
    "qlm_queues": ("RequestGroup", "VirtualQueue", "WaitingTimes", "in_time_order"),
}


def __getattr__(name: str) -> Any:
    for part, names in _PARTS.items():
        if name in names:
            return getattr(importlib.import_module(f"policies._parts.{part}"), name)
    raise AttributeError(f"module 'sim.policy' has no attribute '{name}'")
