"""What profile tables there are to choose from, and what they say about a model: data for `python -m sim profile`.

It opens no run and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from pathlib import Path

from sim.common.errors import ProfileError, did_you_mean
from sim.profiles.library import Library, grouped, model_of, table_header, table_rows
from sim.profiles.profile import Profile

# Contexts, in tokens, at which a preemption's cost is shown; batch sizes at which throughput is.
CONTEXTS = (1000, 5000)
BATCHES = (1, 8)
_MOST_STEPS = 9  # rows of a throughput curve


@dataclass(frozen=True)
class TableFacts:
    """One folder of tables: for which (GPU, host, engine), and its models as {model: quantisations}."""

    gpu: str
    host: str
    engine: str
    folder: Path
    models: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class ShareFacts:
    """A point of the curve: `layers` on the GPU, the weight bytes there, and tokens per second at each of BATCHES.

    None: the tables do not go to that batch size. `fits`: whether those weights fit the GPU at all.
    """

    layers: int
    weight_bytes: int
    fits: bool
    tokens_per_s: tuple[float | None, ...]


@dataclass(frozen=True)
class ProfileFacts:
    """A model on one (GPU, host, engine). `preemption_s[part]` has one entry for each of `contexts`, in seconds."""

    model: str
    quantization: str
    table: TableFacts
    total_layers: int
    context: int
    curve: tuple[ShareFacts, ...]
    contexts: tuple[int, ...]
    preemption_s: dict[str, tuple[float, ...]]
    kinds: dict[str, str]


def table_catalogue(folder: Path | None = None) -> list[TableFacts]:
    """Every folder of tables, in order of GPU, host and engine. Raises ProfileError."""
    library = Library(folder)
    found = []
    for path in sorted(library.folder.glob("*/*/table.yaml")):
        header = table_header(path)
        models = grouped(table_rows(path.with_name("switch.csv")), itemgetter("model"))
        offered = {model: tuple(row["quantization"] for row in rows) for model, rows in models.items()}
        found.append(TableFacts(header["gpu"], header["host"], header["engine"], path.parent, offered))
    found.sort(key=attrgetter("gpu", "host", "engine"))
    assert [(t.gpu, t.host, t.engine) for t in found] == library.table_keys()
    return found


def profile_catalogue(
    model: str, gpu: str | None = None, quantization: str | None = None, folder: Path | None = None
) -> list[ProfileFacts]:
    """What the tables say about a model, wherever they have it.

    Raises ProfileError: an unknown model, GPU or quantisation, or no tables for that combination.
    """
    library = Library(folder)
    if gpu is not None:
        library.gpu(gpu)
    known = {name: [q for other, q in library.weights if other == name] for name, _ in library.weights}
    if model not in known:
        raise ProfileError(f"unknown model '{model}'; {did_you_mean(model, known)}")
    if quantization is not None:
        library.model_weights(model, quantization)
    offered = [
        (table, own)
        for table in table_catalogue(folder)
        for own in table.models.get(model, ())
        if gpu in (None, table.gpu)
    ]
    found = [_profile_facts(library, model, own, table) for table, own in offered if quantization in (None, own)]
    if not found:
        have = ", ".join(dict.fromkeys(f"{own} on {table.gpu}" for table, own in offered))
        wanted = " ".join(part for part in (model, quantization) if part) + (f" on {gpu}" if gpu else "")
        raise ProfileError(f"no profile tables for {wanted}; there are: {have or 'none for this GPU'}")
    return found


def _profile_facts(library: Library, model: str, quantization: str, table: TableFacts) -> ProfileFacts:
    profile = library.profile(model, quantization, table.gpu, table.host, table.engine)
    contexts = tuple(context for context in CONTEXTS if context <= profile.longest_context)
    context = contexts[0] if contexts else 0
    curve = _curve(profile, context, library.gpu(table.gpu).memory_bytes)
    costs = _preemption(profile, library, table, contexts)
    kinds = _kinds(table, model, quantization)
    return ProfileFacts(model, quantization, table, profile.weights.layers, context, curve, contexts, costs, kinds)


def _curve(profile: Profile, context: int, memory_bytes: int) -> tuple[ShareFacts, ...]:
    fewest, most = profile.fewest_layers, profile.weights.layers
    steps = min(_MOST_STEPS - 1, most - fewest)
    layers_shown = [fewest + round((most - fewest) * step / steps) for step in range(steps + 1)] if steps else [most]
    found = []
    for layers in layers_shown:
        steps_s = [profile.step_s(layers, n, context) if n <= profile.largest_batch else None for n in BATCHES]
        speeds = tuple(seconds and batch / seconds for batch, seconds in zip(BATCHES, steps_s, strict=True))
        size = profile.weights.gpu_bytes(layers)
        found.append(ShareFacts(layers, size, size <= memory_bytes, speeds))
    return tuple(found)


def _preemption(
    profile: Profile, library: Library, table: TableFacts, contexts: tuple[int, ...]
) -> dict[str, tuple[float, ...]]:
    """Seconds to take a fully resident model off an idle GPU and to bring it back, by part, with one sequence."""
    switch, weights = profile.switch, profile.weights
    gpu, host = library.gpu(table.gpu), library.host(table.host)
    down = min(switch.kv_save_bytes_per_s, gpu.d2h_bytes_per_s, host.d2h_cap_bytes_per_s)
    link = min(gpu.h2d_bytes_per_s, host.h2d_cap_bytes_per_s)
    kv_bytes = [context * weights.kv_bytes_per_token_layer * weights.layers for context in contexts]
    constant = {
        "free": switch.free_s,
        "engine start": switch.start_s,
        "reload": profile.load_s(weights.layers, link) - switch.start_s,
    }
    return {
        "KV save": tuple(size / down for size in kv_bytes),
        **{part: (seconds,) * len(contexts) for part, seconds in constant.items()},
        "KV restore": tuple(size / min(switch.kv_restore_bytes_per_s, link) for size in kv_bytes),
    }


def _kinds(table: TableFacts, model: str, quantization: str) -> dict[str, str]:
    """How the numbers are known, per file: for example decode: 12 published, 24 fitted."""
    found = {}
    for name in ("decode", "prefill", "switch"):
        rows = [row for row in table_rows(table.folder / f"{name}.csv") if model_of(row) == (model, quantization)]
        counts = Counter(row.get("kind", "measured") for row in rows)
        found[name] = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
    return found
