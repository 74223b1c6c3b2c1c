"""`trace describe` against the statistics that the published traces' own README prints.

Tolerance: half of the last digit printed there, or 0.5 %, whichever is more (their rounding); 5 % for quantiles of
per-window variation, whose definition the README leaves open. Counts are exact.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from sim.traces.describe.trace_statistics import describe_stream
from sim.traces.formats import import_stream
from tests.support.places import SHARED

PUBLISHED = SHARED / "traces"
QUANTILES = ("mean", "p50", "p90", "p99", "max")


@cache
def facts_of(name: str, **options: Any) -> dict[str, Any]:
    path = PUBLISHED / name
    if not path.exists():
        pytest.skip(f"the published trace {name} is not beside this checkout (../shared/traces)")
    return describe_stream(import_stream([path], None, options)).facts()


def near(found: float | None, printed: float, digits: float = 0.0, relative: float = 0.005) -> None:
    """`digits`: the last digit printed, such as 0.01."""
    assert found is not None
    assert abs(found - printed) <= max(digits / 2 * (1 + 1e-9), abs(printed) * relative), (found, printed)


AZURE = "azure_llm_2023/AzureLLMInferenceTrace_{}.csv.gz"
MOONCAKE = "mooncake_fast25/{}.jsonl.gz"
# rows; span s, rate, IAT CV; a minute: mean, max, CV; prompt and output mean, p50, p90, p99, max.
MAIN: dict[str, tuple[int, tuple[float, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]]] = {
    AZURE.format("code"): (
        8819, (3436, 2.567, 13.15), (151, 632, 1.04), (2048, 1469, 5188, 7436, 7437), (27.9, 13, 55, 251, 1899)
    ),
    AZURE.format("conv"): (
        19366, (3502, 5.530, 1.09), (333, 507, 0.22), (1155, 1020, 2734, 4142, 14050), (211, 129, 424, 601, 1000)
    ),
    "vidur_processed/splitwise_code.csv.gz": (
        8819, (3436, 2.567, 13.15), (151, 632, 1.04), (2048, 1469, 5188, 7436, 7437), (27.9, 13, 55, 251, 1899)
    ),
    "vidur_processed/splitwise_conv.csv.gz": (
        19366, (3502, 5.530, 1.09), (333, 507, 0.22), (1155, 1020, 2734, 4142, 14050), (211, 129, 424, 601, 1000)
    ),
    MOONCAKE.format("conversation_trace.first8000"): (
        8000, (2436, 3.284, 2.98), (196, 247, 0.12), (12396, 7216, 27939, 89867, 124847), (347, 356, 605, 1166, 2000)
    ),
    MOONCAKE.format("synthetic_trace"): (
        3993, (1022, 3.907, 1.01), (234, 273, 0.07), (15326, 11587, 38611, 66456, 191378), (149, 69, 389, 768, 893)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MAIN)
def test_rates_and_lengths(name: str) -> None:
    rows, basic, minute, prompt, output = MAIN[name]
    facts = facts_of(name)
    assert facts["rows"] == rows
    for key, printed, digit in zip(("span_s", "rate_per_s", "iat_cv"), basic, (1, 0.001, 0.01), strict=True):
        near(facts[key], printed, digit)
    for key, printed, digit in zip(("mean", "max", "cv"), minute, (1, 0, 0.01), strict=True):
        near(facts["per_minute"][key], printed, digit, 0.0 if key == "max" else 0.005)
    for column, values in (("prompt_tokens", prompt), ("output_tokens", output)):
        for key, printed in zip(QUANTILES, values, strict=True):
            near(facts[column][key], printed, 1)


@pytest.mark.parametrize(
    ("kind", "minute", "five_minutes", "iod", "empty", "correlation", "least"),
    [
        ("code", (1.04, 3.16, 6.43), 9.9, 164, 0.21, 0.00, (3, 6)),
        ("conv", (0.96, 1.02, 1.09), 1.04, 16, 0.0, -0.11, (2, 7)),
    ],
)
def test_azure_burstiness(
    kind: str,
    minute: tuple[float, ...],
    five_minutes: float,
    iod: float,
    empty: float,
    correlation: float,
    least: tuple[int, int],
) -> None:
    facts = facts_of(AZURE.format(kind))
    within = facts["burstiness"]["window_iat_cv"]
    for key, printed in zip(("p10", "p50", "p90"), minute, strict=True):
        near(within["60"][key], printed, relative=0.05)
    near(within["300"]["p50"], five_minutes, relative=0.05)
    near(facts["burstiness"]["per_minute_iod"], iod, 1)
    near(facts["per_minute"]["empty_share"], empty, 0.01)
    near(facts["tokens"]["correlation"], correlation, 0.01)
    assert (facts["prompt_tokens"]["min"], facts["output_tokens"]["min"]) == least
    assert facts["iat"]["zero_share"] == 0  # "no duplicate timestamps"


def test_mooncake_batches_and_prefix_hits() -> None:
    conversation = facts_of(MOONCAKE.format("conversation_trace.first8000"))
    near(conversation["iat"]["zero_share"], 0.90, 0.01)
    near(facts_of(MOONCAKE.format("synthetic_trace"))["prefixes"]["hit_share"], 0.640, 0.001)


def test_ragpulse() -> None:
    facts = facts_of("ragpulse/0_trace.first5500.jsonl.gz")
    assert facts["rows"] == 5500
    assert facts["sessions"]["sessions"] == 3116
    assert facts["sessions"]["turns"]["max"] == 25
    near(facts["rate_per_s"], 0.0060, 0.0001)
    near(facts["span_s"] / 86400, 10.5, 0.1)
    near(facts["iat_cv"], 3.1, 0.1)
    near(facts["day"]["quietest_of_busiest"], 0.04, 0.02)
    for column, printed in (
        ("prompt_tokens", (2956, 3147, 3946, 5373, 7712)),
        ("output_tokens", (271, 219, 541, 858, 2183)),
    ):
        for key, value in zip(QUANTILES, printed, strict=True):
            near(facts[column][key], value, 1)
    assert facts["prompt_tokens"]["min"] == 1052


def test_agentic_coding() -> None:
    facts = facts_of("agentic_coding/traces_73_sessions.tar.gz")
    # The README counts 3,361 requests, two of which have an output of 0, which no request can have.
    assert facts["rows"] in (3359, 3361)
    requests = sorted((row["requests"] for row in facts["models"].values()), reverse=True)
    assert requests == pytest.approx([2051, 557, 412, 156, 102, 83], abs=2)
    for column, printed in (
        ("prompt_tokens", (97279, 89290, 143218, 454800, 775962)),
        ("output_tokens", (457, 223, 953, 3981, 12162)),
    ):
        for key, value in zip(QUANTILES, printed, strict=True):
            near(facts[column][key], value, 1)


def test_azure_functions() -> None:
    facts = facts_of("azure_functions_2021/Azure2021_200.csv.gz")
    assert facts["rows"] == 199
    near(facts["span_s"], 1200, 1)
    near(facts["rate_per_s"], 0.166, 0.001)
    near(facts["iat_cv"], 1.86, 0.01)
    assert len(facts["models"]) == 31
    shares = [row["share"] for row in list(facts["models"].values())[:5]]
    for share, printed in zip(shares, (0.16, 0.16, 0.11, 0.08, 0.08), strict=True):
        near(share, printed, 0.01)


def test_arxiv_lengths() -> None:
    name = "vidur_processed/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv.gz"
    facts = facts_of(name, rate=1.0)  # it has lengths alone: arrivals are drawn
    assert facts["rows"] == 20_000
    for column, printed in (
        ("prompt_tokens", (2582, 2720, 3702, 3934, 4046)),
        ("output_tokens", (296, 167, 372, 3293, 4056)),
    ):
        for key, value in zip(QUANTILES, printed, strict=True):
            near(facts[column][key], value, 1)
