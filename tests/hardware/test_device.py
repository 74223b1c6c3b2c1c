"""sim/hardware/model: memory that is there from the start (resident_pages, device), and a link no quicker than told."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.places import ROOT

pytest.importorskip("torch", reason="torch is not installed: pip install '.[profile]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install '.[profile]'")


import torch

from sim.hardware.model.device import Device, DeviceMemoryError, PacedLink
from sim.hardware.model.resident_pages import ResidentPages

MB = 1 << 20


@pytest.mark.parametrize("seed", range(5))
def test_blocks_never_overlap_and_holes_are_used_again(seed: int) -> None:
    rng = random.Random(seed)
    pages = ResidentPages(64 * MB)
    pages.warm()
    held: list[tuple[torch.Tensor, int]] = []
    for number in range(300):
        if held and rng.random() < 0.5:
            block, mark = held.pop(rng.randrange(len(held)))
            assert bool((block == mark).all()), "somebody else wrote there"
            pages.give_back(block)
        elif sum(-(-len(block) // (2 * MB)) for block, _ in held) < 12:
            block, mark = pages.take(rng.randint(1, 8 * MB)), number % 251
            block.fill_(mark)
            held.append((block, mark))
    for block, mark in held:
        assert bool((block == mark).all())
        pages.give_back(block)
    assert all(segment.free for segment in pages._segments), "all holes are one again"
    assert sum(segment.size for segment in pages._segments) == 64 * MB, "half of the pages was ever held"


def test_a_segment_that_nobody_needs_goes_before_there_are_too_many() -> None:
    pages = ResidentPages(8 * MB)
    small = pages.take(6 * MB)
    pages.give_back(small)
    large = pages.take(8 * MB)
    assert [segment.size for segment in pages._segments] == [8 * MB]
    more = pages.take(2 * MB)  # the budget is somebody else's to count: what is asked for is there
    assert [segment.size for segment in pages._segments] == [8 * MB, 2 * MB]
    pages.give_back(large)
    pages.give_back(more)


def test_the_budget_counts_what_is_held() -> None:
    threads = torch.get_num_threads()
    device = Device("cpu", 10 * MB)
    torch.set_num_threads(threads)
    blocks = [device.allocate(6 * MB), device.allocate(0)]
    with pytest.raises(DeviceMemoryError, match=r"0.01 GB do not fit: 0.01 of 0.01 GB are used"):
        device.allocate(6 * MB)
    device.give_back(blocks)
    assert not blocks
    assert device.used_bytes == 0
    blocks = [device.allocate(10 * MB)]
    device.give_back(blocks)


def test_a_link_is_never_quicker_than_it_is_told_and_copies_all() -> None:
    link = PacedLink(40e6)
    source = torch.arange(3_000_000, dtype=torch.int32)  # 12 MB: 0.3 s, in turns of 4 MB
    target = torch.zeros_like(source)
    begin_s = time.perf_counter()
    link.copy(target, source)
    assert time.perf_counter() - begin_s >= 0.297  # who is late may catch up by 2 ms
    assert bool((target == source).all())
    square = torch.rand(40, 50)
    crossed = torch.zeros(50, 40)
    link.copy(crossed.T, square)
    assert bool((square == crossed.T).all())


def test_nothing_keeps_cores_awake_when_its_process_is_gone() -> None:
    """Even when that was killed."""
    code = (
        "import time\n"
        "from sim.hardware.model.device import Device\n"
        "device = Device('cpu', 1 << 21)\n"
        "with device.awake():\n"
        "    import subprocess\n"
        "    found = subprocess.run(['pgrep', '-P', str(__import__('os').getpid())], capture_output=True, text=True)\n"
        "    print(found.stdout.replace(chr(10), ' '), flush=True)\n"
        "    time.sleep(60)\n"
    )
    if not hasattr(os, "SCHED_IDLE") or not Path("/usr/bin/pgrep").exists():
        pytest.skip("there is no SCHED_IDLE or no pgrep here: nothing spins, or nobody can see it")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    children = [int(each) for each in process.stdout.readline().split()]
    assert children
    process.kill()
    process.wait()
    end_s = time.monotonic() + 30
    while any(_spins(child) for child in children):
        assert time.monotonic() < end_s
        time.sleep(0.05)


def _spins(process: int) -> bool:
    path = Path(f"/proc/{process}/cmdline")
    try:
        return b"SCHED_IDLE" in path.read_bytes()
    except OSError:
        return False
