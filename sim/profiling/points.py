"""What a folder of raw measurements holds: one frozen class per CSV file, its columns in order, and how a cell is read.

A cell is checked here for itself, a row for whether its cells go together; what rows mean to each other is
`measured`'s business. Seconds, bytes, GB/s of 1e9. Importers and sim/hardware make these, filling reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from sim.profiles.profile import Weights

OFFLOADS = ("cpu", "stream")
KINDS = ("measured", "published")
MODEL_KINDS = ("measured", "published", "analytic")  # what a model weighs may follow from its configuration


@dataclass(frozen=True)
class MeasuredRow:
    """A row of any file. `where`: "FILE, row N", or what else to call it in an error; not part of what it says."""

    key: ClassVar[tuple[str, ...]] = ()  # the columns that say what was measured
    values: ClassVar[tuple[str, ...]] = ()  # the columns that say what came out; rows of one key must agree in them
    optional: ClassVar[tuple[str, ...]] = ()  # columns that a file may lack

    model: str
    quantization: str
    kind: str
    source: str
    where: str = field(default="", compare=False, kw_only=True)

    @property
    def model_key(self) -> tuple[str, str]:
        return self.model, self.quantization

    def problem(self) -> str | None:
        """What is wrong with the row as a whole, and how to mend it."""
        return None


@dataclass(frozen=True, kw_only=True)
class ModelRow(MeasuredRow):
    """A row of models.csv, as in profiles/models.csv. Bytes."""

    key = ("model", "quantization")

    layers: int
    layer_bytes: int
    head_bytes: int
    kv_bytes_per_token_layer: int
    max_context: int

    @property
    def weights(self) -> Weights:
        sizes = self.layer_bytes, self.head_bytes, self.kv_bytes_per_token_layer
        return Weights(self.model, self.quantization, self.layers, *sizes, self.max_context)


@dataclass(frozen=True, kw_only=True)
class _Timed(MeasuredRow):
    p10_s: float | None = None
    p90_s: float | None = None
    repeats: int | None = None

    def problem(self) -> str | None:
        column = self.values[0]
        seconds = getattr(self, column)
        if self.p10_s is not None and self.p10_s > seconds:
            return f"p10_s {self.p10_s:g} is above {column} {seconds:g}; a median lies between p10_s and p90_s"
        if self.p90_s is not None and self.p90_s < seconds:
            return f"p90_s {self.p90_s:g} is below {column} {seconds:g}; a median lies between p10_s and p90_s"
        return None


@dataclass(frozen=True, kw_only=True)
class _Resident(_Timed):
    """`head`: where the output head was, "gpu" or "host"; empty: by the rule, on the GPU with all L layers only."""

    optional = ("head",)

    offload: str
    layers: int
    head: str = ""

    def head_on_gpu(self, model_layers: int) -> bool:
        """Whether the output head was on the GPU, for a model of so many layers."""
        return self.head == "gpu" if self.head else self.layers == model_layers


@dataclass(frozen=True, kw_only=True)
class DecodePoint(_Resident):
    """One decode iteration of `batch` sequences of mean length `context`, with `layers` on the GPU."""

    key = ("model", "quantization", "offload", "layers", "head", "batch", "context")
    values = ("step_s",)

    batch: int
    context: float
    step_s: float


@dataclass(frozen=True, kw_only=True)
class PrefillPoint(_Resident):
    """One prompt. `chunk_tokens` None: the whole prompt in one iteration. `prompt_tokens` 0: one weight read."""

    key = ("model", "quantization", "offload", "layers", "head", "prompt_tokens", "chunk_tokens")
    values = ("prefill_s",)

    prompt_tokens: int
    chunk_tokens: int | None = None
    prefill_s: float


@dataclass(frozen=True, kw_only=True)
class SwitchPoint(_Timed):
    """One part of preempting a model. `path` is empty for start and free; `tokens`: KV tokens moved."""

    key = ("model", "quantization", "part", "path", "layers", "tokens", "bytes")
    values = ("seconds",)

    part: str
    path: str = ""
    layers: int | None = None
    tokens: int | None = None
    bytes: int | None = None
    seconds: float

    def problem(self) -> str | None:
        moves = self.part in ("reload", "kv_save", "kv_restore")
        if moves and not self.path:
            return f"path is empty; a {self.part} goes over pinned, pageable or disk"
        if not moves and self.path:
            return f"path is '{self.path}'; leave it empty for {self.part}"
        if moves and not self.bytes:
            return f"bytes is empty or 0; say how many bytes the {self.part} moved"
        return super().problem()


@dataclass(frozen=True, kw_only=True)
class BandwidthPoint(MeasuredRow):
    """Bytes per second between host and device; of `cpu` (memory read by CPU layers) and `disk` in h2d_gb_s."""

    key = ("direction", "memory", "bytes")
    values = ("h2d_gb_s", "d2h_gb_s")

    model: str = ""
    quantization: str = ""
    direction: str
    memory: str = ""
    bytes: int | None = None
    h2d_gb_s: float | None = None
    d2h_gb_s: float | None = None
    repeats: int | None = None

    def problem(self) -> str | None:
        needed = {"d2h": ("d2h_gb_s",), "both": ("h2d_gb_s", "d2h_gb_s")}.get(self.direction, ("h2d_gb_s",))
        for column in needed:
            if getattr(self, column) is None:
                return f"{column} is empty; a row of direction {self.direction} needs it"
        if not self.memory and self.direction in ("h2d", "d2h", "both"):
            return "memory is empty; say pinned or pageable"
        return None


@dataclass(frozen=True, kw_only=True)
class ContentionPoint(MeasuredRow):
    """How much slower something runs beside something else: beside_s over alone_s is slow_down. `offload`: how both
    run layers that are not on the GPU."""

    key = (
        *("what", "model", "quantization", "offload", "layers", "batch", "context"),
        *("beside", "beside_model", "beside_layers"),
    )
    values = ("alone_s", "beside_s", "slow_down")
    optional = ("offload",)

    what: str
    offload: str = "cpu"
    layers: int | None = None
    batch: int | None = None
    context: float | None = None
    beside: str
    beside_model: str = ""
    beside_layers: int | None = None
    alone_s: float
    beside_s: float
    slow_down: float
    repeats: int | None = None

    def problem(self) -> str | None:
        quotient = self.beside_s / self.alone_s
        if abs(quotient - self.slow_down) > 0.05 * quotient:
            return f"slow_down is {self.slow_down:g}, but beside_s / alone_s is {quotient:.3g}; mend one of the three"
        return None


@dataclass(frozen=True, kw_only=True)
class MemoryPoint(MeasuredRow):
    """Device memory that an instance took."""

    key = ("model", "quantization", "layers", "batch", "context")
    values = ("bytes_used",)

    layers: int
    batch: int
    context: float
    bytes_used: int


FILES: dict[str, type[MeasuredRow]] = {
    "models.csv": ModelRow,
    "decode.csv": DecodePoint,
    "prefill.csv": PrefillPoint,
    "switch.csv": SwitchPoint,
    "bandwidth.csv": BandwidthPoint,
    "contention.csv": ContentionPoint,
    "memory.csv": MemoryPoint,
}


def _columns(kind: type[MeasuredRow]) -> tuple[str, ...]:
    first, last = (*kind.key, *kind.values), ("p10_s", "p90_s", "repeats", "kind", "source")
    names = [each.name for each in fields(kind)]
    besides = [name for name in names if name not in (*first, *last, "model", "quantization", "where")]
    return (*first, *besides, *(name for name in last if name in names))


# The columns of each file, in the order they are written.
COLUMNS = {kind: _columns(kind) for kind in FILES.values()}
_WORDS = {
    "offload": OFFLOADS,
    "kind": KINDS,
    "head": ("gpu", "host"),
    "part": ("start", "reserve", "reload", "free", "kv_save", "kv_restore"),
    "path": ("pinned", "pageable", "disk"),
    "direction": ("h2d", "d2h", "both", "cpu", "disk"),
    "memory": ("pinned", "pageable"),
    "what": ("decode", "cpu_decode", "load"),
}
_WHOLE_FROM_0 = ("layers", "tokens", "bytes", "prompt_tokens", "beside_layers", "head_bytes")
_WHOLE_FROM_1 = (
    "batch", "layer_bytes", "kv_bytes_per_token_layer", "max_context", "chunk_tokens", "repeats", "bytes_used",
)  # fmt: skip
_FROM_0 = ("context", "p10_s", "p90_s", "seconds")
_ABOVE_0 = ("step_s", "prefill_s", "h2d_gb_s", "d2h_gb_s", "alone_s", "beside_s", "slow_down")


def may_be_empty(kind: type[MeasuredRow], column: str) -> bool:
    """Whether a cell of this column may be empty: what the class gives a default is not always known."""
    return column in {each.name for each in fields(kind) if each.default in (None, "")}


def parse_cell(kind: type[MeasuredRow], column: str, text: str) -> Any:
    """The value of one cell that is not empty. Raises ValueError: what it should be."""
    if column in _WORDS:
        words = MODEL_KINDS if kind is ModelRow and column == "kind" else _WORDS[column]
        if text not in words:
            raise ValueError(f"none of {', '.join(words)}")
        return text
    if column in (*_WHOLE_FROM_0, *_WHOLE_FROM_1):
        plain = text.strip()
        exact = plain.isascii() and plain.isdigit() and len(plain) < 40  # above 2**53 floats are not
        value = int(plain) if exact else _number(text)
        if not 0 <= value < float("inf") or value != int(value):
            raise ValueError("not a whole number at least 0")
        if column in _WHOLE_FROM_1 and not value:
            raise ValueError("not a whole number at least 1")
        return int(value)
    if column in (*_FROM_0, *_ABOVE_0):
        value, above = _number(text), column in _ABOVE_0
        if not 0 <= value < float("inf") or (above and not value):
            raise ValueError(f"not a number {'above' if above else 'at least'} 0")
        return value
    return text


def _number(text: str) -> float:
    plain = text.strip()
    try:  # Python would read 1_000 and other scripts' digits
        return float("nan") if "_" in plain or not plain.isascii() else float(plain)
    except ValueError:
        return float("nan")
