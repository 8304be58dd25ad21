"""`EncodedTensor`: an unpacked tensor in its encoding, and what decodes and rotates it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from smc.errors import InputError
from smc.ir.encoding import Affine, Codebook, Encoding, Minimum, matrix_shape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EncodedTensor:
    """An unpacked tensor in its encoding: quantizers make it, the packer and the reference read it.

    Floats: `values` in the encoding's dtype, in `shape`. Otherwise, with [rows, columns] = matrix_shape(shape):
    codes: uint8 [rows, groups, group_size]; columns after the row's end may have any code and are never decoded.
    scales: float32 [rows, groups], every value representable in the scales' dtype ([1, 1] where group is "tensor").
    scale_codes: uint8 (int8 where they are signed) [rows, groups] where scales have two levels; `scales` is then [rows,
    super-groups]. zeros: uint8 [rows, groups]. offsets: float32 [rows, groups]; with two levels they are [rows,
    super-groups], and offset_codes uint8 [rows, groups]. order: int32 [columns] stored-position → column; of a stack
    of matrices it may be [count, columns].
    """

    encoding: Encoding
    shape: tuple[int, ...]
    values: Tensor | None = None
    codes: Tensor | None = None
    scales: Tensor | None = None
    scale_codes: Tensor | None = None
    zeros: Tensor | None = None
    offsets: Tensor | None = None
    offset_codes: Tensor | None = None
    order: Tensor | None = None

    def group_scales(self) -> Tensor:
        """float32 [rows, groups]: the scale of every group, two levels multiplied out."""
        assert self.scales is not None and self.codes is not None
        if self.scale_codes is not None:
            return self._multiplied_out(self.scales, self.scale_codes)
        rows, groups, _ = self.codes.shape
        return self.scales.expand(rows, groups)

    def group_offsets(self) -> Tensor | None:
        """float32 [rows, groups]: the offset of every group, two levels multiplied out; None: there are none."""
        if self.offset_codes is None:
            return self.offsets
        assert self.offsets is not None
        return self._multiplied_out(self.offsets, self.offset_codes)

    def _multiplied_out(self, floats: Tensor, codes: Tensor) -> Tensor:
        """Codes [rows, groups] times the float of their super-group."""
        assert self.encoding.scales.super_group is not None
        outer = floats.repeat_interleave(self.encoding.scales.super_group, dim=1)[:, : codes.shape[1]]
        return outer * codes.float()

    def matrix(self, index: int) -> EncodedTensor:
        """One of the matrices of a stack [count, rows, columns], as a tensor of its own."""
        rows = self.shape[-2]
        found = self.part(slice(index * rows, (index + 1) * rows))
        has_orders = found.order is not None and found.order.dim() > 1
        return replace(found, order=found.order[index]) if has_orders and found.order is not None else found

    def part(self, rows: slice) -> EncodedTensor:
        """Some rows, those of a stack one matrix after the other, as a matrix of their own."""
        count, columns = matrix_shape(self.shape)
        chosen = range(count)[rows]

        def some(part: Tensor | None) -> Tensor | None:
            return None if part is None else part[rows]

        return replace(
            self,
            shape=(len(chosen), columns),
            values=None if self.values is None else self.values.reshape(count, columns)[rows],
            codes=some(self.codes),
            scales=self.scales if self.encoding.scales.group == "tensor" else some(self.scales),
            scale_codes=some(self.scale_codes),
            zeros=some(self.zeros),
            offsets=some(self.offsets),
            offset_codes=some(self.offset_codes),
        )

    def decode(self) -> Tensor:
        """The float32 values, in `shape`."""
        import torch

        if self.values is not None:
            return self.values.to(torch.float32)
        assert self.codes is not None
        encoding, scales = self.encoding, self.group_scales()[..., None]
        match encoding.decode:
            case Codebook(entries):
                values = scales * torch.tensor(entries, dtype=torch.float32)[self.codes.int()]
            case Minimum():
                offsets = self.group_offsets()
                assert offsets is not None
                values = scales * self.codes.float() + offsets[..., None]
            case Affine(int(zero)):
                values = scales * (self.codes.float() - zero)
            case _:
                assert self.zeros is not None
                values = scales * (self.codes.float() - self.zeros.float()[..., None])
        rows, columns = matrix_shape(self.shape)
        values = values.reshape(rows, -1)[:, :columns]
        if encoding.transform.rotation is not None:
            values = rotate(values, encoding.transform.rotation)  # which undoes itself
        if self.order is not None:
            # Of a stack, every matrix may have its own.
            order = self.order.long().view(-1, 1, columns)
            matrices = values.view(len(order), -1, columns)
            values = torch.empty_like(matrices).scatter_(2, order.expand_as(matrices), matrices)
        return values.reshape(self.shape)


def rotate(values: Tensor, block: int) -> Tensor:
    """float32 [n, columns], every `block` columns multiplied by the Hadamard matrix in natural order over its root.

    First times 1 / sqrt(block), then sums and differences of columns 1, 2, 4 … apart. It is its own inverse, apart from
    rounding. InputError if `block` does not divide the columns.
    """
    import torch

    count, columns = values.shape
    if columns % block:
        raise InputError(f"a rotation of {block} columns at a time needs a multiple of them, not {columns} columns")
    result, half = values * torch.tensor(block**-0.5, dtype=torch.float32), 1
    while half < block:
        pairs = result.reshape(count, -1, 2, half)
        result = torch.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), dim=2)
        half *= 2
    return result.reshape(count, columns)


def encode_float(values: Tensor, encoding: Encoding) -> EncodedTensor:
    """Floats in another float encoding, rounded to nearest even; InputError if f16 overflows."""
    import torch

    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[encoding.float_dtype]
    converted = values.to(dtype)
    if dtype == torch.float16 and not torch.isfinite(converted).all():
        raise InputError("a weight is too large for f16 (beyond 65504): use bf16 or f32")
    return EncodedTensor(encoding, tuple(values.shape), values=converted)
