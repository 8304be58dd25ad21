"""The benchmark of single kernels: its driver calls them as an artifact does, and counts the same every time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.encodings import ENCODINGS, errors
from benchmarks.kernels import Kernels, Memory, Shape, measurable_levels


@pytest.mark.parametrize("name", ["avxvnni", "avx2"])
def test_products_are_right_and_counted(name: str) -> None:
    levels = [level for level in measurable_levels() if level.name == name]
    if not levels:
        pytest.skip("this CPU has no such level")
    shape = Shape(32, 64, 1, weights=1 << 20)
    encodings = [ENCODINGS["int4 g32"], ENCODINGS["f16"]]
    kernels = Kernels(encodings, levels[-1], shape, lambda fraction: None)
    memory = Memory(1 << 20)
    for encoding in encodings:
        largest, rms = errors(encoding, levels[-1], kernels)
        assert 0 < rms <= largest < 1e-4
        product = kernels.product(encoding, shape, memory, memory, memory)
        assert product.matrices == (1 << 20) // product.workload.bytes > 1
        one, again = kernels.instructions(product), kernels.instructions(product)
        twice = kernels.instructions(kernels.product(encoding, Shape(64, 64, 1), memory, memory, memory))
        if one >= 0:  # single steps are permitted
            assert one == again
            assert one < twice <= 2 * one


def test_memory_may_have_huge_pages() -> None:
    memory = Memory(4 << 20)
    assert memory.address % (2 << 20) == 0
    mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)[1:]
    for mapping in mappings:
        first, end = (int(word, 16) for word in mapping.split()[0].split("-"))
        if first <= memory.address < end:
            flags = mapping.partition("VmFlags:")[2].split()
            assert "hg" in flags, "the kernel got them"
            assert "sh" not in flags, "shared memory has none on most systems"
            break
    else:
        pytest.fail("the memory is nowhere")
