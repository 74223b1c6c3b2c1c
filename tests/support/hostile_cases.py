"""Hostile input, and the one line with which each is refused: scenarios, policies, traces and profile tables.

A case is a file (or a change of a good one) and words of its error; test_hostile.py tries them all. Plain mistakes of
honest users are in system/test_errors.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.cli_cases import scenario_data

HEADER = "arrival_s,model,prompt_tokens,output_tokens\n"


@dataclass(frozen=True)
class Hostile:
    """`content` stands in a file of the test's folder; `words` are all in its error."""

    name: str
    content: str | bytes
    words: tuple[str, ...]


def bad(name: str, content: str | bytes, *words: str) -> Hostile:
    return Hostile(name, content, words)


# --- scenarios: whole files

_LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
_LATER = "more than 300,000 values, those behind aliases counted each time"
SCENARIOS = [
    bad("billion laughs", _LAUGHS, "line 6", _LATER),
    bad("laughing keys", "a: &a {x: 1, y: 2}\n" + _LAUGHS.replace("a: &a [", "b0: ["), _LATER),
    bad("a list in itself", "a: &a [1, *a]\n", "'*a' is inside what it stands for"),
    bad("a mapping in itself", "a: &a {b: {c: *a}}\n", "'*a' is inside what it stands for"),
    bad("an alias of nothing", "a: *b\n", "nothing is called '&b'"),
    bad("lists 100,000 deep", "[" * 100_000, "nested too deeply, more than 50 levels"),
    bad("dashes 100,000 deep", "- " * 100_000, "nested too deeply, more than 50 levels"),
    bad("mappings 60 deep", "{a: " * 60 + "1" + "}" * 60, "nested too deeply, more than 50 levels"),
    bad(
        "deep through aliases", "".join(f"a{n}: &a{n} [{f'*a{n - 1}' if n else 1}]\n" for n in range(60)), "too deeply"
    ),
    bad("four million items", "a: [" + "1," * 4_000_000 + "1]", _LATER),
    bad("a merge", "<<: {name: x}\n", "line 1", "merges (<<) are not read, write the fields out"),
    bad("a merge bomb", "a: &a {x: 1}\nb: {<<: [*a, *a]}\n", "merges (<<) are not read"),
    bad("a Python object", "a: !!python/object/apply:os.system [id]\n", "the tag '!!python/object/apply:os.system' is"),
    bad("a Python name", "a: !!python/name:os.system\n", "the tag '!!python/name:os.system' is not read"),
    bad("an own tag", "a: !mine 1\n", "the tag '!mine' is not read, plain data only"),
    bad("bytes", "a: !!binary aGk=\n", "the tag '!!binary' is not read"),
    bad("a set", "a: !!set {x, y}\n", "the tag '!!set' is not read"),
    bad("an include", "a: !include /etc/passwd\n", "the tag '!include' is not read"),
    bad("a key twice", "name: a\nname: b\n", "line 2", "key 'name' twice"),
    bad("a list as key", "? [a]\n: b\n", "a key must be a name or a number"),
    bad("two documents", "name: a\n---\nname: b\n", "not valid YAML"),
    bad("a tab", "name: a\ncluster:\n\tnodes: []\n", "not valid YAML"),
    bad("NUL", b"name: a\0b\n", "control characters are not allowed"),
    bad("UTF-16", "name: a\n".encode("utf-16"), "not UTF-8 text"),
    bad("Latin-1", "name: \xe9\n".encode("latin-1"), "not UTF-8 text"),
    bad("binary", bytes(range(256)) * 20, "not UTF-8 text"),
    bad("a number of 5,000 digits", "seed: " + "9" * 5000, "a number of too many digits"),
    bad("only a byte-order mark", b"\xef\xbb\xbf", "a scenario is a mapping"),
    bad("a text alone", "name", "a scenario is a mapping"),
    bad("nine MiB", b"name: " + b"x" * (9 << 20), "larger than 8,388,608 bytes"),
    bad("an open quote", 'name: "' + "x" * 1000, "not valid YAML"),
]

# --- scenarios: one field, by --set

FIELDS: list[tuple[str, tuple[str, ...]]] = [
    ("seed=true", ("'seed'", "give a number, not true or false")),
    ("horizon_s=false", ("'horizon_s'", "give a number, not true or false")),
    ("cluster.nodes.0.count=true", ("'cluster.nodes.0.count'", "give a number, not true or false")),
    ("horizon_s=1:30", ("'horizon_s'", "valid number", "'1:30'")),
    ("horizon_s=.nan", ("'horizon_s'", "finite number")),
    ("horizon_s=1e400", ("'horizon_s'", "finite number")),
    ("horizon_s=-0.0", ("'horizon_s'", "greater than 0")),
    ("seed=0o17", ("'seed'", "valid integer", "'0o17'")),
    ("seed=１２", ("'seed'", "valid integer")),
    ("seed=0x10000000000000000", ("'seed'", "less than")),
    ("seed=" + "9" * 4000, ("'seed'", "more than 30 digits")),
    ("seed=1.5", ("'seed'", "valid integer")),
    ("name=null", ("'name'", "valid string", "None")),
    ("name=true", ("'name'", "valid string", "True", "put it in quotes")),
    ("name=7", ("'name'", "valid string", "put it in quotes")),
    ("name=../../etc/passwd", ("'name'", "use letters, digits")),
    ("name=/tmp/x", ("'name'", "use letters, digits")),
    ("name=-rf", ("'name'", "use letters, digits")),
    ("name=.hidden", ("'name'", "use letters, digits")),
    ("name=a/b", ("'name'", "use letters, digits")),
    ("name=<script>alert(1)</script>", ("'name'", "use letters, digits")),
    ("name=ab\u202egnp.exe", ("'name'", "use letters, digits", "\\u202e")),
    ("name=e\u0301", ("'name'", "use letters, digits")),
    ("name=\U0001f4a5", ("'name'", "use letters, digits")),
    ('name="a\\0b"', ("'name'", "use letters, digits")),
    ('name="a\\nb"', ("'name'", "use letters, digits")),
    ("name=" + "a" * 101, ("'name'", "at most 100")),
    ("name=" + "a" * 1_000_000, ("'name'", "at most 100")),
    ("models.0.name=a b", ("'models.0.name'", "use letters, digits")),
    ("models=5", ("'models'", "valid tuple")),
    ("models={}", ("'models'", "valid tuple")),
    ("models=[[[]]]", ("'models.0'", "give a mapping of fields")),
    ("cluster=[]", ("'cluster'", "give a mapping of fields")),
    ("service_classes.0.weight=.inf", ("weight", "finite number")),
    ("workload.traffic.0.prompt_max=1000000000000000", ("prompt_max", "less than or equal to")),
    ("workload.traffic.0.rate_per_s=1.0e+308", ("requests", "lower")),
    ("workload.kind=exec", ("workload.kind", "unknown 'exec'")),
    ("policy=[lru-swap]", ("'policy'", "give a mapping of fields")),
    ('policy.name="a\\u202eb.py"', ("'policy.name'", "use printable characters")),
    ("policy.name=5", ("'policy.name'", "valid string")),
    ("policy.name={a: 1}", ("'policy.name'", "valid string")),
    ("policy={name: residency-aware, margin: .nan}", ("parameter 'margin'", "finite number")),
    ("policy={name: residency-aware, margin: true}", ("parameter 'margin'", "give a number")),
    ("policy={name: residency-aware, margin: [1]}", ("parameter 'margin'", "valid number")),
    ("policy={name: residency-aware, margin: " + "9" * 4000 + "}", ("parameter 'margin'",)),
    ("policy={name: lru-swap, 1: 2}", ("policy",)),
    ("policy={name: __init__}", ("unknown policy '__init__'",)),
    ("policy={name: _template}", ("unknown policy '_template'",)),
    ("policy={name: os}", ("unknown policy 'os'",)),
    ("profiles=5", ("'profiles'", "valid string")),
    ("profiles=/dev/zero", ("/dev/zero", "no such folder of profiles")),
    ('profiles="a\\0b"', ("no such folder of profiles",)),
    ("workload={file: /dev/zero, format: mooncake}", ("/dev/zero", "is a device, not a file")),
    ('workload={file: "a\\0b.csv"}', ("field 'workload.file'", "null byte")),
    ("name=&a [*a]", ("the value is not valid YAML",)),
    ("name=" + "[" * 100_000, ("the value is not valid YAML",)),
    ("name=!!python/name:os.system", ("the value is not valid YAML",)),
    ("a.b.c.d=1", ("unknown field 'a'",)),
    ("..=1", ("unknown field",)),
    ("models.99999999999999999999.name=x", ("'models' has items 0 to 1",)),
    ("models.-1.name=x", ("'models' has items 0 to 1",)),
    ("=1", ("write path=value",)),
]

# --- scenarios that would run code

CODE = [
    ("./evil.py", "field 'policy': './evil.py' is a file of code", "--policy ./evil.py"),
    ({"name": "/tmp/evil.py"}, "field 'policy': '/tmp/evil.py' is a file of code", "a scenario cannot run code"),
    ({"name": "a/evil"}, "field 'policy': 'a/evil' is a file of code", "a scenario cannot run code"),
    ({"name": "zero-switch-cost", "inner": "evil.py"}, "field 'policy.inner'", "--set policy.inner="),
    (
        {"name": "zero-switch-cost", "parameters": {"inner": ["evil.py"]}},
        "field 'policy.parameters'",
        "cannot run code",
    ),
]

# --- policies: whole files

_BODY = "from sim.policy import *\n\nclass Mine(Policy):\n    def decide(self, view):\n        "
_WORLD = "from sim.policy import *\n\nclass Mine(Policy):\n    {}\n    def decide(self, view):\n        return ()\n"


def deciding(name: str, body: str, *words: str) -> Hostile:
    """A policy whose first decision does this."""
    return bad(name, _BODY + body + "\n", "policy '", "at t=", *words)


POLICIES = [
    deciding("raises", "raise KeyError('x')", "failed", "KeyError: 'x' (mine.py, line 5)"),
    deciding("raises in a generator", "yield 1 / 0", "ZeroDivisionError", "line 5"),
    deciding("exits", "import sys; sys.exit(0)", "SystemExit: 0 (mine.py, line 5)"),
    deciding("raises what is no Exception", "raise BaseException('b')", "BaseException: b (mine.py, line 5)"),
    deciding("raises GeneratorExit", "raise GeneratorExit", "GeneratorExit"),
    deciding("recurses", "return self.decide(view)", "RecursionError"),
    deciding("an endless message", "raise ValueError('x' * 10**7)", "ValueError: xxx", "..."),
    deciding(
        "an error whose text fails",
        "raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})()",
        "E: its message fails",
    ),
    deciding("lines in a message", "raise ValueError('a\\n\\x1b[31mb')", "ValueError: a \\x1b[31mb"),
    deciding("stops a generator", "raise StopIteration", "StopIteration"),
    deciding("a number", "return 7", "its decision is 7; yield actions"),
    deciding("nothing", "return None", "its decision is None"),
    deciding("text", "return 'Load'", "'L' is not an action"),
    deciding("a class", "return [Load]", "is not an action"),
    deciding("a mapping", "return {1: 2}", "1 is not an action"),
    deciding(
        "garbage whose repr fails",
        "return [type('G', (), {'__repr__': lambda self: 1 / 0})()]",
        "whose repr fails> is not an action",
    ),
    deciding(
        "a subclass of an action",
        "return [type('L', (Load,), {})(view.models[0], view.gpus[0], 1)]",
        "is not an action",
    ),
    deciding("layers of text", "return [Load(view.models[0], view.gpus[0], '36')]", "refused: layers"),
    deciding("a GPU of its own", "return [Load(view.models[0], 0, 1)]", "refused: the GPU must be taken from the view"),
    deciding(
        "an endless KV pool",
        "return [Load(view.models[0], view.gpus[0], 1, kv_tokens=10**400)]",
        "refused",
    ),
    deciding("wakes in the past", "return [Wake(-1.0)]", "refused: at_s must lie in the future"),
    deciding("wakes at NaN", "return [Wake(float('nan'))]", "refused: at_s must be a finite time"),
    deciding("wakes at 10^400", "return [Wake(10**400)]", "refused: at_s must be a finite time"),
    deciding(
        "rejects without words", "return [Reject(view.waiting[0], '')]", "refused: give the reason for the rejection"
    ),
    deciding(
        "rejects in red", "return [Reject(view.waiting[0], '\\x1b[31m')]", "refused: give the reason", "printable"
    ),
    deciding("rejects twice", "r = view.waiting[0]; return [Reject(r, 'a'), Reject(r, 'a')]", "the request has ended"),
    deciding("sets a field", "view.gpus[0].capacity_bytes = 1", "look but not touch: 'capacity_bytes' cannot be set"),
    deciding("deletes a field", "del view.gpus[0].name", "look but not touch: 'name' cannot be deleted"),
    deciding("deletes what is behind", "del view.gpus[0]._of", "look but not touch: '_of' cannot be deleted"),
    deciding("sets the clock", "view.now_s = 0", "AttributeError"),
    deciding("computes without an end", "while True: pass", "it computed for 1 s without coming to an end", "line 5"),
    deciding("sleeps", "import time; time.sleep(3600)", "it computed for 1 s", "line 5"),
    deciding(
        "catches what would end it, once",
        "try:\n            while True: sum(range(10**4))\n        "
        "except BaseException:\n            raise ValueError('no')",
        "ValueError: no",
    ),
    bad("async", _BODY.replace("def decide", "async def decide") + "pass\n", "Mine.decide is async"),
    bad("async generator", _BODY.replace("def decide", "async def decide") + "yield 1\n", "Mine.decide is async"),
    bad(
        "no decide",
        "from sim.policy import *\nclass Mine(Policy): pass\n",
        "a policy needs a method decide(self, view)",
    ),
    bad("decide is a number", _WORLD.format("") + "    decide = 3\n", "Mine.decide is no method, but 3"),
    bad("wrong arguments", _BODY.replace("self, view", "self") + "pass\n", "policy '", "TypeError"),
    bad(
        "parameters of a number", _WORLD.format("Parameters = 3"), "Mine.Parameters is no subclass of PolicyParameters"
    ),
    bad("parameters of dict", _WORLD.format("Parameters = dict"), "Mine.Parameters is no subclass"),
    bad("a tier of a number", _WORLD.format("tier = 3"), "Mine.tier is 3, not a str"),
    bad("an oracle of True", _WORLD.format("oracle = True"), "Mine.oracle is True, not a str"),
    bad("foresees by text", _WORLD.format("foresees = 'no'"), "Mine.foresees is 'no', not a bool"),
    bad("foresees in secret", _WORLD.format("foresees = True"), "it foresees, but has no `oracle` text"),
    bad(
        "an ideal of its own", _WORLD.format("oracle = 'x'; ideal = ('time',)"), "Mine.ideal has 'time'; known: memory"
    ),
    bad("no super", _WORLD.format("def __init__(self, p): pass"), "its __init__ must call super().__init__"),
    bad("unmade", _WORLD.format("def __init__(self, p): raise KeyboardInterrupt2"), "cannot be made (NameError"),
    bad("unmade by exit", _WORLD.format("def __init__(self, p): raise SystemExit"), "cannot be made (SystemExit"),
    bad("starts with garbage", _WORLD.format("def start(self, view): return 5"), "its decision is 5"),
    bad("syntax", "class :\n", "cannot import the policy (SyntaxError"),
    bad("NUL", b"x = 1\0\n", "cannot import the policy"),
    bad("not UTF-8", b"x = '\xff'\n", "cannot import the policy (SyntaxError"),
    bad("UTF-16", "class A: pass\n".encode("utf-16"), "cannot import the policy"),
    bad("empty", "", "exactly one subclass of sim.policy.Policy, not 0"),
    bad("two", _WORLD.format("") + "\nclass Other(Mine): pass\n", "exactly one", "not 2 (Mine, Other)"),
    bad("exits when imported", "raise SystemExit(0)\n", "cannot import the policy (SystemExit: 0)"),
    bad("BaseException when imported", "raise BaseException('b')\n", "cannot import the policy (BaseException: b)"),
    bad("loops when imported", "while True: pass\n", "cannot import the policy (it computed for 1 s", "line 1"),
    bad("recurses when imported", "def f(): f()\nf()\n", "cannot import the policy (RecursionError"),
    bad("nested too deeply", "x = " + "(" * 300 + ")" * 300, "cannot import the policy"),
]

# --- traces: the file t.csv, t.jsonl, t.parquet, ... under the name before the colon

_ROW = '{"arrival_s": 0, "model": "chat", "prompt_tokens": 2, "output_tokens": 1}\n'
TRACES = [
    bad("t.csv: empty", "", "the file is empty"),
    bad("t.csv: blank", "\n \n\t\n", "the file is empty"),
    bad("t.csv: NUL bytes", b"\0" * 5000, "t.csv"),
    bad("t.csv: NUL in a name", HEADER.encode() + b"0,ch\0at,1,1\n", "row 2", "column 'model'", "printable"),
    bad("t.csv: UTF-16", (HEADER + "0,chat,1,1\n").encode("utf-16"), "not UTF-8 text"),
    bad("t.csv: not UTF-8 in row 3", HEADER.encode() + b"0,chat,1,1\n0,\xff,1,1\n", "row 3", "not UTF-8 text"),
    bad("t.csv: underscores", HEADER + "0,chat,1_000,1\n", "row 2", "'1_000'"),
    bad("t.csv: full-width digits", HEADER + "0,chat,\uff11\uff12,1\n", "row 2", "prompt_tokens"),
    bad("t.csv: hex", HEADER + "0,chat,0x10,1\n", "row 2", "'0x10'"),
    bad("t.csv: 10^12 tokens", HEADER + "0,chat,1000000000000,1\n", "row 2", "give a whole number from 1 to"),
    bad("t.csv: 1e400 tokens", HEADER + "0,chat,1e400,1\n", "row 2", "prompt_tokens"),
    bad("t.csv: 5,000 digits", HEADER + f"0,chat,{'9' * 5000},1\n", "row 2", "prompt_tokens"),
    bad("t.csv: true", HEADER + "0,chat,true,1\n", "row 2", "'true'"),
    bad("t.csv: NaN", HEADER + "NaN,chat,1,1\n", "row 2", "arrival_s"),
    bad("t.csv: -inf", HEADER + "-inf,chat,1,1\n", "row 2", "arrival_s"),
    bad("t.csv: beyond the end of time", HEADER + "1e13,chat,1,1\n", "row 2", "give seconds from 0 to 1e+12"),
    bad("t.csv: a date", HEADER + "9999-12-31,chat,1,1\n", "row 2", "arrival_s"),
    bad("t.csv: an open quote", HEADER + '0,"chat,1,1\n0,chat,1,1\n', "a quote is opened but not closed"),
    bad("t.csv: a quote within", HEADER + '0,ch"at,1,1\n', "row 2", "quote"),
    bad("t.csv: half a last row", HEADER + "0,chat,1,1\n1,ch", "row 3", "has 2 fields"),
    bad("t.csv: only carriage returns", (HEADER + "0,chat,x,1\n").replace("\n", "\r"), "row 2", "'x'"),
    bad("t.csv: a column twice", "arrival_s," + HEADER + "0,0,chat,1,1\n", "'arrival_s' is named twice"),
    bad("t.csv: semicolons", HEADER.replace(",", ";") + "0;chat;1;1\n", "separated by semicolons; use commas"),
    bad("t.csv: right-to-left", HEADER + "0,ch\u202eat,1,1\n", "row 2", "printable", "\\u202e"),
    bad("t.csv: a path for a model", HEADER + "0,../../x,1,1\n", "row 2", "unknown model '../../x'"),
    bad("t.csv: a name of 100,000", HEADER + f"0,{'m' * 100_000},1,1\n", "row 2", "unknown model 'mmm"),
    bad("t.csv: 200,000 columns", ",".join(map(str, range(200_000))) + "\n" + "0," * 199_999 + "0\n", "columns"),
    bad("t.csv: gzip without its name", b"\x1f\x8b" + b"\0" * 50, "t.csv"),
    bad("t.csv.gz: no gzip", HEADER + "0,chat,1,1\n", "gzip"),
    bad("t.csv.gz: half of a head", b"\x1f\x8b\x08", "gzip"),
    bad("t.parquet: text", HEADER, "Parquet"),
    bad("t.parquet: only its marks", b"PAR1" * 4, "Parquet"),
    bad("t.jsonl: no object", "[1, 2]\n", "row 1", "object"),
    bad("t.jsonl: NaN", '{"arrival_s": NaN, "model": "chat", "prompt_tokens": 1, "output_tokens": 1}\n', "arrival_s"),
    bad("t.jsonl: lists 100,000 deep", '{"arrival_s": ' + "[" * 100_000 + "\n", "row 1", "not valid JSON"),
    bad("t.jsonl: 5,000 digits", '{"arrival_s": ' + "9" * 5000 + "}\n", "row 1", "not valid JSON"),
    bad("t.jsonl: a lone surrogate", _ROW.replace("chat", "\\ud800"), "row 1"),
    bad("t.jsonl: true tokens", _ROW.replace("2,", "true,"), "row 1"),
    bad("t.jsonl: half a row", '{"arrival_s": 0, "mod', "row 1", "not valid JSON"),
    bad("t.txt: another ending", "x", "unknown kind of file"),
]  # fmt: skip


# --- profile tables: FILE: what is changed in it, old -> new

TABLES: list[tuple[str, str, str, tuple[str, ...]]] = [
    ("gpus.csv", "48,25.0", "nan,25.0", ("gpus.csv, row 2", "'memory_gib' is 'nan'", "not a number above 0")),
    ("gpus.csv", "48,25.0", "0,25.0", ("row 2", "'memory_gib' is '0'")),
    ("gpus.csv", "48,25.0", "-48,25.0", ("row 2", "'memory_gib' is '-48'")),
    ("gpus.csv", "48,25.0", "1_000,25.0", ("row 2", "'memory_gib' is '1_000'")),
    ("gpus.csv", "48,25.0", "\uff14\uff18,25.0", ("row 2", "'memory_gib' is")),
    ("gpus.csv", "48,25.0", "0x30,25.0", ("row 2", "'memory_gib' is '0x30'")),
    ("gpus.csv", "48,25.0", "1e400,25.0", ("row 2", "'memory_gib' is '1e400'")),
    ("gpus.csv", "48,25.0", "1e300,25.0", ("row 2", "at most 1e+09")),
    ("gpus.csv", "48,25.0", "48,inf", ("row 2", "'h2d_gb_s' is 'inf'")),
    ("gpus.csv", "48,25.0", "48,1e-300", ("row 2", "'h2d_gb_s' is '1e-300'")),
    ("gpus.csv", "rtx-a6000,", "rtx-5000-ada,", ("gpus.csv, row 3", "a second row for rtx-5000-ada; keep one")),
    ("gpus.csv", "rtx-a6000,", ",", ("row 2", "column 'gpu' is '', which names nothing")),
    ("gpus.csv", "rtx-a6000,", '"rtx\n-a6000",', ("row 2", "which names nothing")),
    ("gpus.csv", "memory_gib,", "name,", ("row 1: column 'name' is there twice",)),
    ("gpus.csv", "memory_gib,", "memory,", ("column 'memory_gib' is missing",)),
    ("gpus.csv", "analytic", "guessed", ("row 2: kind 'guessed' is none of measured",)),
    ("gpus.csv", "rtx-a6000,RTX", 'rtx-a6000,"RTX', ("not a UTF-8 CSV file",)),
    ("gpus.csv", "rtx-a6000,RTX", f"rtx-a6000,{'x' * 140_000}", ("not a UTF-8 CSV file", "field larger than")),
    ("models.csv", "36,154154096", "36.5,154154096", ("'layers' is '36.5', not a whole number",)),
    ("models.csv", "36,154154096", "10001,154154096", ("'layers' is '10001'", "at most 10000")),
    ("models.csv", "Qwen2.5-3B,Q8_0", "Qwen2.5-3B,FP16", ("models.csv, row 3: a second row for Qwen2.5-3B FP16",)),
    ("decode.csv", "0.0495242", "nan", ("decode.csv", "'step_s' is 'nan'")),
    ("decode.csv", "0.0495242", "-1", ("'step_s' is '-1'",)),
    ("decode.csv", "0.0495242", "0", ("'step_s' is '0', not a number above 0",)),
    ("table.yaml", "gpu: rtx-a6000", "gpu: 5", ("table.yaml: 'gpu' is 5, not a name",)),
    ("table.yaml", "gpu: rtx-a6000", "gpu: !!python/name:os.system", ("the tag '!!python/name:os.system'",)),
    ("table.yaml", "gpu: rtx-a6000", 'gpu: "a\\nb"', ("table.yaml: 'gpu' is 'a\\nb', not a name",)),
    ("table.yaml", "gpu: rtx-a6000", "gpu: &a [*a]", ("'*a' is inside what it stands for",)),
    ("table.yaml", "gpu: rtx-a6000", "gpu: rtx-a6000\ngpu: x", ("key 'gpu' twice",)),
    ("table.yaml", "offload: cpu", "offload: disk", ("offload 'disk' is neither cpu nor stream",)),
]  # fmt: skip


def scenario_with(policy: object) -> dict[str, object]:
    return scenario_data(policy=policy)
