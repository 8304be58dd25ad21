"""Parameters of kernels: declared once, passed by name, and pointers of the wrong type do not compile."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from smc.codegen.cpu.builder import Kernel, const
from smc.codegen.cpu.link import FLAGS, engine_folder
from smc.codegen.cpu.tuning_kit import tuner_folder
from smc.codegen.kernels.signature import Signature
from smc.codegen.kernels.specs import LinearKernel
from smc.ir import F16, integer
from smc.targets import find_target
from tests.codegen.cpu.test_kernels_objects import KERNELS

SIGNATURE = Signature.of("const float *x", "const struct smc_tile *tiles", "float *out", "int32_t begin")


def test_declarations_come_back_as_c() -> None:
    assert str(SIGNATURE) == "const float *x, const struct smc_tile *tiles, float *out, int32_t begin"
    with pytest.raises(AssertionError):
        Signature.of("const void *x")


def test_arguments_are_put_in_order_by_name() -> None:
    values = {"begin": "0", "x": "a + 1", "out": "b", "tiles": "T"}
    assert SIGNATURE.arguments(values) == "a + 1, T, b, 0"
    with pytest.raises(KeyError, match=r"missing: \['out'\], unknown: \['output'\]"):
        SIGNATURE.arguments({"begin": "0", "x": "a", "tiles": "T", "output": "b"})


def test_builders_see_what_is_declared() -> None:
    k = Kernel("kernel", SIGNATURE)
    with pytest.raises(AssertionError, match="no elements of int32"):
        k.pointer("x", "int32")
    with pytest.raises(AssertionError, match="x is only read"):
        k.store(k.pointer("x"), const(0, "int32"), const(0.0, "float32"))
    with pytest.raises(KeyError):
        k.scalar("end")
    assert k.pointer("tiles", "int32").dtype == "int32"
    k.store(k.pointer("out"), const(0, "int32"), const(0.0, "float32"))
    assert [str(p.name) for p in k.function().params] == ["x", "tiles", "out", "begin"]


def call_of(signature: Signature, arguments: dict[str, str], number: int) -> str:
    """A C function that calls a kernel with its own parameters."""
    function = f"int32_t call{number}({signature}) {{ return kernel{number}({signature.arguments(arguments)}); }}"
    return f"int32_t kernel{number}({signature});\n{function}\n"


def errors(source: str, path: Path) -> str:
    """What the compiler says to a part of a host program."""
    path.write_text(f'#include "program.h"\n{source}')
    flags = ["-target", find_target("native").zig_target, *FLAGS, "-I", str(engine_folder()), "-ferror-limit=0"]
    command = [sys.executable, "-m", "ziglang", "cc", *flags, "-c", str(path), "-o", str(path.with_suffix(".o"))]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_swapped_pointers_do_not_compile(tmp_path: Path) -> None:
    signatures = list(dict.fromkeys(spec.signature() for spec in KERNELS))
    straight = [call_of(s, {p.name: p.name for p in s.parameters}, number) for number, s in enumerate(signatures)]
    assert errors("".join(straight), tmp_path / "straight.c") == ""
    swapped, swaps = [], []
    for number, signature in enumerate(signatures):
        pointers = [p for p in signature.parameters if p.pointer]
        a, b = next((a, b) for a, b in itertools.combinations(pointers, 2) if a.type != b.type)
        arguments = {p.name: p.name for p in signature.parameters} | {a.name: b.name, b.name: a.name}
        swapped.append(call_of(signature, arguments, number))
        swaps += [(number, a), (number, b)]
    text = errors("".join(swapped), tmp_path / "swapped.c")
    assert len(re.findall(r"error: incompatible pointer types", text)) == len(swaps), text


def test_the_tuner_calls_matmuls_by_their_parameters() -> None:
    text = (tuner_folder() / "tuner.h").read_text(encoding="utf-8")
    [declared] = re.findall(r"typedef int32_t tuner_linear\((.*?)\);", text, re.DOTALL)
    names = [re.split(r"[ *]", declaration)[-1] for declaration in declared.split(",")]
    for encoding in (F16, integer(4)):
        assert names == [p.name for p in LinearKernel(encoding).signature().parameters]
