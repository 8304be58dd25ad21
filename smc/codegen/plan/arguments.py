"""The arguments of kernels, as data: each backend writes them in its own way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smc.codegen.kernels.abi import F32_FORM, Form
from smc.ir import RopeTable
from smc.ir.types import Dim


@dataclass(frozen=True, eq=False)
class Buffer:
    """Activations [tokens, width] of one value in one form. Several values may share one, in place.

    routing: a token has a row for every expert that it chose, and rows of the same expert follow one another.
    """

    value: str
    width: Dim
    form: Form = F32_FORM
    routing: Routing | None = None

    @property
    def rows(self) -> int:
        """How many a token has."""
        return self.routing.chosen if self.routing else 1

    def __str__(self) -> str:
        return f"{self.value}:{self.form}"


@dataclass(frozen=True, eq=False)
class Routing:
    """How a step's tokens are shared out among experts. experts: how many there are; chosen: by each token.

    groups: of the experts that are chosen the number, the first row, and how many rows; then zeros. rows: of every row
    the token. places: of every token's choices the row; weights: what each counts.
    """

    experts: int
    chosen: int
    groups: Buffer
    rows: Buffer
    places: Buffer
    weights: Buffer


@dataclass(frozen=True)
class Activation:
    """A buffer's floats or codes, or the scales or sums of its codes."""

    buffer: Buffer
    part: Literal["data", "scales", "sums"] = "data"

    def __str__(self) -> str:
        return str(self.buffer) if self.part == "data" else f"{self.buffer}.{self.part}"


@dataclass(frozen=True)
class Stride:
    """Floats, or codes, from one token's row of a buffer to the next: its padded width."""

    buffer: Buffer

    def __str__(self) -> str:
        return f"stride({self.buffer})"


@dataclass(frozen=True)
class TokenCount:
    """How many tokens a call works on."""

    def __str__(self) -> str:
        return "tokens"


@dataclass(frozen=True)
class FirstRow:
    """The first of the rows that a call works on, where they are those of an expert."""

    def __str__(self) -> str:
        return "first row"


@dataclass(frozen=True)
class Weight:
    """A part of the packed matrix that a call has in a slot."""

    slot: str
    part: Literal["codes", "scales", "zeros", "order"]

    def __str__(self) -> str:
        return f"{self.slot}.{self.part}"


@dataclass(frozen=True)
class WeightSize:
    """Rows (padded to whole blocks) or columns (as they are) of the matrix that a call has in a slot."""

    slot: str
    side: Literal["rows", "columns"]

    def __str__(self) -> str:
        return f"{self.slot}.{self.side}"


@dataclass(frozen=True)
class Vector:
    """The vector that a call has in a slot: a norm's weights, a bias."""

    slot: str

    def __str__(self) -> str:
        return self.slot


@dataclass(frozen=True)
class Number:
    """A constant: an int is an int32, a float a float32."""

    value: int | float

    def __str__(self) -> str:
        return f"{self.value:g}" if isinstance(self.value, float) else str(self.value)


@dataclass(frozen=True)
class Null:
    """A pointer that the kernel does not read."""

    def __str__(self) -> str:
        return "null"


@dataclass(frozen=True)
class StepField:
    """A table or a number of the step, the same for all calls (`struct smc_step` in the engine's program.h)."""

    name: Literal["tokens", "positions", "tiles", "partials", "splits", "beyond"]

    def __str__(self) -> str:
        return f"step.{self.name}"


@dataclass(frozen=True)
class PrefetchDistance:
    """How many bytes ahead of the codes that it reads a matmul prefetches; the engine knows what suits the CPU."""

    def __str__(self) -> str:
        return "prefetch distance"


@dataclass(frozen=True)
class Tiles:
    """The tiles of tokens that attention works on: all of a step, or those of which something is requested."""

    def __str__(self) -> str:
        return "tiles"


@dataclass(frozen=True)
class KvShape:
    """The shape of K and V of layers that share pages. window: cached tokens that a token attends to; 0: all."""

    kv_heads: int
    padded_dim: int
    window: int


@dataclass(frozen=True)
class Cache:
    """The pages of all layers whose K and V have a shape: the bytes of a page, where each sequence has its pages, where
    each token of the step is written; or how many KV heads a page has in front of the call's own."""

    shape: KvShape
    part: Literal["data", "page_bytes", "tables", "slots", "first_head"]

    def __str__(self) -> str:
        return f"cache.{self.part}"


@dataclass(frozen=True)
class Rope:
    """Cosines and sines of the step's tokens by a table; None: nothing is rotated, and nothing read."""

    table: RopeTable | None

    def __str__(self) -> str:
        return "no rope" if self.table is None else f"rope({self.table})"


@dataclass(frozen=True)
class Scratch:
    """Private memory of the thread that runs the call, as much as the kernel needs."""

    def __str__(self) -> str:
        return "scratch"


@dataclass(frozen=True)
class Argmaxes:
    """The largest results so far of each token, for the thread that runs the call (`struct smc_argmax`)."""

    def __str__(self) -> str:
        return "argmaxes"


Argument = (
    Activation
    | Stride
    | TokenCount
    | FirstRow
    | Weight
    | WeightSize
    | Vector
    | Number
    | Null
    | StepField
    | PrefetchDistance
    | Tiles
    | Cache
    | Rope
    | Scratch
    | Argmaxes
)
