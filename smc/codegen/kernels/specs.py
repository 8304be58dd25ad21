"""Which kernels there are, as data: a spec says what a kernel computes; a backend builds it for a level."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from smc.codegen.kernels.abi import AttentionShape, Form
from smc.ir import Encoding


@dataclass(frozen=True)
class Tile:
    """How many tokens and rows are in registers at once: the kernel's search space.

    panel: many tokens find weights unpacked (panel.py), else they are unpacked for each `tokens` tokens anew.

    rows: a multiple of the level's lanes that divides 32. Tokens that do not fill a tile are computed a third of it
    at a time, then one by one with all 32 rows of a block. On arm64, where int8 activations are interleaved by 8
    tokens, that many are in registers and those left over go one by one; tokens, a multiple of 8, says for how many a
    piece of the weights stays there, the results being in cache.
    """

    tokens: int
    rows: int
    panel: bool = False

    def __str__(self) -> str:
        return f"{self.tokens}x{self.rows}{'_panel' if self.panel else ''}"


def _encoding_name(encoding: Encoding) -> str:
    """For C names; the text of an encoding does not say which levels a codebook has."""
    levels = "" if encoding.levels is None else hashlib.sha256(repr(encoding.levels).encode()).hexdigest()[:8]
    return _identifier(f"{encoding}{levels and '.'}{levels}")


def _identifier(text: Any) -> str:
    return "".join(c if c.isalnum() else "_" for c in str(text))


@dataclass(frozen=True)
class LinearKernel:
    """A matmul (cpu/kernels/linear.py). tile: None is the level's default; results are the same bits with every tile.

    top: of each token only the largest result is kept, with its row, in the place of all results.
    """

    encoding: Encoding
    tile: Tile | None = None
    top: bool = False

    def name(self) -> str:
        """Its C name."""
        tile = "" if self.tile is None else f"_{self.tile}"
        return f"linear_{'top_' if self.top else ''}{_encoding_name(self.encoding)}{tile}"


@dataclass(frozen=True)
class EmbeddingKernel:
    """Rows of a table by tokens (cpu/kernels/embedding.py)."""

    encoding: Encoding

    def name(self) -> str:
        """Its C name."""
        return f"embedding_{_encoding_name(self.encoding)}"


@dataclass(frozen=True)
class RmsNormKernel:
    """Root-mean-square norm (cpu/kernels/rows.py)."""

    forms: tuple[Form, ...]

    def name(self) -> str:
        """Its C name."""
        return "_".join(["rms_norm", *map(_identifier, self.forms)])


@dataclass(frozen=True)
class ElementwiseKernel:
    """An element-wise op, of whole rows or of what a chain's linears leave (cpu/kernels/rows.py)."""

    op: str
    forms: tuple[Form, ...]
    chained: bool = False

    def name(self) -> str:
        """Its C name."""
        return "_".join([*(["chained"] if self.chained else []), self.op, *map(_identifier, self.forms)])


@dataclass(frozen=True)
class QuantizeTokensKernel:
    """int8 codes with one scale per token (cpu/kernels/rows.py)."""

    form: Form

    def name(self) -> str:
        """Its C name."""
        return f"quantize_{_identifier(self.form)}"


@dataclass(frozen=True)
class TransformKernel:
    """Columns reordered and rotated (cpu/kernels/transform.py)."""

    permuted: bool
    rotation: int | None

    def name(self) -> str:
        """Its C name."""
        return f"transform{'_permute' if self.permuted else ''}{f'_rotate{self.rotation}' if self.rotation else ''}"


@dataclass(frozen=True)
class RopeKernel:
    """Keys rotated and written, with values, into the cache (cpu/kernels/kv_cache.py)."""

    shape: AttentionShape

    def name(self) -> str:
        """Its C name."""
        return f"rope_cache_{self.shape}"


@dataclass(frozen=True)
class AttentionKernel:
    """Attention to one split of the cache (cpu/kernels/attention.py)."""

    shape: AttentionShape

    def name(self) -> str:
        """Its C name."""
        return f"attention_{self.shape}"


@dataclass(frozen=True)
class MergeKernel:
    """What attention to several splits left, put together (cpu/kernels/attention.py)."""

    shape: AttentionShape

    def name(self) -> str:
        """Its C name: the KV cache's dtype does not matter."""
        shape = self.shape
        return f"merge_h{shape.heads}_kv{shape.kv_heads}_d{shape.head_dim}"


KernelSpec = (
    LinearKernel
    | EmbeddingKernel
    | RmsNormKernel
    | ElementwiseKernel
    | QuantizeTokensKernel
    | TransformKernel
    | RopeKernel
    | AttentionKernel
    | MergeKernel
)
