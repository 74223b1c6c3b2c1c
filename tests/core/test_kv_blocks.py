"""The pool of KV blocks against counting: what sequences hold, how they grow, and when the pool is full."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sim.core.state.kv_blocks import KvBlocks, sequence_blocks


@given(
    st.integers(1, 20),
    st.lists(st.integers(1, 100), min_size=1, max_size=8),
    st.integers(0, 200),
    st.integers(0, 1000),
)
def test_steps_until_full_against_counting(size: int, contexts: list[int], free_blocks: int, iteration: int) -> None:
    """Each sequence grows by one token an iteration; count blocks until the pool is too small for the next one."""
    pool = free_blocks + sum(sequence_blocks(context, size) for context in contexts)
    blocks = KvBlocks(pool, size)
    for context in contexts:
        blocks.hold(context)
        blocks.begin_decoding(context, iteration)
    steps = 0
    while sum(sequence_blocks(context + steps, size) for context in contexts) <= pool:
        steps += 1
    assert blocks.free == free_blocks
    assert blocks.steps_until_full(iteration) == steps >= 1


@given(st.integers(1, 10_000), st.integers(1, 4096))
def test_sequence_blocks_hold_the_context_and_the_token_to_come(context: int, size: int) -> None:
    blocks = sequence_blocks(context, size)
    assert (blocks - 1) * size < context + 1 <= blocks * size


@given(
    st.integers(1, 20),
    st.lists(st.integers(1, 100), min_size=1, max_size=8),
    st.integers(0, 1000),
    st.integers(0, 100),
)
def test_growth_against_counting(size: int, contexts: list[int], iteration: int, more: int) -> None:
    """`after` and `crossing` against each sequence's own blocks; one that leaves gives back what it holds then."""
    blocks = KvBlocks(10_000, size)
    for context in contexts:
        blocks.hold(context)
        blocks.begin_decoding(context, iteration)
    held = [sum(sequence_blocks(context + steps, size) for context in contexts) for steps in range(more + 2)]
    assert blocks.used == held[0]
    assert blocks.crossing(iteration) == held[1] - held[0]
    assert blocks.after(iteration, more) == held[more]
    blocks.used = blocks.after(iteration, more)
    for context in contexts:
        blocks.end_decoding(context + more, iteration + more)
        blocks.release(context + more)
    assert (blocks.used, blocks.decoding, sum(blocks.phases)) == (0, 0, 0)
