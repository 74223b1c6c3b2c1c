"""The ServeGen importer: small pools whose requests are known in advance, and the published pools where at hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.common.errors import ConfigError, TraceError
from sim.common.rng import stream as random_stream
from sim.traces.formats import import_stream
from sim.traces.formats.servegen import _arrivals, _weibull_shape
from sim.traces.formats.servegen_pool import read_pools
from sim.traces.stream import gather
from sim.traces.trace import Trace
from tests.support.format_cases import packed
from tests.support.places import SHARED

PUBLISHED = SHARED / "traces" / "servegen"
LENGTHS = {"input_tokens": "{5: 0.25, 7: 0.75}", "output_tokens": "{3: 1.0}"}


def trace_csv(*windows: tuple[float, float, str], step_s: float = 600.0) -> str:
    """Rows of (rate, CV, law), one for each window."""
    return "".join(f"{place * step_s:g},{rate},{cv},{law},1,1\r\n" for place, (rate, cv, law) in enumerate(windows))


def pool(path: Path, clients: dict[int, tuple[str, Any]], name: str = "m-test") -> Path:
    """A folder with a pool: for each client the text of its windows, and its lengths by start, or None."""
    folder = path / "data" / "language" / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, (text, lengths) in clients.items():
        (folder / f"chunk-{number}-trace.csv").write_text(text)
        if lengths is not None:
            (folder / f"chunk-{number}-dataset.json").write_text(json.dumps(lengths))
    return path


def read(*paths: Path, **options: Any) -> tuple[Trace, list[str]]:
    stream = import_stream(list(paths), "servegen", options)
    trace = gather(stream)
    return trace, stream.notices


def counts(trace: Trace, window_s: float = 600.0) -> list[int]:
    return [int(number) for number in np.bincount((trace.arrival_s // window_s).astype(int))]


def test_every_window_has_its_rate_and_nothing_else(tmp_path: Path) -> None:
    windows = trace_csv((0.5, 2.0, "Gamma"), (0, 0, ""), (0.1, 3.0, "Weibull"), (1.0, 0.0, ""), (0.2, 0.0, "Gamma"))
    path = pool(tmp_path, {4: (windows, {"0": LENGTHS})})
    trace, notices = read(path)
    assert counts(trace) == [300, 0, 60, 600, 120]
    assert trace.models == ("m-test",)
    assert trace.extras["client"].to_pylist() == [4] * 1080
    assert set(trace.prompt_tokens.tolist()) == {5, 7}
    assert (trace.prompt_tokens == 7).mean() == pytest.approx(0.75, abs=0.05)
    assert trace.output_tokens.tolist() == [3] * 1080
    assert notices == [
        "m-test: 1 of 5 windows without any request",
        "drew requests at a mean of 0.36/s where 0.36/s were measured (--option rate, scale)",
    ]
    even = np.diff(trace.arrival_s[trace.arrival_s >= 2400])
    assert even == pytest.approx(np.full(119, 5.0))  # a CV of 0: equal gaps


def test_thinning_is_exact(tmp_path: Path) -> None:
    windows = trace_csv(*[(0.5, 2.0, "Gamma")] * 400)
    path = pool(tmp_path, {0: (windows, {"0": LENGTHS})})
    trace, _ = read(path, scale="0.011")  # 3.3 requests a window
    assert sorted(set(counts(trace))) == [3, 4]
    assert len(trace) == pytest.approx(400 * 3.3, abs=4 * math.sqrt(400 * 0.3 * 0.7))
    by_rate, _ = read(path, rate="0.0055")
    assert by_rate.digest() == trace.digest()
    faster, _ = read(path, scale="3", duration_s="600")
    assert len(faster) == 900
    rare, _ = read(path, scale="0.0001", seed="3")
    assert len(rare) == pytest.approx(12, abs=14)


@pytest.mark.parametrize("law", ["Gamma", "Weibull", "", "Exponential"])
@pytest.mark.parametrize("cv", [0.3, 1.0, 2.5])
def test_gaps_have_the_law_and_the_cv(law: str, cv: float) -> None:
    count = 40_000
    gaps = np.diff(_arrivals(law, cv, count, random_stream(1, "test")))
    expected = cv if law in ("Gamma", "Weibull") else 1.0
    found = gaps.std() / gaps.mean()
    assert found == pytest.approx(expected, rel=0.04)
    # What tells the laws apart: the share of gaps below a tenth of the mean.
    if law == "Weibull":
        shape = _weibull_shape(cv)
        share = 1 - math.exp(-((0.1 * math.gamma(1 + 1 / shape)) ** shape))
    elif law == "Gamma":
        from scipy.stats import gamma  # noqa: PLC0415

        share = float(gamma.cdf(0.1, 1 / cv**2, scale=cv**2))
    else:
        share = 1 - math.exp(-0.1)
    assert float((gaps < 0.1 * gaps.mean()).mean()) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("cv", [1e-4, 0.01, 0.5, 1.0, 8.6, 150.0])
def test_the_shape_of_a_weibull_law_has_the_cv(cv: float) -> None:
    shape = _weibull_shape(cv)
    square = math.exp(math.lgamma(1 + 2 / shape) - 2 * math.lgamma(1 + 1 / shape)) - 1
    assert math.sqrt(square) == pytest.approx(cv, rel=2e-3)


@pytest.mark.parametrize("law", ["Gamma", "Weibull"])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_few_requests_of_a_bursty_client_stand_anywhere_in_the_window(law: str, count: int) -> None:
    draw = random_stream(5, "test")
    drawn = np.concatenate([_arrivals(law, 1000.0, count, draw) for _ in range(3000)])
    assert ((drawn >= 0) & (drawn < 1)).all()
    share = np.histogram(drawn, bins=10, range=(0, 1))[0] / len(drawn)
    assert share == pytest.approx(np.full(10, 0.1), abs=0.035)


def test_parts_of_a_pool_draw_the_same_as_the_whole(tmp_path: Path) -> None:
    clients = {number: (trace_csv(*[(0.1 * (number + 1), 1.5, "Gamma")] * 6), {"0": LENGTHS}) for number in range(4)}
    path = pool(tmp_path, clients)
    whole, _ = read(path)
    top, _ = read(path, clients="2")
    assert sorted(set(top.extras["client"].to_pylist())) == [2, 3]
    own = np.array(whole.extras["client"].to_pylist()) >= 2
    assert whole.arrival_s[own].tolist() == top.arrival_s.tolist()
    assert whole.prompt_tokens[own].tolist() == top.prompt_tokens.tolist()
    named, _ = read(path, model_per="client")
    assert named.models == ("m-test/0", "m-test/1", "m-test/2", "m-test/3")
    assert named.arrival_s.tolist() == whole.arrival_s.tolist()
    assert read(path)[0].digest() == whole.digest() != read(path, seed="1")[0].digest()


def test_a_span_cuts_windows_and_counts_from_its_start(tmp_path: Path) -> None:
    windows = trace_csv((0, 0, ""), (1.0, 0.0, "Gamma"), (2.0, 0.0, "Gamma"))
    path = pool(tmp_path, {0: (windows, {"0": LENGTHS})})
    trace, _ = read(path, start_s="900", duration_s="600")
    assert len(trace) == pytest.approx(300 + 600, abs=2)
    assert 0 <= trace.arrival_s[0] < 1.01
    assert 599 < trace.arrival_s[-1] < 600
    scaled, _ = read(path, start_s="900", duration_s="600", rate="0.5")
    assert len(scaled) == pytest.approx(300, abs=3)
    for options in ({"start_s": "1800"}, {"duration_s": "1801"}, {"start_s": "1e11"}):
        with pytest.raises(ConfigError, match=r"ends at 1,800 s; lower start_s or duration_s"):
            read(path, **options)
    with pytest.raises(ConfigError, match="no client sends anything from 0 to 600 s"):
        read(path, duration_s="600")
    with pytest.raises(ConfigError, match=r"1\.2e\+09 requests in one window; lower --option rate or scale"):
        read(path, scale="1000000")


def test_a_later_week_starts_at_its_own_first_window(tmp_path: Path) -> None:
    later = "".join(f"{604_800 + 600 * place},0.5,1,Gamma,1,1\n" for place in range(6))
    path = pool(tmp_path, {0: (later, {"604800": LENGTHS})})
    trace, notices = read(path, rate="0.25")
    assert len(trace) == pytest.approx(900, abs=6)
    assert trace.arrival_s[0] < 60
    assert notices == ["drew requests at a mean of 0.25/s where 0.5/s were measured (--option rate, scale)"]
    assert len(read(path, start_s="606600")[0]) == pytest.approx(900, abs=3)


def test_lengths_follow_the_hours_and_are_borrowed_where_there_are_none(tmp_path: Path) -> None:
    day = trace_csv(*[(0.05, 1.0, "Gamma")] * 144)
    late = dict.fromkeys(LENGTHS, "{9: 1.0}")
    own = {"0": LENGTHS, "21600": dict.fromkeys(LENGTHS, "{}"), "43200": late}
    idle = {"0": dict.fromkeys(LENGTHS, " {} ")}
    path = pool(tmp_path, {0: (day, own), 1: (day, None), 2: (day, idle)})
    trace, notices = read(path)
    assert notices == [
        "m-test: 2 of 3 clients (67% of the rate) have no lengths of their own; "
        "each window draws those of another client of the pool",
        "drew requests at a mean of 0.15/s where 0.15/s were measured (--option rate, scale)",
        f"{3 * 72} windows with traffic but no lengths: took the nearest in time",
    ]
    morning, noon = trace.arrival_s < 21_600, (trace.arrival_s >= 43_200) & (trace.arrival_s < 64_800)
    assert set(trace.prompt_tokens[morning].tolist()) == {5, 7}
    assert set(trace.prompt_tokens[noon].tolist()) == {9}
    # Between: those of the morning until half of the time to noon has passed.
    assert set(trace.prompt_tokens[(trace.arrival_s >= 21_600) & (trace.arrival_s < 32_400)].tolist()) == {5, 7}
    assert set(trace.prompt_tokens[(trace.arrival_s >= 33_000) & (trace.arrival_s < 43_200)].tolist()) == {9}


def test_borrowed_lengths_are_spread_as_those_that_are_known(tmp_path: Path) -> None:
    """The client with most of the rate has no lengths: what it borrows must not hang on one draw."""
    names = ("input_tokens", "output_tokens")
    short, long = ({"0": dict.fromkeys(names, f"{{{tokens}: 1.0}}")} for tokens in (10, 1000))
    rising = trace_csv(*[(0.03 if place < 72 else 0.09, 1.0, "Gamma") for place in range(144)])
    clients = {0: (trace_csv(*[(0.5, 1.0, "Gamma")] * 144), None), 1: (rising, short)}
    clients[2] = (trace_csv(*[(0.03, 1.0, "Gamma")] * 144), long)
    trace, _ = read(pool(tmp_path, clients), seed="3")
    borrowed = np.array(trace.extras["client"].to_pylist()) == 0
    assert (trace.prompt_tokens == trace.output_tokens)[borrowed].all()  # of one client
    for half, share in ((trace.arrival_s < 43_200, 0.5), (trace.arrival_s >= 43_200, 0.75)):
        assert (trace.prompt_tokens[borrowed & half] == 10).mean() == pytest.approx(share, abs=0.15)


def test_images_count_into_the_prompt_and_reasoning_is_told(tmp_path: Path) -> None:
    windows = trace_csv(*[(2.0, 1.0, "Gamma")] * 3)
    seen = {"text_tokens": "{10: 1.0}", "output_tokens": "{100: 1.0}", "image_tokens": "{50: 0.5, 70: 0.5}"}
    seen |= {"image_count": "{0: 0.5, 1: 0.25, 3: 0.25}", "audio_tokens": "{0: 1.0}", "audio_count": "{0: 1.0}"}
    thought = LENGTHS | {"output_tokens": "{10: 1.0}", "reason_ratio": "{0.0: 0.5, 0.4: 0.5}"}
    images = pool(tmp_path / "a", {0: (windows, {"0": seen})}, "mm")
    trace, notices = read(images, pool(tmp_path / "b", {0: (windows, {"0": thought})}, "r1"))
    assert trace.models == ("mm", "r1")
    columns = {name: column.to_pylist() for name, column in trace.extras.items()}
    assert list(columns) == ["client", "images", "image_tokens", "reason_tokens"]
    for row, (model, prompt) in enumerate(zip(trace.model.tolist(), trace.prompt_tokens.tolist(), strict=True)):
        number, tokens, reasons = (columns[name][row] for name in ("images", "image_tokens", "reason_tokens"))
        if model == 0:
            assert prompt == 10 + tokens
            assert tokens in {0: (0,), 1: (50, 70), 3: (150, 170, 190, 210)}[number]
            assert reasons is None
        else:
            assert (number, tokens) == (None, None)
            assert reasons in (0, 4)
    assert len(notices) == 1
    assert np.mean([number for number in columns["images"] if number is not None]) == pytest.approx(1.0, abs=0.1)


def test_answers_without_tokens_are_counted_as_one_or_left_out(tmp_path: Path) -> None:
    windows = trace_csv(*[(1.0, 1.0, "Gamma")] * 4)
    path = pool(tmp_path, {0: (windows, {"0": LENGTHS | {"output_tokens": "{0: 0.5, 3: 0.5}"}})})
    trace, notices = read(path)
    ones = int((trace.output_tokens == 1).sum())
    assert len(trace) == 2400
    assert ones == pytest.approx(1200, abs=120)
    assert notices[-1] == f"kept {ones:,} rows without prompt or output tokens, counted as 1"
    fewer, notices = read(path, zero_tokens="drop")
    assert len(fewer) == 2400 - ones
    assert notices[-1].startswith(f"left out {ones:,} rows without prompt or output tokens")


def test_pools_of_different_span_and_windows_are_merged_in_order(tmp_path: Path) -> None:
    first = pool(tmp_path / "a", {0: (trace_csv(*[(1.0, 2.0, "Gamma")] * 300), {"0": LENGTHS})}, "long")
    windows = trace_csv(*[(3.0, 2.0, "Weibull")] * 100, step_s=250.0)
    second = pool(tmp_path / "b", {0: (windows, {"0": LENGTHS})}, "short")
    trace, notices = read(first, second)
    assert [int((trace.model == code).sum()) for code in (0, 1)] == [180_000, 75_000]
    assert set(np.bincount((trace.arrival_s[trace.model == 1] // 250).astype(int)).tolist()) == {750}
    assert notices[0] == "short: has no data after 25,000 s, the others have"


@pytest.mark.parametrize(
    ("csv", "dataset", "problem"),
    [
        ("0,1,1,Gamma,1\n", LENGTHS, "chunk-0-trace.csv: row 1: has 5 fields; there are 6"),
        ("0,1,1,Gamma,1,1\n0,1,1,Gamma,1,1\n", LENGTHS, "row 2: starts at 0 s, not after the row above it"),
        ("0,-1,1,Gamma,1,1\n", LENGTHS, "row 1: rate is '-1'; give a number from 0"),
        ("0,nan,1,Gamma,1,1\n", LENGTHS, "row 1: rate is 'nan'"),
        ("0,1,inf,Gamma,1,1\n", LENGTHS, "row 1: CV is 'inf'"),
        ("0,1,1,Gama,1,1\n", LENGTHS, "row 1: law is 'Gama'; did you mean 'Gamma'?"),
        ("0,1,1,Gamma,x,1\n", LENGTHS, "row 1: shape is 'x'"),
        ("\n", LENGTHS, "chunk-0-trace.csv: the file is empty"),
        (None, {"output_tokens": "{3: 1.0}"}, "window 0: field 'input_tokens' is missing"),
        (None, {"input_tokens": "{3: 1.0}"}, "window 0: field 'output_tokens' is missing"),
        (None, LENGTHS | {"output_tokens": {"3": 1.0}}, "field 'output_tokens' is {\"3\": 1.0}; give a text"),
        (None, LENGTHS | {"output_tokens": "{3: 1.0"}, "field 'output_tokens' is '{3: 1.0'; give a text"),
        (None, LENGTHS | {"output_tokens": "{3: x}"}, "field 'output_tokens' is '{3: x}'; its keys are whole numbers"),
        (None, LENGTHS | {"output_tokens": "{3: 0.4}"}, "its probabilities are at least 0 and add up to 1"),
        (None, LENGTHS | {"output_tokens": "{3: -1, 4: 2}"}, "its probabilities are at least 0 and add up to 1"),
        (None, LENGTHS | {"output_tokens": "{-3: 1.0}"}, "its keys are whole numbers from 0 to 1,000,000,000"),
        (None, LENGTHS | {"output_tokens": "{1000000000000: 1.0}"}, "its keys are whole numbers from 0 to"),
        (None, LENGTHS | {"output_tokens": "{2.5: 1.0}"}, "its keys are whole numbers from 0 to"),
        (None, LENGTHS | {"reason_ratio": "{1.5: 1.0}"}, "its keys are numbers from 0 to 1"),
        (None, LENGTHS | {"output_tokens": "{}"}, "field 'output_tokens' is '{}'; give a text"),
        (None, {}, "window 0: field 'input_tokens' is missing"),
    ],
)
def test_mistakes_name_file_row_and_field(tmp_path: Path, csv: str | None, dataset: Any, problem: str) -> None:
    path = pool(tmp_path / "p", {0: (csv if csv is not None else "0,1,1,Gamma,1,1\n", {"0": dataset})})
    with pytest.raises(TraceError) as caught:
        read(path)
    assert problem in str(caught.value).replace("dataset.json: field '0': ", "dataset.json: window 0: ")
    assert str(tmp_path / "p") in str(caught.value)


def test_pools_that_are_not_whole(tmp_path: Path) -> None:
    good = ("0,1,1,Gamma,1,1\n", {"0": LENGTHS})
    with pytest.raises(TraceError, match=r"m-test has no chunk-\.\.\.-dataset\.json with lengths"):
        read(pool(tmp_path / "a", {0: (good[0], None)}))
    path = pool(tmp_path / "b", {0: good})
    with pytest.raises(TraceError, match="client 0 of m-test is given twice"):
        read(path, path)
    (path / "data" / "language" / "m-test" / "chunk-7-dataset.json").write_text(json.dumps({"0": LENGTHS}))
    with pytest.raises(TraceError, match=r"there is no chunk-7-trace\.csv beside it"):
        read(path)
    with pytest.raises(TraceError, match="no file of this format is inside"):
        read(packed(tmp_path / "x.tar.gz", {"README.md": "hello"}))
    odd = pool(tmp_path / "c", {0: (good[0], {"0": LENGTHS | {"color": "{1: 1.0}"}})})
    assert read(odd)[1][0] == "m-test: ignored the field 'color'"
    with pytest.raises(TraceError, match="unknown field 'color'"):
        read(odd, strict="true")
    inside = odd / "data" / "language" / "m-test"
    assert read(inside)[0].models == ("m-test",)
    files = [inside / "chunk-0-trace.csv", inside / "chunk-0-dataset.json"]
    assert read(*files)[0].digest() == read(inside)[0].digest()


# As in the data's own README: clients, windows, mean and largest total rate, silent windows, shares of the first and of
# the first ten clients; prompts and outputs mean, p50, p90, p99, and how far a sample of some ten thousand may be off.
POOLS = {
    "language_m-large.week1": (162, 1008, 209.6, 583.0, 0, 17, 70),
    "language_m-mid.week1": (109, 1008, 1603.7, 2742.8, 21, 46, 77),
    "language_m-small.week1": (43, 1008, 1063.0, 2272.6, 0, 33, 92),
    "multimodal_mm-image.day1": (35, 144, 9.47, 13.29, 0, 14, 83),
    "reason_deepseek-r1.day1": (73, 144, 16.01, 42.52, 0, 29, 68),
}


def published(name: str) -> Path:
    path = PUBLISHED / f"{name}.tar.gz"
    if not path.is_file():
        pytest.skip(f"the published pool {name} is not beside this checkout (../shared/traces)")
    return path


@pytest.mark.parametrize("name", POOLS)
def test_published_pools(name: str) -> None:
    clients, windows, mean, largest, silent, first, ten = POOLS[name]
    [found] = read_pools([published(name)], strict=True)
    assert len(found.clients) == clients
    total = sum((client.rate for client in found.clients.values()), np.zeros(windows))
    assert total.mean() == pytest.approx(mean, abs=0.06)
    assert total.max() == pytest.approx(largest, abs=0.06)
    assert int((total == 0).sum()) == silent
    shares = sorted((float(client.rate.mean()) / total.mean() for client in found.clients.values()), reverse=True)
    assert (round(100 * shares[0]), round(100 * sum(shares[:10]))) == (first, ten)


# As in the same README, weighted by rate: prompts, then outputs; each mean, p50, p90, p99.
LENGTHS_OF = {
    "language_m-large.week1": ((907, 635, 2379, 3455), (174, 52, 472, 725)),
    "language_m-mid.week1": ((291, 166, 658, 2792), (44, 28, 91, 266)),
    "language_m-small.week1": ((113, 43, 356, 1345), (16, 3, 48, 140)),
}


@pytest.mark.parametrize("name", LENGTHS_OF)
def test_published_lengths_of_pools_where_most_clients_have_none(name: str) -> None:
    """Within 30 %: a third to half of the rate borrows, and borrows by the hour, which that README leaves out."""
    trace, _ = read(published(name), rate="0.2")
    for column, printed in zip((trace.prompt_tokens, trace.output_tokens), LENGTHS_OF[name], strict=True):
        found = (column.mean(), *np.percentile(column, (50, 90, 99)))
        assert found == pytest.approx(printed, rel=0.3)


def test_published_day_drawn_whole_has_the_published_rates_and_lengths() -> None:
    trace, _ = read(published("multimodal_mm-image.day1"))
    [found] = read_pools([published("multimodal_mm-image.day1")], strict=True)
    expected = sum(np.rint(client.rate * 600) for client in found.clients.values())
    assert counts(trace) == expected.astype(int).tolist()
    texts = trace.prompt_tokens - np.array(trace.extras["image_tokens"].to_pylist())
    assert texts.mean() == pytest.approx(572, rel=0.01)
    assert np.percentile(texts, (50, 90, 99)) == pytest.approx([106, 1914, 3064], rel=0.02)
    assert trace.output_tokens.mean() == pytest.approx(130, rel=0.01)
    assert np.percentile(trace.output_tokens, (50, 90, 99)) == pytest.approx([100, 264, 587], rel=0.01)
    ratios = []
    for client in found.clients.values():
        own = trace.arrival_s[np.array(trace.extras["client"].to_pylist()) == client.number]
        for start_s, rate, cv in zip(client.start_s, client.rate, client.cv, strict=True):
            gaps = np.diff(own[(own >= start_s) & (own < start_s + 600)])
            if rate * 600 >= 200 and cv < 3:
                ratios.append(gaps.std() / gaps.mean() / cv)
    assert len(ratios) > 500
    assert np.median(ratios) == pytest.approx(1.0, abs=0.03)


def test_published_reasoning_day_thinned_keeps_its_lengths() -> None:
    trace, _ = read(published("reason_deepseek-r1.day1"), rate="1.5")
    assert len(trace) == pytest.approx(1.5 * 86_400, rel=0.002)
    assert trace.prompt_tokens.mean() == pytest.approx(1268, rel=0.02)
    assert np.percentile(trace.prompt_tokens, (50, 90)) == pytest.approx([208, 2092], rel=0.03)
    assert trace.output_tokens.mean() == pytest.approx(1527, rel=0.01)
    assert np.percentile(trace.output_tokens, (50, 90, 99)) == pytest.approx([792, 3432, 12_607], rel=0.02)
    reasons = np.array(trace.extras["reason_tokens"].to_pylist())
    assert (reasons <= trace.output_tokens).all()
    assert 0.3 < reasons.sum() / trace.output_tokens.sum() < 0.9


def test_published_week_of_the_largest_pool_streams() -> None:
    stream = import_stream([published("language_m-mid.week1")], None, {"start_s": "300000", "duration_s": "1200"})
    sizes = [len(chunk) for chunk in stream.chunks]
    assert sum(sizes) > 1_000_000
    assert max(sizes) <= 2 * 65_536
