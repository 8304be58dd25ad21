"""Encodings: true sizes, decoding against numpy, and what is refused."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smc.errors import InputError
from smc.ir import (
    BF16,
    F16,
    F32,
    EncodedTensor,
    Encoding,
    encode_float,
    integer,
    matrix_shape,
    parse_encoding,
    rotate,
)
from smc.ir.encoding import Activations, Affine, Floats, Packed, Scales, Transform

NF4 = (
    -1.0,
    -0.6962,
    -0.5251,
    -0.3949,
    -0.2844,
    -0.1848,
    -0.0911,
    0.0,
    0.0796,
    0.1609,
    0.2461,
    0.3379,
    0.4407,
    0.5626,
    0.723,
    1.0,
)


@st.composite
def encodings(draw: st.DrawFn) -> Encoding:
    """Any integer or codebook encoding that an EncodedTensor can hold."""
    bits = draw(st.integers(1, 8))
    options: dict[str, Any] = {
        "bits": bits,
        "group": draw(st.sampled_from([8, 16, 32, 64, 128, "row", "tensor"])),
        "scale_dtype": draw(st.sampled_from(["f16", "bf16", "f32"])),
    }
    decode = draw(st.sampled_from(["middle", "constant", "group", "offset", "levels", "base3"]))
    if decode == "base3":
        del options["bits"]
        options["storage"] = "base3"
    elif decode == "constant":
        options["zero"] = draw(st.integers(0, 2**bits - 1))
    elif decode == "group":
        options["zero"] = "stored"
    elif decode == "offset":
        options["minimum"] = True
    elif decode == "levels":
        options["codebook"] = tuple(draw(st.lists(st.integers(-128, 127), min_size=2**bits, max_size=2**bits)))
    if isinstance(options["group"], int):
        options["super_group"] = draw(st.sampled_from([None, 4, 8]))
        options["signed_codes"] = options["super_group"] is not None and draw(st.booleans())
        if decode == "offset" and options["super_group"] is not None:
            options["minimum"] = draw(st.sampled_from([True, "two-level"]))
    options["permuted"] = draw(st.booleans())
    return Encoding.of(**options)


def random_tensor(encoding: Encoding, rows: int, columns: int, seed: int) -> EncodedTensor:
    """Random codes, scales, zeros, offsets and order; the codes beyond the end of a row are extreme."""
    rng = np.random.default_rng(seed)
    groups, size = encoding.groups(columns), encoding.group_size(columns)
    limit = 3 if encoding.is_base3 else 1 << encoding.bits
    codes = rng.integers(0, limit, (rows, groups * size), dtype=np.uint8)
    codes[:, columns:] = limit - 1
    scale_shape = (1, 1) if encoding.scales.group == "tensor" else (rows, groups)
    scale_codes = None
    if encoding.scales.super_group is not None:
        scale_codes = torch.from_numpy(rng.integers(0, 256, (rows, groups), dtype=np.uint8))
        scale_codes = scale_codes.view(torch.int8) if encoding.scales.signed_codes else scale_codes
        scale_shape = (rows, -(-groups // encoding.scales.super_group))
    return EncodedTensor(
        encoding,
        (rows, columns),
        codes=torch.from_numpy(codes.reshape(rows, groups, size)),
        scales=torch.from_numpy(rng.uniform(0.01, 1, scale_shape).astype(np.float32)),
        scale_codes=scale_codes,
        zeros=torch.from_numpy(rng.integers(0, limit, (rows, groups), dtype=np.uint8))
        if encoding.stores_zeros
        else None,
        offsets=torch.from_numpy(
            rng.normal(size=scale_shape if encoding.has_two_level_minima else (rows, groups)).astype(np.float32)
        )
        if encoding.stores_minima
        else None,
        offset_codes=torch.from_numpy(rng.integers(0, 256, (rows, groups), dtype=np.uint8))
        if encoding.has_two_level_minima
        else None,
        order=torch.from_numpy(rng.permutation(columns).astype(np.int32)) if encoding.transform.permuted else None,
    )


def decode_element(tensor: EncodedTensor, row: int, column: int) -> float:
    """The value of one element, straight from the definition."""
    encoding, columns = tensor.encoding, tensor.shape[1]
    assert tensor.codes is not None
    assert tensor.scales is not None
    stored = column if tensor.order is None else tensor.order.tolist().index(column)
    group, place = divmod(stored, encoding.group_size(columns))
    code = int(tensor.codes[row, group, place])
    if tensor.scale_codes is not None:
        assert encoding.scales.super_group is not None
        scale = float(tensor.scales[row, group // encoding.scales.super_group]) * int(tensor.scale_codes[row, group])
    else:
        scale = float(tensor.scales[0, 0] if encoding.scales.group == "tensor" else tensor.scales[row, group])
    if encoding.has_codebook:
        return scale * encoding.entries[code]
    if tensor.offset_codes is not None:
        assert tensor.offsets is not None and encoding.scales.super_group is not None
        offset = float(tensor.offsets[row, group // encoding.scales.super_group])
        return scale * code + offset * int(tensor.offset_codes[row, group])
    if tensor.offsets is not None:
        return scale * code + float(tensor.offsets[row, group])
    zero = encoding.constant_zero if tensor.zeros is None else int(tensor.zeros[row, group])
    assert isinstance(zero, int)
    return scale * (code - zero)


@given(encodings(), st.integers(1, 3), st.integers(1, 150), st.integers(0, 2**32))
def test_decoding_follows_the_definition(encoding: Encoding, rows: int, columns: int, seed: int) -> None:
    tensor = random_tensor(encoding, rows, columns, seed)
    values = tensor.decode()
    assert values.shape == (rows, columns)
    assert values.dtype == torch.float32
    for row, column in {(0, 0), (rows - 1, columns - 1), (seed % rows, seed % columns), (0, columns // 2)}:
        expected = decode_element(tensor, row, column)
        assert float(values[row, column]) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@given(encodings(), st.integers(1, 3), st.integers(1, 150), st.integers(0, 2**32))
def test_stored_bits_count_every_part(encoding: Encoding, rows: int, columns: int, seed: int) -> None:
    tensor = random_tensor(encoding, rows, columns, seed)
    assert tensor.codes is not None
    assert tensor.scales is not None
    scale_bits = {"f16": 16, "bf16": 16, "f32": 32}[encoding.scales.dtype]
    codes = tensor.codes.numel()
    bits = -(-codes // 5) * 8 if encoding.is_base3 else codes * encoding.bits
    bits += tensor.scales.numel() * scale_bits
    bits += 0 if tensor.scale_codes is None else tensor.scale_codes.numel() * 8
    bits += 0 if tensor.zeros is None else tensor.zeros.numel() * (4 if encoding.bits <= 4 else 8)
    bits += 0 if tensor.offsets is None else tensor.offsets.numel() * scale_bits
    bits += 0 if tensor.offset_codes is None else tensor.offset_codes.numel() * 8
    bits += 0 if tensor.order is None else tensor.order.numel() * 32
    assert encoding.stored_bits((rows, columns)) == bits


@given(encodings())
def test_changing_nothing_gives_the_same_encoding(encoding: Encoding) -> None:
    assert replace(encoding) == encoding
    assert hash(replace(encoding)) == hash(encoding)


@pytest.mark.parametrize(
    ("encoding", "name", "bits"),
    [
        (F32, "f32", 32),
        (F16, "f16", 16),
        (BF16, "bf16", 16),
        (integer(4), "int4.g32", 4.5),  # as Q4_0
        (integer(8), "int8.g32", 8.5),  # as Q8_0
        (integer(4, symmetric=False), "int4.g32.asymmetric", 4 + (16 + 4) / 32),
        (Encoding.of(bits=4, minimum=True), "int4.g32.offset", 5.0),  # as Q4_1
        (Encoding.of(bits=4, zero=7), "int4.g32.zero7", 4.5),
        (Encoding.of(bits=2, zero=1, group=64), "int2.g64.zero1", 2.25),  # as Q2_0
        (integer(4, group=128), "int4.g128", 4 + 16 / 128),
        (integer(8, group="row"), "int8.row", 8 + 16 / 1024),
        (Encoding.of("base3", group="tensor"), "base3.tensor", None),
        (Encoding.of(bits=4, codebook=NF4), "levels16.f32.g32.weight-only", 4.5),
        (Encoding.of(bits=2, codebook=(-8, -1, 1, 8)), "levels4.i8.g32", 2.5),
        (Encoding.of(bits=4, super_group=8), "int4.g32.super8", 4 + 8 / 32 + 16 / 256),
        (Encoding.of(bits=4, activation="none", scale_dtype="f32"), "int4.g32.f32.weight-only", 5.0),
        (integer(8, group="row", activation_group="token"), "int8.row.a8-token", 8 + 16 / 1024),
        (Encoding.of(bits=4, permuted=True, rotation=64), "int4.g32.permuted.rotated64", None),
    ],
)
def test_names_and_bits_a_weight(encoding: Encoding, name: str, bits: float | None) -> None:
    assert str(encoding) == name
    if bits is not None:
        assert encoding.stored_bits((7, 1024)) / (7 * 1024) == bits


def test_padding_of_the_last_group_is_counted() -> None:
    assert integer(4, group=128).groups(576) == 5
    assert integer(4, group=128).stored_bits((1, 576)) == 640 * 4 + 5 * 16
    assert integer(4, group=32).stored_bits((3, 341)) == 3 * (352 * 4 + 11 * 16)


def test_base3_stores_five_codes_a_byte() -> None:
    assert Encoding.of("base3", group="tensor").stored_bits((2, 341)) == -(-682 // 5) * 8 + 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "1 to 8 bits per code, not 0"),
        ({"bits": 9}, "1 to 8 bits per code, not 9"),
        ({"bits": 4, "zero": 16}, "zero 16 is not a code of int4"),
        ({"bits": 4, "zero": 3, "minimum": True}, "only one of zero, minimum and codebook"),
        ({"bits": 4, "group": 12}, "a multiple of 8 columns, not 12"),
        ({"bits": 4, "group": 0}, "a multiple of 8 columns, not 0"),
        ({"bits": 2, "codebook": (0, 1, 2, 3, 4)}, "5 entries of a codebook do not fit int2"),
        ({"storage": "base3", "codebook": (0, 1, 2, 3)}, "4 entries of a codebook do not fit base3"),
        ({"storage": "base3", "zero": 3}, "zero 3 is not a code of base3"),
        ({"bits": 2, "codebook": (0, 1), "zero": 1}, "only one of zero, minimum and codebook"),
        ({"bits": 2, "codebook": (0, 0.5), "grid": "i8"}, "must have whole numbers from -128 to 127"),
        ({"bits": 2, "codebook": (0, 128), "grid": "i8"}, "must have whole numbers from -128 to 127"),
        ({"bits": 2, "codebook": (0, 0.5), "activation": "i8"}, "needs float activations"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Encoding.of(**options)


def test_a_codebook_off_the_int8_grid_takes_float_activations() -> None:
    assert not Encoding.of(bits=4, codebook=NF4).rounds_inputs
    assert Encoding.of(bits=2, codebook=(-2, -1, 1, 2)).rounds_inputs


def test_parts_that_do_not_go_together_are_refused() -> None:
    for parts in (
        (Floats("f16"), Affine(0), Scales("tensor")),
        (Floats("f16"), None, Scales(32)),
        (Floats("f16"), None, Scales("tensor"), Transform(), Activations()),
    ):
        with pytest.raises(InputError, match="an encoding of floats has no codes"):
            Encoding(*parts)
    with pytest.raises(InputError, match="needs a decode part"):
        Encoding(Packed(4), None)


@pytest.mark.parametrize(("encoding", "dtype"), [(F32, torch.float32), (F16, torch.float16), (BF16, torch.bfloat16)])
def test_floats_round_to_nearest_even(encoding: Encoding, dtype: torch.dtype) -> None:
    values = torch.tensor([[1.0, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, -65504.0, 1e-8]])
    encoded = encode_float(values, encoding)
    assert encoded.values is not None
    assert encoded.values.dtype == dtype
    if encoding == F16:
        assert encoded.decode().tolist() == [[1.0, 1.0, 1 + 2**-9, 1 + 2**-8, -65504.0, 0.0]]
    if encoding == BF16:
        assert encoded.decode()[0, 3] == 1.0


def test_f16_overflow_is_refused() -> None:
    with pytest.raises(InputError, match="too large for f16"):
        encode_float(torch.tensor([[70000.0]]), F16)
    assert encode_float(torch.tensor([[70000.0]]), BF16).decode().item() == 70144.0


def test_matrix_shape() -> None:
    assert matrix_shape((5,)) == (1, 5)
    assert matrix_shape((3, 5)) == (3, 5)
    assert matrix_shape((2, 3, 5)) == (6, 5)


@st.composite
def named_encodings(draw: st.DrawFn) -> Encoding:
    """Encodings of which str() says all."""
    bits = draw(st.integers(1, 8))
    zero = draw(st.one_of(st.none(), st.just("stored"), st.integers(0, 2**bits - 1)))
    return Encoding.of(
        bits=bits,
        zero=zero,
        minimum=zero is None and draw(st.booleans()),
        group=draw(st.sampled_from([8, 32, 128, "row", "tensor"])),
        scale_dtype=draw(st.sampled_from(["f16", "bf16", "f32"])),
        super_group=draw(st.sampled_from([None, 8])),
        permuted=draw(st.booleans()),
        rotation=draw(st.sampled_from([None, 64])),
        activation=draw(st.sampled_from(["none", "i8"])),
    )


@given(named_encodings())
def test_an_encoding_can_be_read_from_its_name(encoding: Encoding) -> None:
    assert parse_encoding(str(encoding)) == encoding


def test_names_that_were_read() -> None:
    for encoding in (F32, F16, BF16, Encoding.of("base3"), integer(8, group="row", activation_group="token")):
        assert parse_encoding(str(encoding)) == encoding


NO_ENCODINGS = ["", "f64", "int4", "int9.g32", "int4.g7", "int4.g32.f16", "int4.g32.offset.asymmetric"]


@pytest.mark.parametrize("text", [*NO_ENCODINGS, "int4.g32.zero99", str(Encoding.of(bits=4, codebook=(1, 2, 3)))])
def test_what_names_no_encoding_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_encoding(text)


@given(st.text("base3intgf16.-8xrowzé"))
def test_no_name_does_harm(text: str) -> None:
    with contextlib.suppress(InputError):
        assert str(parse_encoding(text)) == text


@pytest.mark.parametrize("block", [2, 16, 128])
def test_rotate_multiplies_by_a_hadamard_matrix(block: int) -> None:
    matrix = np.ones((1, 1))
    while len(matrix) < block:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    values = np.random.default_rng(0).standard_normal((3, 2 * block))
    expected = values.reshape(3, 2, block) @ matrix / np.sqrt(block)
    rotated = rotate(torch.from_numpy(values).float(), block)
    np.testing.assert_allclose(rotated.numpy(), expected.reshape(3, -1), atol=1e-6)
    np.testing.assert_allclose(rotate(rotated, block).numpy(), values, atol=1e-6)


def test_rotations_that_do_not_fit() -> None:
    for block in (0, 1, 48):
        with pytest.raises(InputError, match="power of two"):
            Encoding.of(bits=4, rotation=block)
    with pytest.raises(InputError, match="multiple of them, not 24 columns"):
        rotate(torch.zeros(1, 24), 16)


def test_rotated_columns_are_decoded() -> None:
    """W x = (W H) (H x): what multiplies the plain input is the stored matrix rotated back, then in order."""
    tensor = random_tensor(Encoding.of(bits=4, rotation=16, permuted=True), 5, 64, 0)
    plain = replace(tensor, encoding=Encoding.of(bits=4), order=None).decode()
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    expected = rotate(x[:, tensor.order.long()], 16) @ plain.T
    torch.testing.assert_close(x @ tensor.decode().T, expected, atol=1e-4, rtol=1e-4)
