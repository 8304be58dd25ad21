"""Random packed matrices and inputs as kernels get them, in memory behind which every access is a fault."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import torch

from smc.codegen.kernels.groups import sum_group
from smc.codegen.kernels.layout import MatrixLayout, padded
from smc.codegen.packing import pack_matrix
from smc.ir import EncodedTensor, Encoding, ceil_div, encode_float
from smc.targets import Level

LIBC = ctypes.CDLL(None, use_errno=True)


def guarded(values: np.ndarray) -> np.ndarray:
    """A copy, aligned to 64 bytes, behind which (rounded up to 64 bytes) every access is a segmentation fault."""
    size = padded(max(values.nbytes, 1), 64)
    whole = padded(size, mmap.PAGESIZE)
    memory = mmap.mmap(-1, whole + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert LIBC.mprotect(ctypes.c_void_p(address + whole), mmap.PAGESIZE, 0) == 0
    copy = np.frombuffer(memory, values.dtype, values.size, whole - size).reshape(values.shape)
    copy[...] = values
    return copy


class Matrix:
    """A packed matrix as kernels get it: codes, scales and zeros in guarded memory, and its values in float64."""

    def __init__(self, tensor: EncodedTensor, family: str = "x86") -> None:
        self.tensor = tensor
        rows, columns = tensor.shape
        self.layout = layout = MatrixLayout(tensor.encoding, rows, columns)
        packed = pack_matrix(tensor, family)
        self.codes = guarded(packed[: layout.codes_bytes])
        self.scales = self.codes
        if layout.scales_bytes:
            self.scales = guarded(packed[layout.scales_offset : layout.scales_offset + layout.scales_bytes])
        self.zeros = guarded(packed[layout.zeros_offset : layout.zeros_offset + layout.zeros_bytes])
        self.values = tensor.decode().numpy().astype(np.float64)


def random_tensor(encoding: Encoding, rows: int, columns: int, seed: int, extreme: bool = False) -> EncodedTensor:
    """Codes of every value (extreme: only the smallest and largest, whole rows alike), scales of both signs."""
    rng = np.random.default_rng(seed)
    if encoding.is_float:
        return encode_float(torch.tensor(rng.standard_normal((rows, columns)), dtype=torch.float32), encoding)
    groups, size = encoding.groups(columns), encoding.group_size(columns)
    count = 3 if encoding.is_base3 else 1 << encoding.bits
    count = len(encoding.entries) if encoding.has_codebook else count
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[encoding.scales.dtype]

    def stored(values: np.ndarray) -> torch.Tensor:
        return torch.tensor(values).to(dtype).float()

    codes, zeros = rng.integers(0, count, (rows, groups, size)), rng.integers(0, count, (rows, groups))
    if extreme:
        codes[...] = (np.arange(rows) % 2 * (count - 1))[:, None, None]
        zeros = zeros % 2 * (count - 1)
    # As the quantizing framework has it: no value but 0 in the padding of the last group.
    scales = stored(rng.uniform(0.001, 0.02, (rows, groups)) * rng.choice([-1, 1], (rows, groups)))
    offsets = stored(rng.standard_normal((rows, groups)) * 0.02) if encoding.stores_minima else None
    scale_codes = offset_codes = None
    if encoding.scales.super_group is not None:
        super_groups = ceil_div(groups, encoding.scales.super_group)
        scales = stored((scales[:, :super_groups] / 100).numpy())
        scale_codes = torch.tensor(rng.integers(0, 256, (rows, groups)), dtype=torch.uint8)
        scale_codes = scale_codes.view(torch.int8) if encoding.scales.signed_codes else scale_codes
        if encoding.has_two_level_minima and offsets is not None:
            offsets = stored((offsets[:, :super_groups] / 100).numpy())
            offset_codes = torch.tensor(rng.integers(0, 256, (rows, groups)), dtype=torch.uint8)
    return EncodedTensor(
        encoding,
        (rows, columns),
        codes=torch.tensor(codes, dtype=torch.uint8),
        scales=scales[:1, :1] if encoding.scales.group == "tensor" else scales,
        scale_codes=scale_codes,
        zeros=torch.tensor(zeros, dtype=torch.uint8) if encoding.stores_zeros else None,
        offsets=offsets,
        offset_codes=offset_codes,
    )


def interleaved(rows: np.ndarray, level: Level, kind: str) -> np.ndarray:
    """Codes [tokens, columns], scales or sums [tokens, n] as a level's kernels have them (activations.py)."""
    if level.family != "arm64":
        return rows
    tokens, width = rows.shape
    full = tokens // 8 * 8
    unit = 32 if kind == "codes" else 1
    blocks = rows[:full].reshape(full // 8, 8, width // unit, unit).transpose(0, 2, 1, 3)  # [block, tile, token, unit]
    if kind == "codes" and level.dot == "smmla":
        blocks = blocks.reshape(*blocks.shape[:2], 4, 2, 4, 8).transpose(
            0, 1, 2, 4, 3, 5
        )  # [.., pair, chunk, token, 8]
    flat = np.concatenate([np.ascontiguousarray(blocks).reshape(-1), rows[full:].reshape(-1)])
    return flat.reshape(rows.shape)


def kernel_inputs(
    encoding: Encoding, level: Level, x: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """A linear kernel's x, x_scales and x_sums for float32 inputs [tokens, columns]; the rounded inputs in float64."""
    tokens, columns = x.shape
    full = np.zeros((tokens, padded(columns, 32)), np.float32)
    full[:, :columns] = x
    if not encoding.rounds_inputs:
        return (guarded(full), guarded(np.zeros(0, np.float32)), guarded(np.zeros(0, np.int32))), x.astype(np.float64)
    token_scale, group = encoding.input_group == "token", encoding.input_group
    codes, scales = quantized(full, full.shape[1] if isinstance(group, str) else group)
    sums = codes.reshape(tokens, -1, sum_group(encoding)).sum(-1, dtype=np.int32)
    by_column = np.repeat(scales, full.shape[1] if isinstance(group, str) else group, axis=1)[:, : full.shape[1]]
    values = codes * by_column.astype(np.float64)
    if not token_scale:
        # Every tile has its scale, where several share one, too.
        scales = np.ascontiguousarray(by_column[:, ::32])
        scales = interleaved(scales, level, "scales")
    laid_out = interleaved(codes, level, "codes"), scales, interleaved(sums, level, "sums")
    return (guarded(laid_out[0]), guarded(laid_out[1]), guarded(laid_out[2])), values[:, :columns]


def quantized(x: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes [tokens, columns] and float32 scales [tokens, groups], by docs/numerics.md."""
    tokens, columns = x.shape
    groups = np.pad(x, ((0, 0), (0, -columns % group))).reshape(tokens, -1, group)
    largest = np.abs(groups).max(-1)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    codes = np.rint(groups * inverse[..., None]).astype(np.int8).reshape(tokens, -1)[:, :columns]
    return np.ascontiguousarray(codes), largest / np.float32(127)
