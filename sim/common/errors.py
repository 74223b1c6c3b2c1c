"""The user's mistakes, as one family of exceptions.

Every message says what is wrong, where (file, row, field) and how to mend it, in one line. The command line prints
it and exits with status 2. A fault of our own is an AssertionError instead, never one of these.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from typing import Any

_MOST_COMPARED, _LONGEST_COMPARED = 2_000, 200  # names, and characters of one: more take long to compare
_MOST_SHOWN = 300  # characters


class SimError(Exception):
    """Something the user gave cannot be used; the message says what, where and how to mend it."""


class ConfigError(SimError):
    """A scenario, a command-line option or an output folder."""


class MachineError(ConfigError):
    """A machine that has too little of something, as room on a disk: nothing that a run can be blamed for."""


class TraceError(SimError):
    """A request trace: a file that cannot be read, or a row that cannot be a request."""


class ProfileError(SimError):
    """A profile table: missing, malformed, or asked about a point that it does not cover."""


class PolicyError(SimError):
    """A policy that cannot be loaded, that failed, or that asked for an illegal action."""


def out_of_memory(error: BaseException) -> bool:
    """Was it memory that ran out? The system says so in several ways."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, ImportError | RuntimeError):
        told = ("cannot allocate memory", "failed to map segment", "can't start new thread")
        return any(text in str(error).lower() for text in told)
    return isinstance(error, MemoryError)


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """A hint that ends an error message: the closest known name, or the list of all when none is close."""
    names = sorted(name for name in known if len(name) <= _LONGEST_COMPARED)[:_MOST_COMPARED]
    close = difflib.get_close_matches(wrong[:_LONGEST_COMPARED], names, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    if not names:
        return "there are none"
    return "known: " + ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def shown(value: Any) -> str:
    """The repr of a value of somebody else's making, which may be long, or fail."""
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}, whose repr fails>"
    return _short(text)


def message_of(error: BaseException) -> str:
    """The text of somebody else's exception, which may be long, or fail."""
    try:
        text = str(error)
    except Exception:
        text = "its message fails"
    return _short(text)


def _short(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."
