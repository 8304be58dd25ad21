"""What kernels ask of a machine: every level answers, and kernels name no instruction themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import smc.codegen.cpu
from smc.codegen.cpu.isa import has_few_registers, isa
from smc.ir import Encoding, integer
from smc.targets import TARGETS, CpuLevel

LEVELS = {level.name: level for target in TARGETS.values() for level in target.levels if isinstance(level, CpuLevel)}
CPU = Path(smc.codegen.cpu.__file__).parent
SOURCES = [path for path in sorted(CPU.rglob("*.py")) if path.name not in ("isa.py", "dot.py")]


def test_codes_are_signed_where_products_are_or_where_unsigned_sums_do_not_fit() -> None:
    nibbles, whole, floats = integer(4), integer(8), Encoding.of(bits=8, activation="none")
    signed = {name: [isa(level).signed_codes(e) for e in (nibbles, whole, floats)] for name, level in LEVELS.items()}
    assert signed["avx512vnni"] == signed["avxvnni"] == [False, False, False]
    assert signed["avx2"] == [False, True, False]
    assert signed["neon"] == signed["dotprod"] == signed["i8mm"] == [True, True, True]


def test_shifts_leave_room_in_int16() -> None:
    ternary = Encoding.of("base3")
    assert isa(LEVELS["neon"]).code_shift(integer(4), signed=True) == 0
    assert isa(LEVELS["dotprod"]).code_shift(integer(4), signed=True) == 4
    assert isa(LEVELS["avxvnni"]).code_shift(ternary, signed=False) == 6
    assert isa(LEVELS["avx2"]).code_shift(ternary, signed=False) == 0


def test_only_avx512_and_arm_have_32_registers() -> None:
    assert {name for name, level in LEVELS.items() if has_few_registers(level)} == {"avx2", "avxvnni"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_kernels_name_no_instruction_set(path: Path) -> None:
    assert not re.search(r"\.dot == |\.dot != |\.dot in |\.registers <", path.read_text(encoding="utf-8"))
