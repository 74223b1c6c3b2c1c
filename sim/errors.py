"""The user's mistakes, as one family of exceptions.

Every message says what is wrong, where (file, row, field) and how to mend it, in one line. The command line prints
it and exits with status 2. A fault of our own is an AssertionError instead, never one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SimError(Exception):
    """Something the user gave cannot be used; the message says what, where and how to mend it."""


class ConfigError(SimError):
    """A scenario, a command-line option or an output folder."""


class TraceError(SimError):
    """A request trace: a file that cannot be read, or a row that cannot be a request."""


class ProfileError(SimError):
    """A profile table: missing, malformed, or asked about a point that it does not cover."""


class PolicyError(SimError):
    """A policy that cannot be loaded, that failed, or that asked for an illegal action."""


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """A hint that ends an error message: the closest known name, or the list of all when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    if not names:
        return "there are none"
    return "known: " + ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
