"""Small good files, and how they are spoilt: by value, by row and by byte. No program; fuzz_parsers.py calls it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 10**9, 10**12, 10**18, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e300),
    *(5e-324, float("nan"), float("inf"), float("-inf"), "", " ", "no", "null", "nan", "inf", "-1", "1e400", "1_000"),
    *("0x10", "1:30", "017", "\uff11\uff12", "9" * 5000, "a" * 20_000, "\u202egnp", "e\u0301", "\U0001f4a5", "a\nb"),
    *("../../x", "/dev/zero", "/", ".", "C:\\x", "CON", "-rf", "x.py", "<script>", "{{7*7}}", "=1+1", "9999-12-31"),
    *("9999-12-31 23:59:59.999999", "2023-02-30", "2023-11-16T25:00:00Z", [], {}, [[]], [1], {"a": 1}, {"name": 1}),
    *([None], ["x", "x"], {"law": "uniform"}, {"kind": "trace"}, "[" * 200, '"', "'", ",", ";", "\t", "all", "each"),
)


@dataclass(frozen=True)
class Good:
    """A file that a parser takes: its name, whose ending says what it is, and its bytes."""

    name: str
    data: bytes


# --- Every change is told by numbers, so that hypothesis can make it smaller.

Change = tuple[int, int, int]  # what, where, with which value


def spoilt(good: Good, changes: list[Change]) -> bytes:
    """The file with these changes."""
    data = good.data
    for what, where, value in changes:
        ways = _ways(good.name)
        data = ways[what % len(ways)](data, where, value)
    return data


def _ways(name: str) -> list[Callable[[bytes, int, int], bytes]]:
    plain = name.removesuffix(".gz")
    by_bytes = [_cut, _flipped, _inserted, _doubled, _removed]
    if plain.endswith((".yaml", ".json")):
        return [*[_tree_changed] * 8, *by_bytes]
    if plain.endswith(".jsonl"):
        return [*[_line_changed] * 8, *by_bytes]
    if plain.endswith(".csv"):
        return [*[_cell_changed] * 6, _row_changed, _row_changed, *by_bytes]
    return list(by_bytes)


def _cut(data: bytes, where: int, _: int) -> bytes:
    return data[: where % (len(data) + 1)]


def _flipped(data: bytes, where: int, value: int) -> bytes:
    at = where % (len(data) + 1)
    return data[:at] + bytes([value % 256]) + data[at + 1 :]


_TOKENS = (
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n", b'"', b",", b"\t", b"&a [*a]", b"!!python/object:x {}", b"<<: "),
    *(b"{", b"}", b"[", b"]", b"- ", b": ", b"*a", b"\xe2\x80\xae", b"nan", b"1e999", b"PAR1", b"\x1f\x8b", b"---\n"),
)


def _inserted(data: bytes, where: int, value: int) -> bytes:
    at = where % (len(data) + 1)
    return data[:at] + _TOKENS[value % len(_TOKENS)] + data[at:]


def _doubled(data: bytes, where: int, value: int) -> bytes:
    at = where % (len(data) + 1)
    return data[:at] + data[at : at + 1 + value % 200] * 2 + data[at:]


def _removed(data: bytes, where: int, value: int) -> bytes:
    at = where % (len(data) + 1)
    return data[:at] + data[at + 1 + value % 60 :]


def _places(item: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of every value within a value."""
    pairs = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
    for key, inner in list(pairs):
        yield item, key
        yield from _places(inner)


def _change_somewhere(item: Any, where: int, value: int) -> Any:
    places = list(_places(item))
    if not places:
        return VALUES[value % len(VALUES)]
    holder, key = places[where % len(places)]
    kind = (where // len(places)) % 6
    if kind == 0 and isinstance(holder, dict):  # another name
        holder[str(VALUES[value % len(VALUES)])] = holder.pop(key)
    elif kind == 1:
        del holder[key]
    elif kind == 2:  # what stands elsewhere
        other, name = places[value % len(places)]
        holder[key] = json.loads(json.dumps(other[name] if not isinstance(holder, type(other[name])) else None))
    elif kind == 3 and isinstance(holder, dict):
        holder[str(key)[:-1] or "x"] = VALUES[value % len(VALUES)]
    else:
        holder[key] = VALUES[value % len(VALUES)]
    return item


def _tree_changed(data: bytes, where: int, value: int) -> bytes:
    try:
        item = yaml.load(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        changed = _change_somewhere(item, where, value)
        text = json.dumps(changed) if data.lstrip().startswith((b"{", b"[")) else yaml.safe_dump(changed)
        return text.encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return data


def _line_changed(data: bytes, where: int, value: int) -> bytes:
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    at = where % len(lines)
    try:
        lines[at] = json.dumps(_change_somewhere(json.loads(lines[at]), where // len(lines), value)).encode() + b"\n"
    except (ValueError, TypeError, RecursionError):
        return data
    return b"".join(lines)


def _cell_changed(data: bytes, where: int, value: int) -> bytes:
    rows = data.decode("utf-8", "surrogateescape").split("\n")
    at = where % len(rows)
    cells = rows[at].split(",")
    given = VALUES[value % len(VALUES)]
    cells[(where // len(rows)) % len(cells)] = given if isinstance(given, str) else json.dumps(given)
    rows[at] = ",".join(cells)
    return "\n".join(rows).encode("utf-8", "surrogateescape")


def _row_changed(data: bytes, where: int, value: int) -> bytes:
    rows = data.split(b"\n")
    at = where % len(rows)
    other = rows[value % len(rows)]
    kind = value % 5
    if kind == 4:
        return b"\r".join(rows)
    rows[at : at + 1] = [[], [rows[at], rows[at]], [other], [rows[at] + b"," + other]][kind]
    return b"\n".join(rows)


# --- good traces

TABLES = {
    "azure.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,396,109\n",
    "azure.2024.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-12 00:00:00.001163+00:00,2162,5\n",
    "azure.2025.csv": "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n2024-10-15 00:00:02.1+00:00,1,2162,5\n",
    "burst.csv": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,x\n"
    "45,GPT-4,0,0,0,x\n118,GPT-4,3,4,7,x\n",
    "functions.csv": "app,func,end_timestamp,duration\na1,f1,1.5,0.5\na1,f2,3,1\n",
    "vidur.csv": ",num_prefill_tokens,num_decode_tokens,pd_ratio,total_tokens\n0,100,10,10.0,110\n",
    "vidur2.csv": "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,100,10\n",
    "lengths.csv": "input_len,output_len\n10,20\n30,40\n",
    "native.csv": "arrival_s,model,prompt_tokens,output_tokens,service_class,session,priority,think_s,deadline_s\n"
    "0,a,10,5,default,s1,0,,\n0.5,b,20,6,default,s1,1,2.5,\n3,a,30,7,,,0,,9\n",
}
LINES: dict[str, Any] = {
    "native.jsonl": {"arrival_s": 0.5, "model": "a", "prompt_tokens": 3, "output_tokens": 4, "session": "s"},
    "mooncake.jsonl": {"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]},
    "ragpulse.jsonl": {
        "timestamp": "82",
        "input_length": 31,
        "output_length": 2,
        "session_id": "a",
        "hash_ids": {"sys_prompt": [1], "passages_ids": [2], "history": [], "web_search": [], "user_input": [9]},
    },
    "openai.jsonl": {
        "custom_id": "1",
        "method": "POST",
        "created": 1700000000,
        "model": "m",
        "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    },
    "sharegpt.json": [
        {"id": "x", "conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "a"}]}
    ],
    "agentic.json": {
        "id": "s",
        "models": ["m"],
        "block_size": 64,
        "hash_id_scope": "local",
        "tool_tokens": 1,
        "totals": {},
        "system_tokens": 1,
        "requests": [{"t": 0.0, "type": "n", "model": "m", "in": 9, "out": 3, "hash_ids": [1]}],
    },
    "vllm.json": {"input_lens": [3, 4], "output_lens": [5, 6], "start_times": [0.1, 0.5], "model_id": "m"},
}
