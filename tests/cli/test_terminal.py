"""What all verbs share: a count of rows that shows only when it takes long, and errors that stay on one line."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import typer

from sim.cli import terminal
from sim.common.errors import TraceError
from sim.runs import progress as showing
from tests.support.trace_cases import Row, in_chunks, rows_of, trace_of

TRACE = trace_of([Row(float(number), "a", 1, 1) for number in range(6)])


class Clock:
    """Ten seconds pass with every look."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        self.now_s += 10.0
        return self.now_s


def read(rows: bool = True) -> None:
    stream = in_chunks(TRACE, [2])
    if not rows:
        stream.rows = None
    with showing.counting(stream, "import [red]x") as counted:
        assert len(rows_of(counted)) == 6


def test_quick_work_is_silent(capsys: Any) -> None:
    read()
    assert capsys.readouterr() == ("", "")


def test_long_work_says_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(showing, "time", Clock())
    read()
    # Looks at 10 (begin), 20, 30 and 40 s; more than 20 s have passed only at the last.
    assert capsys.readouterr().err == "import [red]x: 6 rows after 30 s, 0 rows/s; 0 s left\n"
    monkeypatch.setattr(showing, "time", Clock())
    monkeypatch.setattr(showing, "QUIET_S", 5.0)
    read(rows=False)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0] == "import [red]x: 2 rows after 10 s, 0 rows/s"


def test_a_bar_at_a_terminal_shows_names_as_they_are(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(showing, "time", Clock())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    read()
    seen = capsys.readouterr()
    assert "[red]x" in seen.err
    assert "rows/s" in seen.err
    assert seen.out == ""


def test_a_mistake_is_one_printable_line_and_a_fault_of_ours_is_not_caught(capsys: Any) -> None:
    with pytest.raises(typer.Exit) as stopped, terminal.mistakes_in_one_line():
        raise TraceError("a\x1b[31m\nb")
    assert stopped.value.exit_code == 2
    assert capsys.readouterr().err == "error: a\\x1b[31m b\n"
    with pytest.raises(AssertionError, match="ours"), terminal.mistakes_in_one_line():
        raise AssertionError("ours")
