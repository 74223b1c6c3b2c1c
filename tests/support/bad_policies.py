"""Policies that fail: the template of `policies new`, spoilt in one place each; as the texts of files."""

from __future__ import annotations

from sim.policy.loader import policies_folder

GOOD = (policies_folder() / "_template.py").read_text(encoding="utf-8")
_DECIDE = "    def decide(self, view: View) -> Iterator[Action]:\n"
_SERVE = "                yield from (Route(request, target) for request in model.waiting)\n"


def first(lines: str, imports: str = "") -> str:
    """The template with lines before all that it decides."""
    body = "".join(f"        {line}\n" for line in lines.splitlines())
    return _with_imports(_replaced(_DECIDE, _DECIDE + body), imports)


def serving(lines: str, imports: str = "") -> str:
    """The template with other lines for where it routes requests to a target."""
    body = "".join(f"                {line}\n" for line in lines.splitlines())
    return _with_imports(_replaced(_SERVE, body), imports)


def _replaced(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def _with_imports(text: str, imports: str) -> str:
    return text.replace("from sim.policy", f"{imports}\nfrom sim.policy", 1)


_BY_LENGTH = """for request in model.waiting:
    if {tokens} < 200 or view.now_s > 12:
        yield Route(request, target)
    else:
        yield Wake(12.5)"""
_WAKE = "from sim.policy import Wake"

LEGAL, REPEATABLE = "asks for legal actions only", "the same requests give the same result"
SERVES, WAITS = "serves everyone who can be served", "lets nobody wait for ever"
IMPORTS, BEHIND, PARAMETER = "imports what a policy may", "does not reach behind the views", "names a wrong parameter"
FUTURE, MANY = "knows neither lengths nor arrivals in advance", "copes with many GPUs"

THINKS = first("while True:\n    pass")  # and never comes to an end

# name: the file, the check that it fails, and words of why
BAD: dict[str, tuple[str, str, str]] = {
    "raises": (first('raise KeyError("mine")'), LEGAL, "KeyError: 'mine' (raises.py, line "),
    "exits": (first("raise SystemExit(3)"), LEGAL, "SystemExit: 3 (exits.py, line "),
    "illegal": (first("yield Load(view.models[0], view.gpus[0], 99)"), LEGAL, "refused: layers"),
    "no_action": (first("yield 7"), LEGAL, "7"),
    "touches": (first("view.gpus[0].total_bytes = 1"), LEGAL, "look but not touch"),
    "keeps_a_view": (
        first('old = vars(self).setdefault("old", view)\nprint(old.now_s)'),
        LEGAL,
        "a view is valid for one decision only",
    ),
    "goes_on_and_on": (first("while True:\n    yield Wake(view.now_s + 1)", _WAKE), LEGAL, "actions in one decision"),
    "never_serves": (first("return"), SERVES, "100 of 100 requests were neither served nor turned away"),
    "refuses": (
        first('yield from [Reject(r, "no") for r in view.waiting]', "from sim.policy import Reject"),
        SERVES,
        "it serves nobody",
    ),
    "waits_for_more": (first("if len(view.waiting) + view.waiting.count(0) < 8:\n    return"), WAITS, "neither served"),
    "whole_only": (
        GOOD.replace("model.layers_within(gpu.capacity_bytes)", "model.layers"),
        WAITS,
        "requests were neither served nor turned away",
    ),
    "by_chance": (
        first(
            "if default_rng().random() < 0.5:\n    yield Wake(view.now_s + 0.01)\n    return",
            f"from numpy.random import default_rng\n{_WAKE}",
        ),
        REPEATABLE,
        "two runs of the same requests differ",
    ),
    "remembers": (
        first(
            "_SEEN.append(0)\nif len(_SEEN) < 30:\n    yield Wake(view.now_s + 1)\n    return",
            f"_SEEN: list[int] = []\n{_WAKE}",
        ),
        REPEATABLE,
        "keeps something between runs",
    ),
    "peeks": (serving(_BY_LENGTH.format(tokens="request._of.output_tokens"), _WAKE), BEHIND, "request._of reaches"),
    "peeks_and_is_seen": (
        serving(_BY_LENGTH.format(tokens="request._of.output_tokens"), _WAKE),
        FUTURE,
        "by what has not shown",
    ),
    "peeks_in_secret": (
        serving(_BY_LENGTH.format(tokens='getattr(request, "_" + "of").output_tokens'), _WAKE),
        FUTURE,
        "by what has not shown",
    ),
    "peeks_by_name": (serving(_BY_LENGTH.format(tokens='getattr(request, "_of").output_tokens'), _WAKE), BEHIND, "_of"),
    "looks_around": (
        first(
            "frame = sys._getframe()\n"
            "while 'requests' not in frame.f_locals:\n    frame = frame.f_back\n"
            "last_s = float(frame.f_locals['requests'].arrival_s[-1])\n"
            "if view.arrived:\n    yield Wake(view.now_s + 0.01 + last_s % 1.0)",
            f"import sys\n{_WAKE}",
        ),
        FUTURE,
        "by what has not shown",
    ),
    "imports_gc": (first("gc.collect()", "import gc"), IMPORTS, "it imports gc"),
    "imports_the_engine": (
        first("Engine.run", "from sim.engine.engine import Engine"),
        IMPORTS,
        "it imports sim.engine.engine",
    ),
    "imports_it_later": (first("import sim.engine\nsim.engine.Engine"), IMPORTS, "it imports sim.engine"),
    "imports_it_from_the_top": (first("engine.Engine", "from sim import engine"), IMPORTS, "it imports sim.engine"),
    "imports_more": (first("pandas.DataFrame", "import pandas"), IMPORTS, "it imports pandas"),
    "takes_anything": (
        GOOD.replace(
            "    class Parameters(PolicyParameters):\n", '    class Parameters(PolicyParameters, extra="allow"):\n'
        ),
        PARAMETER,
        "takes a parameter 'nonsense'",
    ),
    "few_gpus": (first("assert len(view.gpus) < 32"), MANY, "AssertionError"),
}
