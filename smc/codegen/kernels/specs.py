"""Which kernels there are, as data: a spec says what a kernel computes; a backend builds it for a level."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from smc.codegen.kernels.abi import AttentionShape, Form, Kind, form_for
from smc.codegen.kernels.signature import Signature
from smc.ir import Encoding


class KernelSpec(Protocol):
    """What describes a kernel, a frozen dataclass; codegen/cpu/build.py says what builds it."""

    def name(self) -> str:
        """The kernel's C name."""

    def signature(self) -> Signature:
        """The kernel's C parameters."""


# ---- parts of signatures

BLOCKS = ("int32_t begin", "int32_t end")
"""Which of its blocks a call computes: the last parameters of every kernel."""

MATRIX = ("const uint8_t *codes", "const uint8_t *scales", "const uint8_t *zeros")
"""A packed matrix (layout.py)."""


def results(forms: Sequence[Form]) -> list[str]:
    """Where a result goes in several forms: `out`, and of the form number i codes_i, scales_i and sums_i."""
    declarations = []
    for place, form in enumerate(forms):
        if form.kind == "f32":
            declarations.append("float *out")
        else:
            declarations += [f"int8_t *codes_{place}", f"float *scales_{place}", f"int32_t *sums_{place}"]
    return declarations


GATED = "gated_"
"""The kernel of a gated activation: this, then the activation's name."""

HEAD_NORM = ("const float *norm", "float eps")
"""What norms q or k head by head: the weights, and epsilon."""


def operands(op: str) -> str:
    """The names of an element-wise op's operands."""
    return "ab" if op in ("add", "mul") or op.startswith(GATED) else "a"


def linear_signature(inputs: Kind, argmax: bool = False) -> Signature:
    """The parameters of matmuls whose inputs are of this kind."""
    return Signature.of(
        "const int8_t *x" if inputs == "i8" else "const float *x",
        *("const float *x_scales", "const int32_t *x_sums"),
        *MATRIX,
        "const float *bias",
        "struct smc_argmax *out" if argmax else "float *out",
        *("int32_t tokens", "int32_t columns", "int32_t x_stride", "int32_t out_stride", "int32_t flags"),
        "int32_t prefetch_distance",
        *BLOCKS,
    )


EMBEDDING_SIGNATURE = Signature.of(
    *("const int32_t *tokens", *MATRIX, "float *out"),
    *("int32_t rows", "int32_t columns", "int32_t stride", "float scale"),
    *BLOCKS,
)
"""The parameters of embeddings."""


# ---- specs


@dataclass(frozen=True)
class Tile:
    """How many tokens and rows are in registers at once: the kernel's search space.

    panel: many tokens find weights unpacked (panel.py), else they are unpacked again for each `tokens` tokens.

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
    levels = "" if not encoding.has_codebook else hashlib.sha256(repr(encoding.entries).encode()).hexdigest()[:8]
    return _identifier(f"{encoding}{levels and '.'}{levels}")


def _identifier(text: Any) -> str:
    return "".join(c if c.isalnum() else "_" for c in str(text))


@dataclass(frozen=True)
class LinearKernel:
    """A matmul (cpu/kernels/linear.py). tile: None is the level's default; results are the same bits with every tile.

    argmax: of each token only the largest result is kept, with its row, in the place of all results.
    """

    encoding: Encoding
    tile: Tile | None = None
    argmax: bool = False

    def name(self) -> str:
        """The symbol, one per specialization."""
        tile = "" if self.tile is None else f"_{self.tile}"
        return f"linear_{'argmax_' if self.argmax else ''}{_encoding_name(self.encoding)}{tile}"

    def signature(self) -> Signature:
        """The kernel's C parameters."""
        return linear_signature(form_for(self.encoding).kind, self.argmax)


@dataclass(frozen=True)
class EmbeddingKernel:
    """Rows of a table by tokens (cpu/kernels/embedding.py)."""

    encoding: Encoding

    def name(self) -> str:
        """The symbol, one per specialization."""
        return f"embedding_{_encoding_name(self.encoding)}"

    def signature(self) -> Signature:
        """The kernel's C parameters."""
        return EMBEDDING_SIGNATURE


@dataclass(frozen=True)
class RmsNormKernel:
    """Root-mean-square norm (cpu/kernels/norms.py). residual: one is added to the result."""

    forms: tuple[Form, ...]
    residual: bool = False

    def name(self) -> str:
        """The symbol, one per specialization."""
        return "_".join(["rms_norm", *(["residual"] if self.residual else []), *map(_identifier, self.forms)])

    def signature(self) -> Signature:
        """The kernel's C parameters."""
        sizes = ("int32_t tokens", "int32_t width", "int32_t stride")
        inputs = ("const float *x", "const float *weight", *(["const float *residual"] if self.residual else []))
        return Signature.of(*inputs, *results(self.forms), *sizes, "float eps", *BLOCKS)


@dataclass(frozen=True)
class LayerNormKernel:
    """Layer norm (cpu/kernels/norms.py)."""

    forms: tuple[Form, ...]
    bias: bool = True

    def name(self) -> str:
        """The symbol, one per specialization."""
        return "_".join(["layer_norm", *(["bias"] if self.bias else []), *map(_identifier, self.forms)])

    def signature(self) -> Signature:
        """The kernel's C parameters."""
        sizes = ("int32_t tokens", "int32_t width", "int32_t stride")
        inputs = ("const float *x", "const float *weight", *(["const float *bias"] if self.bias else []))
        return Signature.of(*inputs, *results(self.forms), *sizes, "float eps", *BLOCKS)


@dataclass(frozen=True)
class HeadLayerNormKernel:
    """Layer norm of single heads (cpu/kernels/head_norm.py)."""

    head_dim: int

    def name(self) -> str:
        """The symbol, one per specialization."""
        return f"head_layer_norm_d{self.head_dim}"

    def signature(self) -> Signature:
        """The kernel's C parameters."""
        sizes = ("int32_t tokens", "int32_t heads", "int32_t stride")
        return Signature.of("const float *x", "const float *weight", "float *out", *sizes, "float eps", *BLOCKS)


@dataclass(frozen=True)
class ElementwiseKernel:
    """An element-wise op, of whole rows or of what a chain's linears leave (cpu/kernels/rows.py). numbers: the names of
    those that it takes besides."""

    op: str
    forms: tuple[Form, ...]
    chained: bool = False
    numbers: tuple[str, ...] = ()

    def name(self) -> str:
        """The symbol, one per specialization."""
        return "_".join([*(["chained"] if self.chained else []), self.op, *map(_identifier, self.forms)])

    def signature(self) -> Signature:
        """The kernel's C parameters."""
        kind = "float" if self.chained else "const float"
        inputs = [f"{kind} *a", *(f"const float *{name}" for name in operands(self.op)[1:])]
        tokens = ("int32_t first", "int32_t count") if self.chained else ()
        numbers = [f"float {name}" for name in self.numbers]
        sizes = ("int32_t tokens", "int32_t stride", *numbers, *tokens)
        return Signature.of(*inputs, *results(self.forms), *sizes, *BLOCKS)


@dataclass(frozen=True)
class QuantizeTokensKernel:
    """int8 codes with one scale per token (cpu/kernels/rows.py)."""

    form: Form

    def name(self) -> str:
        """The symbol, one per specialization."""
        return f"quantize_{_identifier(self.form)}"

    def signature(self) -> Signature:
        """The kernel's C parameters."""
        return Signature.of("const float *x", *results([self.form]), "int32_t tokens", "int32_t stride", *BLOCKS)


@dataclass(frozen=True)
class RouteKernel:
    """The choice of experts, and where their rows lie (cpu/kernels/experts.py)."""

    experts: int
    chosen: int
    normalized: bool

    def name(self) -> str:
        """The symbol, one per specialization."""
        return f"route_{self.chosen}_of_{self.experts}{'_normalized' if self.normalized else ''}"

    def signature(self) -> Signature:
        """The kernel's C parameters."""
        written = ("float *weights", "int32_t *groups", "int32_t *rows", "int32_t *places")
        return Signature.of("const float *logits", *written, "int32_t tokens", "int32_t stride", *BLOCKS)


@dataclass(frozen=True)
class DispatchKernel:
    """The rows of an expert's tokens, one after the other (cpu/kernels/experts.py)."""

    forms: tuple[Form, ...]

    def name(self) -> str:
        """The symbol, one per specialization."""
        return "_".join(["dispatch", *map(_identifier, self.forms)])

    def signature(self) -> Signature:
        """The kernel's C parameters."""
        sizes = ("int32_t first", "int32_t tokens", "int32_t stride")
        return Signature.of("const float *x", "const int32_t *rows", *results(self.forms), *sizes, *BLOCKS)


@dataclass(frozen=True)
class CombineKernel:
    """The weighted sum of what a token's experts made (cpu/kernels/experts.py). residual: one is added to it."""

    chosen: int
    residual: bool = False

    def name(self) -> str:
        """The symbol, one per specialization."""
        return f"combine_{'residual_' if self.residual else ''}{self.chosen}"

    def signature(self) -> Signature:
        """The kernel's C parameters."""
        pointers = ("const float *x", "const float *weights", "const int32_t *places")
        residual = ("const float *residual",) if self.residual else ()
        return Signature.of(*pointers, *residual, "float *out", "int32_t weights_stride", "int32_t stride", *BLOCKS)


@dataclass(frozen=True)
class TransformKernel:
    """Columns reordered and rotated (cpu/kernels/transform.py)."""

    permuted: bool
    rotation: int | None

    def name(self) -> str:
        """The symbol, one per specialization."""
        return f"transform{'_permute' if self.permuted else ''}{f'_rotate{self.rotation}' if self.rotation else ''}"

    def signature(self) -> Signature:
        """The kernel's C parameters."""
        pointers = ("const float *x", "const int32_t *order", "float *out")
        return Signature.of(*pointers, "int32_t columns", "int32_t stride", *BLOCKS)


@dataclass(frozen=True)
class RopeKernel:
    """Keys rotated and written, with values, into the cache (cpu/kernels/kv_cache.py)."""

    shape: AttentionShape

    def name(self) -> str:
        """The symbol, one per specialization."""
        return f"rope_cache_{self.shape}"

    def signature(self) -> Signature:
        """The kernel's C parameters."""
        return Signature.of(
            *("const float *k", "const float *v", "const float *rope", "const int32_t *slots"),
            *("const struct smc_tile *tiles", "uint8_t *cache", "uint8_t *scales", "int32_t *beyond"),
            *("int32_t stride", "int64_t page", "int64_t layer"),
            *(HEAD_NORM if self.shape.normed else ()),
            *BLOCKS,
        )


@dataclass(frozen=True)
class AttentionKernel:
    """Attention to one split of the cache (cpu/kernels/attention.py)."""

    shape: AttentionShape

    def name(self) -> str:
        """The symbol, one per specialization."""
        return f"attention_{self.shape}"

    def signature(self) -> Signature:
        """The kernel's C parameters."""
        return Signature.of(
            *("const float *q", "const float *rope", "const uint8_t *cache", "const uint8_t *scales"),
            *("const int32_t *tables", "const struct smc_tile *tiles"),
            *("float *out", "float *partials", "float *scratch"),
            *("int32_t stride", "int64_t page", "int64_t layer", "float scale", "int32_t window", "int32_t splits"),
            *(HEAD_NORM if self.shape.normed else ()),
            *(("float cap",) if self.shape.capped else ()),
            *BLOCKS,
        )


@dataclass(frozen=True)
class MergeKernel:
    """What attention to several splits left, put together (cpu/kernels/attention.py)."""

    shape: AttentionShape

    def name(self) -> str:
        """Its C name: the KV cache's dtype does not matter."""
        shape = self.shape
        return f"merge_h{shape.heads}_kv{shape.kv_heads}_d{shape.head_dim}"

    def signature(self) -> Signature:
        """The kernel's C parameters."""
        pointers = ("const struct smc_tile *tiles", "const float *partials", "float *out", "float *scratch")
        return Signature.of(*pointers, "int32_t stride", "int32_t window", "int32_t splits", *BLOCKS)
