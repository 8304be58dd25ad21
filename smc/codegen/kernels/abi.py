"""What kernels and their callers agree on: shared constants, forms of activations, shapes of attention. Data only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from smc.codegen.kernels.groups import sum_group
from smc.codegen.kernels.layout import TILE
from smc.ir import Encoding, ceil_div

HAS_BIAS, ACCUMULATE, COMPACT = 1, 2, 4
"""Bits of a linear kernel's `flags`: add `bias`; add to what `out` holds (a residual) instead of overwriting it; `out`
has just the rows that the call computes."""

PAGE_TOKENS = 64
"""Tokens of a KV page (SMC_PAGE_TOKENS in the engine's program.h)."""

SPLIT_TOKENS = 256
"""Attention cuts the cache here: every split has a softmax of its own (SMC_SPLIT_TOKENS; docs/numerics.md)."""

TOKEN_BLOCK = 8
"""Tokens by which arm64 interleaves int8 activations (cpu/kernels/activations.py)."""

TILE_TOKENS = 8
"""Tokens of one sequence that attention handles together (SMC_TILE_TOKENS)."""


Kind = Literal["f32", "i8", "i32"]
"""What activations are stored as."""


@dataclass(frozen=True)
class Form:
    """How an activation is handed to its reader: "f32", or int8 codes with scales per group or per token, and sums;
    "i32" are numbers of rows and experts.

    group: 32 columns or a multiple. sum_group: over how many columns the codes are summed, for linears that correct for
    zeros. permuted, rotation: by a `TransformKernel` before; the kernel that rounds tiles rotates blocks of one tile.
    """

    kind: Kind
    group: int | Literal["token"] = 32
    sum_group: int = 32
    permuted: bool = False
    rotation: int | None = None

    @property
    def is_float(self) -> bool:
        """The values as they are, no codes."""
        return self.kind == "f32"

    @property
    def has_scales(self) -> bool:
        """Codes have scales, and sums."""
        return self.kind == "i8"

    def __str__(self) -> str:
        turned = f"_r{self.rotation}" if self.rotation else ""
        return self.kind if not self.has_scales else f"i8_g{self.group}_s{self.sum_group}{turned}"

    @property
    def needs_transform(self) -> bool:
        """Whether the floats must be brought into the matrix's order or basis before they are rounded."""
        return self.permuted or not (self.rotation is None or (self.rotation == TILE and self.has_scales))


F32_FORM, I32_FORM = Form("f32"), Form("i32")


def form_for(encoding: Encoding) -> Form:
    """The form that a linear with weights in this encoding reads."""
    form = F32_FORM
    if encoding.activations is not None:
        form = Form("i8", encoding.activations.group, sum_group(encoding))
    return replace(form, permuted=encoding.transform.permuted, rotation=encoding.transform.rotation)


MOST_ROWS = 24
"""Query rows that attention has in registers at once, at most."""


def rows_per_token(group: int, most: int) -> int:
    """A token's query heads of a group, padded so that passes of at most `most` rows are equally long."""
    pieces = ceil_div(group, most)
    return ceil_div(group, pieces) * pieces


KVDtype = Literal["f16", "f32", "i8"]
"""What K and V are stored as; i8 has a float32 scale for every token and KV head, of K and of V."""


@dataclass(frozen=True)
class AttentionShape:
    """What is fixed for a model's attention: constants in the kernels, for the registers' sake.

    rotary: rotate q and k, or leave them (NoPE layers). pairs: of channels that are rotated, 0: all. normed: the kernel
    norms its q or k head by head before. capped: scores have a soft-cap.
    """

    heads: int
    kv_heads: int
    head_dim: int
    kv_dtype: KVDtype
    rotary: bool = True
    pairs: int = 0
    normed: bool = False
    capped: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", self.pairs or self.head_dim // 2 if self.rotary else 0)

    @property
    def padded_dim(self) -> int:
        """head_dim padded to whole vectors of 16."""
        return ceil_div(self.head_dim, 16) * 16

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
        rotation = "" if 2 * self.pairs == self.head_dim else f"_r{self.pairs}" if self.rotary else "_nope"
        marks = rotation + "_normed" * self.normed + "_capped" * self.capped
        return f"h{self.heads}_kv{self.kv_heads}_d{self.head_dim}_{self.kv_dtype}{marks}"
