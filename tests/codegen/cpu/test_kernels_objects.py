"""What is in the objects of kernels: only the level's instructions, nothing to link against; and in their sources."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smc.codegen
from smc.codegen.cpu.build import build_kernel
from smc.codegen.cpu.builder import Kernel, const, intrinsic
from smc.codegen.kernels.abi import F32_FORM, AttentionShape, Form
from smc.codegen.kernels.signature import Signature
from smc.codegen.kernels.specs import (
    AttentionKernel,
    ElementwiseKernel,
    EmbeddingKernel,
    KernelSpec,
    LayerNormKernel,
    LinearKernel,
    QuantizeTokensKernel,
    RmsNormKernel,
    RopeKernel,
)
from smc.ir import BF16, F16, Encoding, integer
from smc.targets import TARGETS, Level
from tests.codegen.cpu.kernels import compiled
from tests.codegen.encodings import FLOAT_LEVELS, I8_LEVELS

FORMS = (F32_FORM, Form("i8"), Form("i8", sum_group=16))
KERNELS: list[KernelSpec] = [
    LinearKernel(F16),
    LinearKernel(BF16),
    LinearKernel(integer(4)),
    LinearKernel(integer(5, symmetric=False, group=64)),
    LinearKernel(integer(8, group="row", activation_group="token")),
    LinearKernel(Encoding.of(bits=3, minimum=True, group=16)),
    LinearKernel(Encoding.of(bits=4, codebook=I8_LEVELS)),
    LinearKernel(Encoding.of(bits=4, codebook=FLOAT_LEVELS, scale_dtype="bf16")),
    LinearKernel(Encoding.of(bits=2, zero="stored", activation="none")),
    EmbeddingKernel(F16),
    EmbeddingKernel(integer(7, symmetric=False)),
    EmbeddingKernel(Encoding.of(bits=4, codebook=FLOAT_LEVELS)),
    RmsNormKernel(FORMS),
    RmsNormKernel(FORMS, residual=True),
    LayerNormKernel(FORMS),
    *(ElementwiseKernel(op, FORMS) for op in ("add", "mul", "silu", "gated_silu", "copy")),
    *(ElementwiseKernel(op, FORMS, chained=True) for op in ("mul", "silu", "gated_silu")),
    *(ElementwiseKernel(op, FORMS) for op in ("gelu", "gated_gelu_tanh", "relu2")),
    ElementwiseKernel("softcap", FORMS, numbers=("cap",)),
    QuantizeTokensKernel(Form("i8", "token")),
    RopeKernel(AttentionShape(6, 2, 20, "i8", pairs=3, normed=True)),
    AttentionKernel(AttentionShape(6, 2, 64, "f16", pairs=8, normed=True, capped=True)),
    RopeKernel(AttentionShape(6, 2, 64, "f16")),
    RopeKernel(AttentionShape(6, 2, 80, "f32")),
    AttentionKernel(AttentionShape(6, 2, 64, "f16")),
    AttentionKernel(AttentionShape(8, 1, 80, "f32")),
]

LEVELS = TARGETS["x86-64"].levels
# What AVX-512 brings: 512-bit, masks, registers from 16 on, and (EVEX) forms of its own of older instructions.
AVX512 = r"%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|2\d|3[01])\b|\bvpdp|\bvpternlog|\bvmovdq[au](8|16|32|64)\b|\bvrndscale"
# What belongs to AVX-512 but to no level: VBMI, VBMI2, IFMA, BITALG, VPOPCNTDQ, CD, BF16, FP16, GFNI.
NO_LEVEL = r"\bvperm(b|[it]2b)\b|\bvpmultishift|\bvp(comp|exp)ress[bw]|\bvpsh[lr]d|\bvpmadd52|\bvpopcnt|\bvpconflict"
NO_LEVEL += r"|\bvplzcnt|\bv\w*bf16|\bv(add|sub|mul|div|fn?m(add|sub)\d+|sqrt)[ps]h\b|\bvcvt\w+phx|\bvgf2p8|\btdp|%tmm"
# The VEX form of vpdpbusd is AVX-VNNI's, with registers below 16.
AVX_VNNI = AVX512.replace(r"\bvpdp|", r"\bvpdp(?!busds?\b)|")
FOREIGN = {"avx2": f"{AVX512}|{NO_LEVEL}", "avxvnni": f"{AVX_VNNI}|{NO_LEVEL}", "avx512vnni": NO_LEVEL}


def instructions(module: Any) -> list[str]:
    """The lines of a kernel's assembly that hold instructions."""
    lines = module.inspect_source("asm").splitlines()
    return [line.partition("#")[0] for line in lines if re.match(r"\s+[a-z]", line)]


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("spec", KERNELS, ids=lambda spec: spec.name())
def test_instructions_are_the_levels_own(spec: KernelSpec, level: Level) -> None:
    code = instructions(compiled(build_kernel(spec, "kernel", level), level))
    assert len(code) > 20
    assert [line for line in code if re.search(FOREIGN[level.name], line)] == []


def test_foreign_instructions_would_be_seen() -> None:
    best, floor = LEVELS[0], LEVELS[-1]
    code = instructions(compiled(build_kernel(KERNELS[2], "kernel", best), best))
    assert any(re.search(FOREIGN[floor.name], line) for line in code)
    for line in ("vpermb %zmm0, %zmm1, %zmm2", "vpopcntd %ymm0, %ymm1", "vaddph %xmm1, %xmm2, %xmm3"):
        assert re.search(NO_LEVEL, line)
    assert not re.search(NO_LEVEL, "vcvtps2ph $0, %xmm0, %xmm1")


# ---- symbols

SECTION = np.dtype("u4, u4, u8, u8, u8, u8, u4, u4, u8, u8")  # name, type, flags, address, offset, size, link, …
SYMBOL = np.dtype("u4, u1, u1, u2, u8, u8")  # name, info, other, section, value, size
SYMBOL_TABLE = 2


def undefined_symbols(path: Path) -> set[str]:
    """What an ELF64 object wants from elsewhere."""
    data = path.read_bytes()
    [offset], [count] = np.frombuffer(data, "<u8", 1, 0x28), np.frombuffer(data, "<u2", 1, 0x3C)
    sections = np.frombuffer(data, SECTION, count, offset)
    [table] = sections[sections["f1"] == SYMBOL_TABLE]
    names = sections[table["f6"]]["f4"]
    symbols = np.frombuffer(data, SYMBOL, table["f5"] // SYMBOL.itemsize, table["f4"])
    undefined = symbols[(symbols["f3"] == 0) & (symbols["f0"] != 0)]["f0"]
    return {data[names + name : data.index(b"\0", names + name)].decode() for name in undefined}


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_kernels_need_neither_heap_nor_libm(tmp_path: Path, level: Level) -> None:
    for spec in KERNELS:
        compiled(build_kernel(spec, "kernel", level), level).write_to_file(str(tmp_path / "kernel.o"))
        # LLVM makes loops that clear or copy memory into these.
        assert undefined_symbols(tmp_path / "kernel.o") <= {"memset", "memcpy"}, spec


def test_a_call_to_libm_would_be_seen(tmp_path: Path) -> None:
    k = Kernel("calls_sin", Signature.of("float *x"))
    x = k.pointer("x")
    k.store(x, const(0, "int32"), intrinsic("float32", "llvm.sin", x.load(const(0, "int32"))))
    compiled(k, LEVELS[-1]).write_to_file(str(tmp_path / "kernel.o"))
    assert undefined_symbols(tmp_path / "kernel.o") == {"sinf"}


# ---- sources

FORMATS = (
    "int4",
    "int5",
    "q4_0",
    "q4_1",
    "q8_0",
    "q5_",
    "q4_k",
    "q6_k",
    "nf4",
    "fp4",
    "ternary",
    "bitnet",
    "gptq",
    "awq",
)
FORMATS = (*FORMATS, "gguf", "mxfp", "tq1", "tq2", "iq4")


CODEGEN = Path(smc.codegen.__file__).parent
SOURCES = sorted([*CODEGEN.glob("kernels/*.py"), *CODEGEN.glob("cpu/kernels/*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: f"{p.parent.parent.name}-{p.name}")
def test_kernels_know_no_quantization_format_by_name(path: Path) -> None:
    text = path.read_text(encoding="utf-8").lower()
    assert [name for name in FORMATS if name in text] == []


def test_codebooks_of_the_same_size_have_different_names() -> None:
    one, other = (Encoding.of(bits=4, codebook=tuple(range(low, low + 16))) for low in (-8, -7))
    for kind in (LinearKernel, EmbeddingKernel):
        assert kind(one).name() != kind(other).name()
