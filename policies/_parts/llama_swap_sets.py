"""Pure: sets of names written as expressions, `(small | medium) & embedder`, and all that they allow.

llama-swap's language for models that may be loaded together: & is and, | is or, parentheses group, +name is another of
the sets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product

MOST = 10_000

Combinations = list[tuple[str, ...]]


def combinations_of(field: str, sets: Mapping[str, str], name: str, within: tuple[str, ...] = ()) -> Combinations:
    """Every combination of names that the set allows, in the order in which it is written. Raises ValueError, naming
    the parameter `field` and the set, for what is not an expression, goes in circles, or allows more than 10,000."""
    where = f"{field}.{(*within, name)[-1]}"
    if name in within:
        raise ValueError(f"{where}: it refers to itself, by way of {' > '.join((*within, name))}")
    if name not in sets:
        raise ValueError(f"{field}.{within[-1]}: no set '{name}'; there are {', '.join(sets)}")
    tokens = re.findall(r"[()&|]|[^\s()&|]+", sets[name])[::-1]

    def either() -> Combinations:
        found = both()
        while tokens and tokens[-1] == "|":
            tokens.pop()
            found = found + both()
        return found

    def both() -> Combinations:
        found = one()
        while tokens and tokens[-1] == "&":
            tokens.pop()
            found = [(*left, *right) for left, right in product(found, one())]
            if len(found) > MOST:
                raise ValueError(f"{where}: more than {MOST:,} combinations; allow fewer alternatives")
        return found

    def one() -> Combinations:
        token = tokens.pop() if tokens else "the end"
        if token == "(":
            found = either()
            if not tokens or tokens.pop() != ")":
                raise ValueError(f"{where}: a parenthesis is not closed")
            return found
        if token in ("the end", ")", "&", "|"):
            raise ValueError(f"{where}: a name is expected where {token} is")
        return combinations_of(field, sets, token[1:], (*within, name)) if token.startswith("+") else [(token,)]

    found = either()
    if tokens:
        raise ValueError(f"{where}: '{tokens[-1]}' is not expected there")
    return found
