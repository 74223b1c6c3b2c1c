"""The importers of BurstGPT, Vidur's traces and Azure Functions: made-up files, and published ones where at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sim.common.errors import ConfigError
from sim.traces import blocks as trace_blocks
from sim.traces.formats import guess_format
from tests.support.format_files import gaps_cv, imported, made, published, refused, spread

BURST_1 = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BURST_3 = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
PART_1 = BURST_1 + (
    "5,ChatGPT,472,18,490,Conversation log\n5,ChatGPT,472,18,490,Conversation log\n"
    "45,GPT-4,7,0,7,API log\n118,GPT-4,0,0,0,API log\n200,GPT-4,417,276,693,API log\n"
)
PART_3 = BURST_3 + (
    "150.0,1722ac82-0a46,43,GPT-4,906,446,1352,Conversation log\n300.0,,,ChatGPT,36,29,65,API log\n"
    "301.0,1722ac82-0a46,2,GPT-4,900,46,946,Conversation log\n"
)
FUNCTIONS = "app,func,end_timestamp,duration\n"


# --- BurstGPT


def test_burstgpt_keeps_duplicates_and_drops_failures(tmp_path: Path) -> None:
    path = made(tmp_path, PART_1, "BurstGPT_1.csv")
    trace = imported(path, strict=True)
    assert trace.arrival_s.tolist() == [0, 0, 195]
    assert [trace.models[code] for code in trace.model] == ["ChatGPT", "ChatGPT", "GPT-4"]
    assert trace.service_classes == ("default",)
    assert trace.notices == (
        "left out 2 rows without prompt or output tokens; --option failures=keep counts such a number as 1",
    )
    assert trace.extras["log_type"].to_pylist() == ["Conversation log", "Conversation log", "API log"]
    kept = imported(path, "burstgpt", failures="keep", origin="file", service_class="log")
    assert kept.arrival_s.tolist() == [5, 5, 45, 118, 200]
    assert kept.prompt_tokens.tolist() == [472, 472, 7, 1, 417]
    assert kept.output_tokens.tolist() == [18, 18, 1, 1, 276]
    assert [kept.service_classes[code] for code in kept.service_class] == ["conversation"] * 2 + ["api"] * 3
    assert "row 4: column 'Response tokens' is '0'" in refused(path, "burstgpt", failures="refuse")


def test_burstgpt_parts_share_one_clock(tmp_path: Path) -> None:
    files = [made(tmp_path, PART_3, "BurstGPT_3.csv.gz"), made(tmp_path, PART_1, "BurstGPT_1.csv")]
    trace = imported(files, strict=True)
    assert trace.arrival_s.tolist() == [0, 0, 145, 195, 295, 296]
    sessions = [trace.sessions[code] if code >= 0 else None for code in trace.session]
    assert sessions == [None, None, "1722ac82-0a46", None, None, "1722ac82-0a46"]
    assert trace.extras["elapsed_s"].to_pylist() == [None, None, 43, None, None, 2]
    assert trace.think_s is None


@pytest.mark.parametrize(
    ("text", "options", "problem"),
    [
        (BURST_1.replace("Request tokens", "Request_tokens") + "5,GPT-4,1,1,2,API log", {}, "did you mean 'Request_to"),
        (BURST_1 + "5,GPT-4,1,x,2,API log\n", {}, "row 2: column 'Response tokens' is 'x'"),
        (BURST_1 + "5,GPT-4,1,1,2,API log\n-1,GPT-4,1,1,2,API log", {}, "row 3: column 'Timestamp' is '-1'"),
        (BURST_1 + "5,,1,1,2,API log\n", {}, "row 2: column 'Model' is empty; name the model"),
        (BURST_3 + "5.0,,soon,GPT-4,1,1,2,API log\n", {}, "row 2: column 'Elapsed time' is 'soon'; give a number"),
        (BURST_1 + "5,GPT-4,1,1,API log\n", {}, "row 2: has 5 fields, the header has 6"),
        (
            BURST_1.replace(",Log Type", "") + "5,GPT-4,1,1,2\n",
            {"service_class": "log"},
            "column 'Log Type' is missing",
        ),
    ],
)
def test_burstgpt_mistakes(tmp_path: Path, text: str, options: dict[str, str], problem: str) -> None:
    assert problem in refused(made(tmp_path, text, "b.csv"), "burstgpt", **options)


def test_burstgpt_unread_columns_and_odd_elapsed_times(tmp_path: Path) -> None:
    path = made(tmp_path, BURST_3.replace("\n", ",Extra\n") + "5.0,,-1.5,GPT-4,1,1,2,API log,?\n\n", "b.csv")
    trace = imported(path, "burstgpt")
    assert trace.extras["elapsed_s"].to_pylist() == [-1.5]  # carried, not judged
    assert [notice.split(";")[0] for notice in trace.notices] == ["ignored the column 'Extra'", "left out 1 blank row"]
    assert "unknown column 'Extra'" in refused(path, "burstgpt", strict=True)


def test_published_burstgpt_excerpts() -> None:
    first, third = (published(f"format_samples/BurstGPT_{part}.csv.gz") for part in ("1.first30", "3.first4"))
    trace = imported(first, strict=True)
    assert len(trace) == 29
    assert trace.notices[0].startswith("left out 1 row ")
    assert trace.models == ("ChatGPT", "GPT-4")
    assert trace.arrival_s[-1] == 2293 - 5
    both = imported([third, first], "burstgpt", strict=True, origin="file")
    assert len(both) == 33
    assert both.arrival_s[-4:].tolist() == [19440110.0, 19440161.0, 19440192.0, 19440254.0]
    assert len(both.sessions) == 4


# --- Vidur


def test_vidur_arrivals_are_put_on_the_grid_of_their_source(tmp_path: Path) -> None:
    text = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,1,2\n5.8926549999999995,3,4\n7.12345678912345,5,6\n"
    trace = imported(made(tmp_path, text, "v.csv"), strict=True)
    assert trace.arrival_s.tolist() == [0.0, 5.892655, 7.12345678912345]
    assert trace.models == ("vidur",)


def test_vidur_lengths_alone_need_a_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"{row + 1},{row % 5},{0},{1.5}\n" for row in range(4000))
    path = made(tmp_path, "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n" + rows, "lengths.csv")
    assert "give --option rate=" in refused(path, "vidur", zero_tokens="keep")
    assert "--option zero_tokens=drop" in refused(path, "vidur", rate=4)
    with pytest.raises(ConfigError, match="rate=0"):
        imported(path, "vidur", rate="0")
    trace = imported(path, "vidur", strict=True, rate="4", zero_tokens="drop")
    assert len(trace) == 3200
    assert 3200 / trace.arrival_s[-1] == pytest.approx(4, rel=0.1)  # those left out take no arrivals
    assert gaps_cv(trace) == pytest.approx(1, abs=0.1)
    monkeypatch.setattr(trace_blocks, "BLOCK_BYTES", 777)
    assert imported(path, "vidur", rate=4, zero_tokens="drop").digest() == trace.digest()
    assert imported(path, "vidur", rate=4, zero_tokens="drop", seed=1).digest() != trace.digest()
    timed = made(tmp_path, "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,1,2\n", "v.csv")
    assert "leave out --option rate" in refused(timed, "vidur", rate=4)


def test_published_vidur_lengths() -> None:
    path = published("vidur_processed/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv.gz")
    trace = imported(path, strict=True, rate=2.0)
    assert len(trace) == 20_000
    assert spread(trace.prompt_tokens)[:5] == pytest.approx([2582, 2720, 3702, 3934, 4046], abs=0.51)
    assert spread(trace.output_tokens)[:5] == pytest.approx([296, 167, 372, 3293, 4056], abs=0.51)
    assert int((trace.prompt_tokens + trace.output_tokens).max()) <= 4096
    assert trace.notices == ()


# --- Azure Functions


def test_functions_arrive_before_they_end(tmp_path: Path) -> None:
    long = FUNCTIONS + "aaaaaaaa11,ff,10,10\naaaaaaaa22,ff,2,0\naaaaaaaa11,ff,3,0.5\naaaaaaaa11,gg,14,4\n"
    trace = imported(made(tmp_path, long, "f.csv"), strict=False)
    assert trace.arrival_s.tolist() == [0, 2, 2.5, 10]
    assert [trace.models[code] for code in trace.model] == [
        "aaaaaaaa.ff",
        "aaaaaaaa22.ff",  # another function: ids are unique only within their app
        "aaaaaaaa.ff",
        "aaaaaaaa.gg",
    ]
    assert trace.output_tokens.tolist() == [300, 1, 15, 120]
    assert set(trace.prompt_tokens.tolist()) == {512}
    assert trace.extras["duration_s"].to_pylist() == [10, 0, 0.5, 4]
    other = imported(tmp_path / "f.csv", None, output_tokens_per_s="1", prompt_tokens="7")
    assert other.output_tokens.tolist() == [10, 1, 1, 4]
    assert other.prompt_tokens[0] == 7
    assert "took 7 for a prompt and 1 a second" in other.notices[0]


def test_functions_out_of_order_and_before_the_first_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"{row % 7:08x}", f"{row % 3:08x}", 50.0 + row, 60.0 * (row % 11 == 10)) for row in range(400)]
    text = FUNCTIONS + "".join(f"{app},{func},{end},{duration}\n" for app, func, end, duration in rows)
    path = made(tmp_path, text, "f.csv")
    whole = imported(path)
    starts = np.sort([end - duration for *_, end, duration in rows])
    assert np.array_equal(whole.arrival_s, starts - starts[0])
    assert any("out of order" in notice for notice in whole.notices)
    monkeypatch.setattr(trace_blocks, "BLOCK_BYTES", 300)
    assert imported(path).digest() == whole.digest()
    assert "row 12: arrives" in refused(path, "azure-functions-2021", strict=True)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a,f,1,-1", "row 2: column 'duration' is '-1'"),
        ("a,f,x,1", "row 2: column 'end_timestamp' is 'x'"),
        (",f,1,1", "row 2: column 'app' is empty"),
        ("a,f,1e11,1e11", "row 2: column 'duration' makes more than 1,000,000,000 tokens"),
        ("a,f,1", "row 2: has 3 fields"),
    ],
)
def test_functions_mistakes(tmp_path: Path, row: str, problem: str) -> None:
    assert problem in refused(made(tmp_path, FUNCTIONS + row, "f.csv"), "azure-functions-2021")


def test_published_functions() -> None:
    trace = imported(published("azure_functions_2021/Azure2021_200.csv.gz"), strict=True)
    assert len(trace) == 199
    assert trace.arrival_s[-1] == pytest.approx(1200, abs=0.5)
    assert gaps_cv(trace) == pytest.approx(1.86, abs=0.006)
    assert len(trace.models) == 31
    assert len({name.split(".")[0] for name in trace.models}) == 13
    shares = np.sort(np.bincount(trace.model))[::-1] / len(trace)
    assert (100 * shares[:5]).round().tolist() == [16, 16, 11, 8, 8]
    durations = np.array(trace.extras["duration_s"])
    assert np.percentile(durations, (50, 90, 100)) == pytest.approx([1.6, 203, 405], rel=0.03)
    assert (durations == 0).any()
    assert trace.output_tokens.min() == 1


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (PART_1, "burstgpt"),
        (PART_3, "burstgpt"),
        ("arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,1,2\n", "vidur"),
        ("num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n1,2,3,0.5\n", "vidur"),
        (FUNCTIONS + "a,f,1,1\n", "azure-functions-2021"),
    ],
)
def test_each_is_told_from_the_others(tmp_path: Path, text: str, form: str) -> None:
    assert guess_format([made(tmp_path, text, "t.csv.gz")]).name == form
