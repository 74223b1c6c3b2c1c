"""Rich tables of what there is to choose from: policies and profiles.

Only formatting: the numbers come from catalogue.py. The command line calls it.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from sim.cli.tables.run_tables import facts, grid, show
from sim.common.text import gib, number, seconds, share
from sim.policy.catalogue import PolicyFacts
from sim.profiles.break_even import RESIDENCIES, BreakEven
from sim.profiles.catalogue import BATCHES, ProfileFacts, TableFacts

WAYS = {"restart": "restart", "sleep": "wake", "elastic": "grow"}  # what an engine can: which n*
_MOST_FULL = 3  # so many profiles are shown in full


def print_policies(policies: Sequence[PolicyFacts], console: Console) -> None:
    """All policies, a line each, under their tiers."""
    table = grid("Policies", "tier", "name", "what it does", left=3)
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    before = ""
    for policy in policies:
        mark = "[oracle] " if policy.oracle else ""
        table.add_row("" if policy.tier == before else policy.tier, policy.name, policy.problem or mark + policy.line)
        before = policy.tier
    show(console, table)
    console.print("python -m sim policies NAME shows one and its parameters.")


def print_policy(policy: PolicyFacts, console: Console) -> None:
    """One policy: what it says of itself, and its parameters."""
    console.print(Text.assemble((policy.name, "bold"), f" ({policy.tier})"))
    console.print(Text("\n\n".join(map(_flowing, (policy.text or policy.line).split("\n\n")))))
    if policy.oracle:
        console.print(Text(f"An oracle, which no real scheduler can be: {policy.oracle}"))
    console.print()
    if not policy.parameters:
        console.print("It has no parameters.")
        return
    table = grid("Parameters: --set policy.NAME=VALUE", "name", "type", "default", "meaning", left=4)
    for parameter in policy.parameters:
        table.add_row(parameter.name, parameter.kind, parameter.default, parameter.description)
    show(console, table)


def _flowing(paragraph: str) -> str:
    """A paragraph without its line ends, for the terminal to wrap; one with indented or listed lines as it is."""
    lines = paragraph.split("\n")
    return paragraph if any(line[:1] in (" ", "-", "*", "|") for line in lines) else " ".join(lines)


def print_tables(tables: Sequence[TableFacts], console: Console) -> None:
    """For which hardware and engine there are profile tables, and of which models."""
    places = grid("Profile tables", "GPU", "host", "engine", "models", left=3)
    models: dict[str, dict[str, None]] = {}
    for table in tables:
        places.add_row(table.gpu, table.host, table.engine, str(len(table.models)))
        for model, quantizations in table.models.items():
            models.setdefault(model, {}).update(dict.fromkeys(quantizations))
    names = facts("Models, and the quantizations in which at least one of these has them", [])
    for model, found in models.items():
        names.add_row(model, ", ".join(found))
    show(console, places, names)
    console.print("python -m sim profile show MODEL tells what the tables say about one.")


def print_profiles(profiles: Sequence[ProfileFacts], console: Console) -> None:
    """A model's tables: in full when there are few, else a line each."""
    if len(profiles) <= _MOST_FULL:
        for profile in profiles:
            _print_profile(profile, console)
        return
    context = min(profile.contexts[-1] if profile.contexts else 0 for profile in profiles)
    title = f"{profiles[0].model}, one sequence, all layers on the GPU"
    table = grid(title, "GPU / host / engine", "quant.", "tokens/s", f"preempt\n{context:,}", left=2)
    for profile in profiles:
        full = profile.curve[-1]
        place = f"{profile.table.gpu} / {profile.table.host} / {profile.table.engine}"
        speed = number(full.tokens_per_s[0]) if full.fits else "too big"
        totals = dict(zip(profile.contexts, map(sum, zip(*profile.preemption_s.values(), strict=True)), strict=True))
        table.add_row(place, profile.quantization, speed, seconds(totals.get(context)))
    show(console, table)
    console.print(
        f"preempt {context:,}: time to take the model off and to bring it back, with {context:,} tokens of KV."
        " --gpu and --quantization narrow this down to the curves."
    )


def _print_profile(profile: ProfileFacts, console: Console) -> None:
    place = profile.table
    console.print(
        Text(f"{profile.model} {profile.quantization} on {place.gpu} in {place.host} with {place.engine}", style="bold")
    )
    console.print("; ".join(f"{name}: {kinds}" for name, kinds in profile.kinds.items()) + " rows", soft_wrap=True)
    console.print()
    batches = (f"batch {batch}" for batch in BATCHES)
    curve = grid(f"Output tokens/s at a context of {profile.context:,} tokens", "layers", "residency", "GiB", *batches)
    for point in profile.curve:
        curve.add_row(
            f"{point.layers} of {profile.total_layers}",
            share(point.layers / profile.total_layers),
            gib(point.weight_bytes) + ("" if point.fits else " too big"),
            *(number(speed) for speed in point.tokens_per_s),
        )
    totals = [sum(parts) for parts in zip(*profile.preemption_s.values(), strict=True)]
    headers = [text for context in profile.contexts for text in (f"{context:,} tokens", "share")]
    cost = grid("Preempting it with one sequence, by part", "", *headers)
    rows = {**profile.preemption_s, "total": tuple(totals)}
    for name, parts in rows.items():
        cells = zip(parts, totals, strict=True)
        cost.add_row(name, *(text for part, total in cells for text in (seconds(part), share(part / total))))
    show(console, curve, cost)


def print_break_even(points: Sequence[BreakEven], console: Console) -> None:
    """n* of every (model, GPU, host, engine): a row for an engine that restarts and one for each residency."""
    at = points[0]
    heads = [f"{share:.0%}" for share in RESIDENCIES]
    title = f"Break-even n*: output tokens that pay for all layers, batch {at.batch}, {at.context:,} tokens of context"
    table = grid(title, "GPU / host / engine", "model", "engine can", *heads, left=3)
    groups: dict[tuple[str, ...], dict[float, BreakEven]] = {}
    for point in points:
        place = f"{point.gpu} / {point.host} / {point.engine}"
        group = groups.setdefault((place, f"{point.model} {point.quantization}"), {})
        group[min(RESIDENCIES, key=lambda share: abs(share - point.residency))] = point
    for (place, model), found in groups.items():
        ways = {"restart": "restart", "elastic": "grow"} if len(groups) > _MOST_FULL else WAYS
        for which, (word, way) in enumerate(ways.items()):
            cells = [getattr(found[share], way) if share in found else None for share in RESIDENCIES]
            names = (place, model) if which == 0 else ("", "")
            table.add_row(*names, word, *("-" if cell is None else number(cell) for cell in cells))
    show(console, table)
    console.print(
        "Fewer tokens than n* before the next change: serve them at that residency. More: load the rest first. "
        "restart loads the whole model anew, engine start included; sleep wakes a process that still lives; elastic "
        "moves only the missing layers."
    )
