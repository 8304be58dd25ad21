"""The packed layout: read back by a slow unpacker written from its description, and refused where there is none."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.kernel_inputs import random_tensor
from smc.codegen.kernels.layout import MatrixLayout
from smc.codegen.packing import can_run, check_packable, pack_matrix
from smc.errors import InputError
from smc.ir import BF16, F16, F32, Encoding, integer
from tests.codegen.encodings import ENCODINGS, encodings

WORDS = {"f32": np.uint32, "f16": np.uint16, "bf16": np.uint16}


def floats(words: np.ndarray, dtype: str) -> np.ndarray:
    """Stored words as float32."""
    if dtype == "bf16":
        return (words.astype(np.uint32) << 16).view(np.float32)
    return words.view({"f32": np.float32, "f16": np.float16}[dtype]).astype(np.float32)


def code_at(packed: np.ndarray, encoding: Encoding, tiles: int, row: int, column: int) -> int:
    """One code of a packed matrix for x86."""
    bits = encoding.bits
    tile, quad, byte = column // 32, column % 32 // 4, row % 16 * 4 + column % 4
    if encoding.is_base3:
        vector = ((row // 32 * -(-tiles // 5) + tile // 5) * 2 + row % 32 // 16) * 8 + quad
        fraction = int(packed[vector * 64 + byte]) / 256
        return int(fraction * 3 ** (tile % 5 + 1)) % 3
    vector = ((row // 32 * tiles + tile) * 2 + row % 32 // 16) * bits  # in vectors of 64 bytes: one a bit
    if bits == 8:
        return int(packed[(vector + quad) * 64 + byte])
    code = low = 0
    for width in (4, 2, 1):
        if bits & width:
            per_byte = 8 // width
            piece = int(packed[(vector + quad // per_byte) * 64 + byte]) >> quad % per_byte * width
            code |= (piece & ((1 << width) - 1)) << low
            vector, low = vector + width, low + width
    return code


def taken_apart(stream: np.ndarray, encoding: Encoding, tiles: int) -> tuple[np.ndarray, np.ndarray]:
    """The codes alone, and the scales, then the offsets, of scales that lie before the tiles that they are for."""
    assert isinstance(encoding.scales.group, int)
    size = 64 * np.dtype(WORDS[encoding.scales.dtype]).itemsize if encoding.scales.group == 16 else 0
    size = size or 32 * np.dtype(WORDS[encoding.scales.dtype]).itemsize
    codes, scales, offsets, place = [], [], [], 0
    while place < len(stream):
        for tile in range(tiles):
            if tile * 32 % encoding.scales.group == 0 or encoding.scales.group == 16:
                for part in (scales, offsets)[: 1 + encoding.stores_minima]:
                    part.append(stream[place : place + size])
                    place += size
            codes.append(stream[place : place + 128 * encoding.bits])
            place += 128 * encoding.bits
    assert place == len(stream)
    return np.concatenate(codes), np.concatenate(scales + offsets)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(encodings(), st.integers(1, 40), st.integers(1, 140), st.integers(0, 9))
def test_packed_codes_scales_and_zeros_are_where_they_belong(
    encoding: Encoding, rows: int, columns: int, seed: int
) -> None:
    tensor = random_tensor(encoding, rows, columns, seed)
    layout, packed = MatrixLayout(encoding, rows, columns), pack_matrix(tensor, "x86")
    assert packed.nbytes == layout.total_bytes
    assert layout.scales_offset % 64 == layout.zeros_offset % 64 == packed.nbytes % 64 == 0
    assert tensor.codes is not None and tensor.scales is not None
    rng = np.random.default_rng(seed)
    size, tiles = encoding.group_size(columns), -(-columns // 32)
    groups = 1 if isinstance(encoding.scales.group, str) else -(-tiles * 32 // size)
    padded_rows = -(-rows // 32) * 32
    word = WORDS[encoding.scales.dtype]
    per_scale = encoding.scales.super_group or 1
    codes, stored = packed, packed[layout.scales_offset :][: layout.scales_bytes]
    if encoding.is_packed and encoding.scales.super_group is None and isinstance(encoding.scales.group, int):
        codes, stored = taken_apart(packed[: layout.codes_bytes], encoding, tiles)
    scales = floats(stored.view(word), encoding.scales.dtype)
    count = padded_rows * -(-groups // per_scale)
    scales, offsets = scales[:count].reshape(padded_rows // 32, -1, 32), scales[count:]
    zeros = packed[layout.zeros_offset :][: layout.zeros_bytes]
    scale_codes = None
    if encoding.scales.super_group is not None:
        scale_codes = zeros[: padded_rows * groups].reshape(-1, groups, 32)
        zeros = zeros[padded_rows * groups :]
    for row, column in zip(rng.integers(0, rows, 50), rng.integers(0, columns, 50), strict=True):
        group, block, lane = column // size, row // 32, row % 32
        assert code_at(codes, encoding, tiles, row, column) == tensor.codes[row, group, column % size]
        assert scales[block, group // per_scale, lane] == tensor.scales.expand(rows, -1)[row, group // per_scale]
        if scale_codes is not None:
            assert tensor.scale_codes is not None
            assert scale_codes[block, group, lane] == int(tensor.scale_codes[row, group]) % 256
        if tensor.offset_codes is not None:
            assert tensor.offsets is not None
            minimum = offsets.reshape(scales.shape)[block, group // per_scale, lane]
            assert minimum == tensor.offsets[row, group // per_scale]
            assert zeros.reshape(-1, groups, 32)[block, group, lane] == tensor.offset_codes[row, group]
        elif encoding.stores_minima:
            assert tensor.offsets is not None
            assert offsets.reshape(-1, groups, 32)[block, group, lane] == tensor.offsets[row, group]
        if encoding.stores_zeros:
            assert tensor.zeros is not None
            if encoding.bits > 4:
                zero = zeros.reshape(-1, groups, 32)[block, group, lane]
            else:
                zero = zeros.reshape(-1, -(-groups // 2), 32)[block, group // 2, lane] >> group % 2 * 4 & 15
            assert zero == tensor.zeros[row, group]
    for stored in (scales, offsets.reshape(padded_rows // 32, -1, 32)):
        assert not stored.transpose(0, 2, 1).reshape(padded_rows, -1)[rows:].any()


@pytest.mark.parametrize("encoding", [F32, F16, BF16], ids=str)
def test_packed_floats(encoding: Encoding) -> None:
    tensor = random_tensor(encoding, 35, 7, 0)
    packed = pack_matrix(tensor, "x86")[: MatrixLayout(encoding, 35, 7).codes_bytes]
    values = floats(packed.view(WORDS[encoding.float_dtype]), encoding.float_dtype).reshape(2, 7, 32)
    rows = values.transpose(0, 2, 1).reshape(64, 7)
    np.testing.assert_array_equal(rows[:35], tensor.decode().numpy())
    assert not rows[35:].any()


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_a_matrix_without_padding_takes_the_bits_of_its_encoding(encoding: Encoding) -> None:
    rows, columns = 64, 3840  # whole groups of every size, and fives of tiles
    layout = MatrixLayout(encoding, rows, columns)
    bits = 8 * (layout.codes_bytes + layout.scales_bytes + layout.zeros_bytes)
    scale_bits = 8 * np.dtype(WORDS[encoding.scales.dtype]).itemsize
    # One scale for everything is repeated in every row.
    repeated = (rows - 1) * scale_bits if encoding.scales.group == "tensor" and not encoding.is_float else 0
    assert bits == encoding.stored_bits((rows, columns)) + repeated
    assert layout.total_bytes * 8 == bits  # and the parts need no padding between them


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"bits": 4, "group": "row", "super_group": 8}, "two-level scales with one scale per row"),
        ({"bits": 4, "group": 48}, "groups of 48"),
        ({"bits": 4, "group": 8}, "groups of 8"),
        ({"bits": 4, "activation_group": 48}, "activation groups of 48"),
        ({"bits": 4, "group": 96, "activation_group": 64}, "activation groups of 64 that cut groups of 96"),
    ],
)
def test_encodings_without_a_layout_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        check_packable(Encoding.of(**fields))
    assert re.search(reason, can_run(Encoding.of(**fields)) or "")


def test_a_refused_encoding_is_not_packed() -> None:
    with pytest.raises(InputError, match="groups of 8"):
        pack_matrix(random_tensor(integer(4, group=8), 3, 16, 0), "x86")


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
@pytest.mark.parametrize("family", ["x86", "arm64", "cuda"])
def test_rows_are_packed_some_at_a_time(monkeypatch: pytest.MonkeyPatch, encoding: Encoding, family: str) -> None:
    columns = 256 if encoding.transform.rotation else 341
    tensor = random_tensor(encoding, 150, columns, 0)
    whole = pack_matrix(tensor, family)
    monkeypatch.setattr("smc.codegen.packing.CHUNK_WEIGHTS", 70 * columns)
    assert np.array_equal(pack_matrix(tensor, family), whole)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_a_stack_is_its_matrices_one_after_the_other(encoding: Encoding) -> None:
    columns = 256 if encoding.transform.rotation else 70
    tensor = random_tensor(encoding, 3 * 41, columns, 0)
    stack = replace(tensor, shape=(3, 41, columns))
    if stack.values is not None:
        stack = replace(stack, values=stack.values.view(3, 41, columns))
    apart = [tensor.part(slice(41 * index, 41 * (index + 1))) for index in range(3)]
    assert np.array_equal(pack_matrix(stack, "x86"), np.concatenate([pack_matrix(part, "x86") for part in apart]))
    assert stack.decode().equal(torch.stack([part.decode() for part in apart]))
