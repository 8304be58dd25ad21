"""Which kernels there are, as data: a spec names a kernel and builds it for a level. Importing this needs no tvm."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from smc.codegen.kernels.tiles import Tile, candidate_tiles
from smc.ir import Encoding
from smc.targets import Level

if TYPE_CHECKING:
    from smc.codegen.kernels.builder import Kernel


HAS_BIAS, ACCUMULATE, COMPACT = 1, 2, 4
"""Bits of a linear kernel's `flags`: add `bias`; add to what `out` holds (a residual) instead of overwriting it; `out`
has just the rows that the call computes."""

CHAIN_TOKENS = 96
"""Tokens that go through a chain of linears and an element-wise op together, at most: whole tiles of every level, and
for 32 rows what the first cache has room for."""

CHAIN_FLOATS = 128 * 128
"""Floats of private scratch for what each linear of a chain leaves: fewer tokens by 128 rows and more."""


def chain_tokens(rows: int) -> int:
    """Tokens that go through a chain together by so many rows (a power of two)."""
    return min(CHAIN_TOKENS, CHAIN_FLOATS // rows)


CHUNK_TILES = 8
"""Tiles of 32 columns, of one token after the other, that a block of element-wise work covers."""

PAGE_TOKENS = 64
"""Tokens of a KV page (SMC_PAGE_TOKENS in the engine's program.h)."""

SPLIT_TOKENS = 256
"""Attention cuts the cache here: every split has a softmax of its own (SMC_SPLIT_TOKENS; docs/numerics.md)."""

TILE_TOKENS = 8
"""Tokens of one sequence that attention handles together (SMC_TILE_TOKENS)."""


@dataclass(frozen=True)
class Form:
    """How an activation is handed to its reader: "f32", or int8 codes with scales a group or a token, and sums.

    group: 32 columns or a multiple. sum_group: over how many columns the codes are summed, for linears that correct for
    zeros. permuted, rotation: by a `TransformKernel` before.
    """

    kind: Literal["f32", "i8"]
    group: int | Literal["token"] = 32
    sum_group: int = 32
    permuted: bool = False
    rotation: int | None = None

    def __str__(self) -> str:
        return self.kind if self.kind == "f32" else f"i8_g{self.group}_s{self.sum_group}"


F32_FORM = Form("f32")


def sum_group(encoding: Encoding) -> int:
    """Over how many columns the input sums are taken that correct for zeros."""
    return 16 if encoding.group == 16 else 32


def form_for(encoding: Encoding) -> Form:
    """The form that a linear with weights in this encoding reads."""
    form = F32_FORM
    if encoding.activation == "i8":
        form = Form("i8", encoding.activation_group, sum_group(encoding))
    return replace(form, permuted=encoding.permuted, rotation=encoding.rotation)


MOST_ROWS = 24
"""Query rows that attention has in registers at once, at most."""


def rows_per_token(group: int, most: int) -> int:
    """A token's query heads of a group, padded so that passes of at most `most` rows are equally long."""
    pieces = -(-group // most)
    return -(-group // pieces) * pieces


KVDtype = Literal["f16", "f32", "i8"]
"""What K and V are stored as; i8 has a float32 scale for every token and KV head, of K and of V."""


@dataclass(frozen=True)
class AttentionShape:
    """What is fixed for a model's attention: constants in the kernels, for the registers' sake.

    rotary: rotate q and k (half-split pairs), or leave them (NoPE layers).
    """

    heads: int
    kv_heads: int
    head_dim: int
    kv_dtype: KVDtype
    rotary: bool = True

    @property
    def padded_dim(self) -> int:
        """head_dim padded to whole vectors of 16."""
        return -(-self.head_dim // 16) * 16

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads

    @property
    def element_bytes(self) -> int:
        """Bytes of an element of the cache."""
        return {"f16": 2, "f32": 4, "i8": 1}[self.kv_dtype]

    @property
    def element_dtype(self) -> str:
        """TIR's name for the type of an element of the cache."""
        return {"f16": "float16", "f32": "float32", "i8": "int8"}[self.kv_dtype]

    @property
    def page_scales(self) -> int:
        """Where, in elements from the begin of a head's part of a page, the scales lie: K's [64], then V's."""
        return 2 * PAGE_TOKENS * self.padded_dim

    @property
    def page_head(self) -> int:
        """Elements that one KV head of one layer takes in a page: K, then V, then the scales of int8."""
        return self.page_scales + (2 * PAGE_TOKENS * 4 if self.kv_dtype == "i8" else 0)

    @property
    def state_floats(self) -> int:
        """Floats of a query head's softmax state: 16 sums, its maximum (16 times), and the output."""
        return 32 + self.padded_dim

    @property
    def scratch_floats(self) -> int:
        """Floats of private scratch that attention needs: the queries and states of a tile, probabilities of a pass."""
        rows = max(TILE_TOKENS * rows_per_token(self.group, most) for most in range(1, MOST_ROWS + 1))
        return rows * (self.padded_dim + self.state_floats + 1) + MOST_ROWS * (SPLIT_TOKENS + 3) + SPLIT_TOKENS

    def __str__(self) -> str:
        return f"h{self.heads}_kv{self.kv_heads}_d{self.head_dim}_{self.kv_dtype}{'' if self.rotary else '_nope'}"


def _encoding_name(encoding: Encoding) -> str:
    """For C names; the text of an encoding does not say which levels a codebook has."""
    levels = "" if encoding.levels is None else hashlib.sha256(repr(encoding.levels).encode()).hexdigest()[:8]
    return _identifier(f"{encoding}{levels and '.'}{levels}")


def _identifier(text: Any) -> str:
    return "".join(c if c.isalnum() else "_" for c in str(text))


@dataclass(frozen=True)
class LinearKernel:
    """kernels/linear.py. tile: None is the level's default; results are the same bits with every tile.

    top: of each token only the largest result is kept, with its row, in the place of all results.
    """

    encoding: Encoding
    tile: Tile | None = None
    top: bool = False

    def name(self) -> str:
        """Its C name."""
        tile = "" if self.tile is None else f"_{self.tile}"
        return f"linear_{'top_' if self.top else ''}{_encoding_name(self.encoding)}{tile}"

    def build(self, symbol: str, level: Level) -> Kernel:
        """The kernel for a level."""
        from smc.codegen.kernels.linear import linear_kernel

        return linear_kernel(symbol, self.encoding, level, self.tile, self.top)

    def candidates(self, level: Level) -> dict[str, LinearKernel]:
        """Its search space by name, the default, which is the kernel itself, first."""
        default, *others = candidate_tiles(self.encoding, level)
        return {str(default): self, **{str(tile): replace(self, tile=tile) for tile in others}}


@dataclass(frozen=True)
class EmbeddingKernel:
    """kernels/embedding.py"""

    encoding: Encoding

    def name(self) -> str:
        """Its C name."""
        return f"embedding_{_encoding_name(self.encoding)}"

    def build(self, symbol: str, level: Level) -> Kernel:
        """The kernel for a level."""
        from smc.codegen.kernels.embedding import embedding_kernel

        return embedding_kernel(symbol, self.encoding, level.family)


@dataclass(frozen=True)
class RmsNormKernel:
    """kernels/rows.py: rms_norm_kernel"""

    forms: tuple[Form, ...]

    def name(self) -> str:
        """Its C name."""
        return "_".join(["rms_norm", *map(_identifier, self.forms)])

    def build(self, symbol: str, level: Level) -> Kernel:
        """The kernel for a level."""
        from smc.codegen.kernels.rows import rms_norm_kernel

        return rms_norm_kernel(symbol, self.forms, level)


@dataclass(frozen=True)
class ElementwiseKernel:
    """kernels/rows.py: elementwise_kernel, or chained_kernel"""

    op: str
    forms: tuple[Form, ...]
    chained: bool = False

    def name(self) -> str:
        """Its C name."""
        return "_".join([*(["chained"] if self.chained else []), self.op, *map(_identifier, self.forms)])

    def build(self, symbol: str, level: Level) -> Kernel:
        """The kernel for a level."""
        from smc.codegen.kernels.rows import chained_kernel, elementwise_kernel

        return (chained_kernel if self.chained else elementwise_kernel)(symbol, self.op, self.forms, level)


@dataclass(frozen=True)
class QuantizeTokensKernel:
    """kernels/rows.py: quantize_tokens_kernel"""

    form: Form

    def name(self) -> str:
        """Its C name."""
        return f"quantize_{_identifier(self.form)}"

    def build(self, symbol: str, level: Level) -> Kernel:
        """The kernel for a level."""
        from smc.codegen.kernels.rows import quantize_tokens_kernel

        return quantize_tokens_kernel(symbol, self.form, level)


@dataclass(frozen=True)
class TransformKernel:
    """kernels/transform.py"""

    permuted: bool
    rotation: int | None

    def name(self) -> str:
        """Its C name."""
        return f"transform{'_permute' if self.permuted else ''}{f'_rotate{self.rotation}' if self.rotation else ''}"

    def build(self, symbol: str, level: Level) -> Kernel:
        """The kernel for a level."""
        from smc.codegen.kernels.transform import transform_kernel

        return transform_kernel(symbol, self.permuted, self.rotation)


@dataclass(frozen=True)
class RopeKernel:
    """kernels/kv_cache.py: rope_cache_kernel"""

    shape: AttentionShape

    def name(self) -> str:
        """Its C name."""
        return f"rope_cache_{self.shape}"

    def build(self, symbol: str, level: Level) -> Kernel:
        """The kernel for a level."""
        from smc.codegen.kernels.kv_cache import rope_cache_kernel

        return rope_cache_kernel(symbol, self.shape, level)


@dataclass(frozen=True)
class AttentionKernel:
    """kernels/attention.py: attention_kernel"""

    shape: AttentionShape

    def name(self) -> str:
        """Its C name."""
        return f"attention_{self.shape}"

    def build(self, symbol: str, level: Level) -> Kernel:
        """The kernel for a level."""
        from smc.codegen.kernels.attention import attention_kernel

        return attention_kernel(symbol, self.shape, level)


@dataclass(frozen=True)
class MergeKernel:
    """kernels/attention.py: merge_kernel"""

    shape: AttentionShape

    def name(self) -> str:
        """Its C name: the KV cache's dtype does not matter."""
        shape = self.shape
        return f"merge_h{shape.heads}_kv{shape.kv_heads}_d{shape.head_dim}"

    def build(self, symbol: str, level: Level) -> Kernel:
        """The kernel for a level."""
        from smc.codegen.kernels.attention import merge_kernel

        return merge_kernel(symbol, self.shape)


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
