"""An encoding for device/matrix.cuh: a C++ struct of constants, and the table of a codebook."""

from __future__ import annotations

from smc.codegen.c_literals import c_float
from smc.codegen.kernels.layout import ROW_BLOCK, TILE, span_of
from smc.ir import Encoding

_DTYPES = {"f16": 0, "bf16": 1, "f32": 2}


def encoding_struct(name: str, encoding: Encoding) -> list[str]:
    """The definition of struct `name`."""
    lines = []
    if encoding.has_codebook:
        entries = ", ".join(map(c_float, encoding.entries))
        lines.append(f"SMC_TABLE float {name}_levels[] = {{{entries}}};")
    lines.append(f"struct {name} {{ /* {encoding} */")
    for key, value in _facts(encoding).items():
        kind, text = ("bool", str(value).lower()) if isinstance(value, bool) else ("int", str(value))
        lines.append(f"  static constexpr {kind} {key} = {text};")
    level = f"{name}_levels[code]" if encoding.has_codebook else "0.0f"
    lines.append(f"  SMC_DEVICE_STATIC float level(int32_t code) {{ return {level}; }}")
    return [*lines, "};", ""]


def _facts(encoding: Encoding) -> dict[str, int | bool]:
    if encoding.is_float:
        return {"FLOATS": True, "SCALE": _DTYPES[encoding.float_dtype]}
    group, inputs, span = encoding.scales.group, encoding.input_group, span_of(encoding)
    return {
        "FLOATS": False,
        "BITS": encoding.bits,
        "BASE3": encoding.is_base3,
        "GROUP": max(1, group // TILE) if isinstance(group, int) else 0,
        "HALVES": group == TILE // 2,
        "INPUTS": inputs // TILE if isinstance(inputs, int) else 0,
        "PARTS": encoding.has_partial_sums,
        "ROW_SCALE": encoding.has_row_scale,
        "SPAN": span.tiles if span else 0,
        "SPAN_SCALES": span.scale_bytes if span else 0,
        "TILE_BYTES": ROW_BLOCK * TILE * encoding.bits // 8,
        "SUPER": encoding.scales.super_group or 0,
        "SCALE": _DTYPES[encoding.scales.dtype],
        "STORED_ZEROS": encoding.stores_zeros,
        "ZERO": encoding.constant_zero or 0,
        "ZERO_BITS": encoding.zero_bits,
        "MINIMA": encoding.stores_minima,
        "TWO_LEVEL_MINIMA": encoding.has_two_level_minima,
        "SIGNED_SCALES": encoding.scales.signed_codes,
        "LEVELS": len(encoding.entries),
    }
