"""Rates over shared links: fair means max-min, serial means the oldest alone; and transfers that keep their bytes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.core.state.links import Link, Transfer, neighbours, rates


def joined(*wanted: tuple[tuple[Link, ...], float]) -> list[Transfer]:
    """Transfers of 100 bytes over these links with these limits, in order."""
    found = [Transfer(number, 100.0, links, limit, "weights") for number, (links, limit) in enumerate(wanted, start=1)]
    for transfer in found:
        transfer.join()
    return found


def rates_of(transfers: list[Transfer], mode: str = "fair") -> list[float]:
    found = rates(transfers, mode)
    return [found[transfer.number] for transfer in transfers]


def test_alone_it_goes_at_the_slowest_of_its_stages() -> None:
    fast, slow = Link("fast", 10.0), Link("slow", 4.0)
    assert rates_of(joined(((fast, slow), 7.0))) == [4.0]
    assert rates_of(joined(((fast,), 7.0))) == [7.0]


def test_two_share_a_link_and_what_one_cannot_use_goes_to_the_other() -> None:
    link = Link("link", 10.0)
    assert rates_of(joined(((link,), 99.0), ((link,), 99.0))) == [5.0, 5.0]
    other = Link("other", 10.0)
    assert rates_of(joined(((other,), 2.0), ((other,), 99.0), ((other,), 99.0))) == [2.0, 4.0, 4.0]


def test_a_bottleneck_elsewhere_frees_a_share_here() -> None:
    # Three over the cap of 12; the first is held to 1 by its own link, so the others get 5.5 each.
    cap, slow, wide = Link("cap", 12.0), Link("slow", 1.0), Link("wide", 100.0)
    transfers = joined(((cap, slow), 99.0), ((cap, wide), 99.0), ((cap, wide), 99.0))
    assert rates_of(transfers) == pytest.approx([1.0, 5.5, 5.5])


def test_serial_serves_the_oldest_on_all_its_links() -> None:
    cap, left, right = Link("cap", 12.0), Link("left", 10.0), Link("right", 8.0)
    transfers = joined(((left,), 99.0), ((left, cap), 99.0), ((right, cap), 99.0))
    # The second waits for the first on `left`, the third for the second on the cap.
    assert rates_of(transfers, "serial") == [10.0, 0.0, 0.0]
    transfers[0].leave()
    assert rates_of(transfers[1:], "serial") == [10.0, 0.0]
    transfers[1].leave()
    assert rates_of(transfers[2:], "serial") == [8.0]
    assert transfers[2].under_way
    assert not transfers[1].under_way


def test_neighbours_are_those_that_share_a_link_however_indirectly() -> None:
    links = [Link(str(number), 1.0) for number in range(5)]
    transfers = joined(
        ((links[0], links[1]), 1.0), ((links[1], links[2]), 1.0), ((links[2],), 1.0), ((links[3], links[4]), 1.0)
    )
    assert neighbours((links[0],)) == transfers[:3]
    assert neighbours((links[4],)) == transfers[3:]
    assert neighbours(()) == []


@settings(derandomize=True, deadline=None, print_blob=True, max_examples=300)
@given(seed=st.integers(0, 2**32), mode=st.sampled_from(("fair", "serial")))
def test_no_link_is_overfull_and_nobody_is_slower_than_need_be(seed: int, mode: str) -> None:
    draws = random.Random(seed)
    links = [Link(str(number), draws.choice((1.0, 2.5, 1e9, 3e10))) for number in range(draws.randint(1, 5))]
    wanted = [
        (tuple(draws.sample(links, draws.randint(1, len(links)))), draws.choice((0.5, 3.0, 2e9, 1e12)))
        for _ in range(draws.randint(1, 8))
    ]
    transfers = joined(*wanted)
    found = rates(transfers, mode)
    load = {link.name: sum(found[number] for number in link.transfers) for link in links}
    assert all(load[link.name] <= link.bytes_per_s * (1 + 1e-8) for link in links)
    assert all(0 <= found[t.number] <= t.limit for t in transfers)
    for transfer in transfers:
        rate = found[transfer.number]
        if mode == "serial":
            assert rate in (0.0, min(transfer.limit, *(link.bytes_per_s for link in transfer.links)))
            continue
        # Max-min: whoever is below its limit crosses a full link on which nobody is faster.
        held = [
            link
            for link in transfer.links
            if load[link.name] >= link.bytes_per_s * (1 - 1e-6)
            and all(found[other] <= rate * (1 + 1e-6) for other in link.transfers)
        ]
        assert rate >= transfer.limit * (1 - 1e-9) or held, (transfer.number, found)
    assert max(found.values()) > 0, "somebody always moves"
