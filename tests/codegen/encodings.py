"""Encodings that the tests of layout and kernels go through: one of every kind, and a strategy for all of them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from smc.ir import BF16, F16, F32, Encoding, integer

I8_LEVELS = (-128, -90, -61, -43, -30, -20, -12, -5, 0, 4, 13, 25, 41, 62, 89, 127)
FLOAT_LEVELS = tuple(v / 8 for v in (-8, -5.5, -4.2, -3.1, -2.3, -1.5, -0.7, 0, 0.6, 1.3, 2, 2.7, 3.5, 4.5, 5.8, 8))

ALL_LEVELS = tuple((37 * i + 11) % 256 - 128 for i in range(256))
ALL_FLOAT_LEVELS = tuple(level / 100 for level in ALL_LEVELS)

ENCODINGS = [
    F32,
    F16,
    BF16,
    *(integer(bits) for bits in range(1, 9)),
    integer(4, symmetric=False),
    integer(8, symmetric=False, group=64),
    integer(3, symmetric=False, group=16),
    Encoding.of(bits=2, zero=1, scale_dtype="bf16"),
    Encoding.of("base3"),
    Encoding.of("base3", group="tensor", activation_group="token"),
    Encoding.of("base3", group=64, zero="stored"),
    Encoding.of("base3", group=128, minimum=True),
    Encoding.of("base3", codebook=(-128, 5, 127), group=16),
    Encoding.of("base3", group=64, activation="none"),
    Encoding.of("base3", codebook=(-1.25, 0.5, 1.75), activation="none"),
    integer(8, group="row", activation_group="token"),
    integer(4, group=96, symmetric=False, activation_group="token"),
    integer(5, group="tensor"),
    Encoding.of(bits=4, minimum=True, scale_dtype="f32"),
    Encoding.of(bits=8, minimum=True, group=16),
    Encoding.of(bits=5, minimum=True, group="row", activation_group="token"),
    Encoding.of(bits=4, codebook=I8_LEVELS),
    Encoding.of(bits=4, codebook=FLOAT_LEVELS, group=64),
    Encoding.of(bits=5, codebook=I8_LEVELS + I8_LEVELS[:5]),
    Encoding.of(bits=8, codebook=ALL_LEVELS, group=64),
    Encoding.of(bits=5, codebook=ALL_FLOAT_LEVELS[:27], group=16),
    Encoding.of(bits=6, codebook=ALL_FLOAT_LEVELS[:40]),
    Encoding.of(bits=4, super_group=8),
    Encoding.of(bits=5, group=16, super_group=16, zero="stored", scale_dtype="f32"),
    Encoding.of(bits=4, group=64, super_group=3, minimum=True),
    Encoding.of(bits=4, super_group=8, minimum="two-level"),
    Encoding.of(bits=2, group=16, super_group=16, minimum="two-level"),
    Encoding.of(bits=6, group=16, super_group=16, signed_codes=True),
    Encoding.of(bits=4, codebook=I8_LEVELS, super_group=8, signed_codes=True),
    Encoding.of(bits=5, super_group=8, minimum="two-level", activation="none"),
    Encoding.of(bits=8, group=96, super_group=2, zero="stored", activation="none", scale_dtype="bf16"),
    Encoding.of(bits=4, activation_group=128),
    Encoding.of(bits=4, group=128, activation_group=128),
    Encoding.of(bits=4, zero="stored", activation_group=64),
    Encoding.of("base3", activation_group=96),
    Encoding.of(bits=2, group=192, activation_group=64, zero="stored"),
    Encoding.of(bits=4, group=64, activation_group=128, minimum=True),
    Encoding.of(bits=3, group="row", activation_group=64),
    Encoding.of(bits=6, group=16, activation_group=96),
    Encoding.of(bits=3, codebook=(-128, 127, 0, 3), group=16, activation="none"),
    Encoding.of(bits=6, activation="none"),
    Encoding.of(bits=4, group=16, zero="stored", activation="none"),
    Encoding.of(bits=8, group="row", minimum=True, activation="none"),
    Encoding.of(bits=1, group="tensor", activation="none"),
]


@st.composite
def encodings(draw: st.DrawFn) -> Encoding:
    """Any encoding that has a packed layout."""
    bits, storage = draw(st.integers(1, 8)), draw(st.sampled_from(["packed", "packed", "packed", "base3"]))
    bits = 2 if storage == "base3" else bits
    kind = draw(st.sampled_from(["constant", "group", "offset", "levels", "float levels"]))
    weight_only = kind == "float levels" or draw(st.booleans())
    group = draw(st.sampled_from([16, 32, 64, 96, 128, "row", "tensor"]))
    # No group of inputs may cut one of weights.
    inputs = [g for g in (32, 64, 96, 128) if not isinstance(group, int) or g % group == 0 or group % g == 0]
    activation_group = 32 if weight_only else draw(st.sampled_from([*inputs, "token"]))
    count = 3 if storage == "base3" else 2**bits
    fields: dict[str, Any] = {"zero": draw(st.integers(0, count - 1))}
    if kind == "group":
        fields = {"zero": "stored"}
    elif kind == "offset":
        fields = {"minimum": True}
    elif "levels" in kind:
        count = min(count, 256 if kind == "levels" else 40)  # many float entries take long to compile
        exact = st.integers(-128, 127)
        level = exact if kind == "levels" else st.floats(-2, 2, width=16, allow_subnormal=False)
        fields = {"codebook": tuple(draw(st.lists(level, min_size=2, max_size=count)))}
        fields["grid"] = "i8" if kind == "levels" else "f16"
    super_group = draw(st.sampled_from([None, None, 2, 8])) if isinstance(group, int) else None
    if super_group is not None and kind == "offset":
        fields["minimum"] = draw(st.sampled_from([True, "two-level"]))
    return Encoding.of(
        storage,
        bits=bits,
        group=group,
        super_group=super_group,
        signed_codes=super_group is not None and draw(st.booleans()),
        scale_dtype=draw(st.sampled_from(["f16", "bf16", "f32"])),
        activation="none" if weight_only else "i8",
        activation_group=activation_group,
        **fields,
    )
