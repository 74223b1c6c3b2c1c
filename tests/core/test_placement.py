"""Where an instance is and how much of it: the values that a second GPU, or half a layer, would widen."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.core.state.instance import Instance
from sim.core.state.machines import Cluster, Placement
from sim.core.state.residency import Residency
from sim.engine.build_cluster import build_cluster
from sim.profiles.library import Library
from sim.profiles.profile import Weights
from tests.support.scenarios import scenario, synthetic

WEIGHTS = Weights("m", "q", layers=4, layer_bytes=100, head_bytes=7, kv_bytes_per_token_layer=2, max_context=64)


@pytest.fixture
def cluster() -> Cluster:
    return build_cluster(scenario(), Library(Path(synthetic())))


def placed(cluster: Cluster, layers: int = 3) -> Instance:
    model = cluster.models[0]
    return Instance(7, model, Placement((cluster.gpus[0],)), model.residency(layers), 64, 16, 8)


@pytest.mark.parametrize("layers", range(5))
def test_what_is_not_on_the_gpu_is_in_host_memory(layers: int) -> None:
    residency = Residency(WEIGHTS, layers)
    assert residency.share == layers / 4
    assert residency.whole == (layers == 4)
    assert residency.gpu_weight_bytes == 100 * layers + (7 if residency.whole else 0)
    assert residency.gpu_weight_bytes + residency.host_weight_bytes == WEIGHTS.total_bytes
    assert residency.gpu_kv_bytes(30) + residency.host_kv_bytes(30) == 4 * 30
    assert residency.gpu_bytes(30) == residency.gpu_weight_bytes + 30 * layers


def test_a_model_keeps_one_of_each(cluster: Cluster) -> None:
    model = cluster.models[0]
    assert model.residency(2) is model.residency(2)
    assert model.residency(2) == Residency(model.weights, 2) != model.residency(3)


def test_an_instance_asks_its_residency_for_bytes_and_times(cluster: Cluster) -> None:
    instance, model = placed(cluster), cluster.models[0]
    pool_bytes = model.kv_layer_bytes(64 * 16)
    assert instance.gpu_bytes == model.weights.gpu_bytes(3) + 3 * pool_bytes
    assert instance.host_kv_bytes == (model.weights.layers - 3) * pool_bytes
    assert instance.decode_curve(2) is instance.profile.decode_curve(3, 2)
    assert instance.prefill_curve() is instance.profile.prefill_curve(3)


def test_what_happens_to_a_placement_happens_to_its_gpu(cluster: Cluster) -> None:
    instance, gpu = placed(cluster), cluster.gpus[0]
    placement, free_bytes = instance.placement, gpu.available_bytes
    assert (placement.gpus, placement.first, placement.name) == ([gpu], gpu, gpu.name)
    assert placement.node is instance.node is gpu.node
    placement.add(instance)
    placement.wait(instance)
    instance.claim(50)
    assert placement.available_bytes == gpu.available_bytes == free_bytes - 50
    assert placement.is_free_for(instance)
    gpu.down = 1
    assert not placement.is_free_for(instance)
    gpu.down = 0
    placement.take(gpu.capacity_bytes - instance.gpu_bytes + 1, 0.0)
    assert not placement.is_free_for(instance), "a byte is missing"
    placement.take(-1, 0.0)
    assert placement.is_free_for(instance)
    placement.stop_waiting(instance)
    instance.claim(0)
    placement.release_later(9)
    assert (gpu.claimed_bytes, gpu.releasing_bytes) == (0, 9)
    assert placement.growth_bytes == gpu.growth_bytes == instance.gpu_bytes
    placement.remove(instance)
    assert not gpu.instances
    assert not gpu.pending


def test_its_time_is_booked(cluster: Cluster) -> None:
    instance, gpu = placed(cluster), cluster.gpus[0]
    placement = instance.placement
    placement.count_loads(1, 1.0)
    placement.count_loads(-1, 3.0)
    placement.count_transfers(1, 3.0)
    placement.count_transfers(-1, 6.0)
    placement.start_computing(instance, 6.0)
    assert placement.computes(instance)
    gpu.stretch = 1.5
    assert placement.stretch == 1.5
    placement.stop_computing(instance, 10.0)
    assert not placement.computes(instance)
    assert gpu.activity_s == {"computing": 4.0, "loading": 2.0, "transferring": 3.0, "idle": 1.0}


def test_nobody_is_on_several_gpus_yet(cluster: Cluster) -> None:
    with pytest.raises(AssertionError, match="several GPUs"):
        Placement((cluster.gpus[0], cluster.gpus[0]))
