"""Matmul kernels by themselves: built as an artifact has them, called through ctypes, timed by a small driver."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import POINTER, c_int32, c_int64, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smc.cli.doctor import read_cpuinfo
from smc.codegen.cpu.link import FLAGS, engine_folder
from smc.codegen.cpu.tuning import load_tuning
from smc.codegen.cpu.tuning_kit import tuner_folder, workloads
from smc.codegen.kernels.layout import ROW_BLOCK, MatrixLayout
from smc.codegen.kernels.specs import LinearKernel
from smc.codegen.objects import KernelObject, build_kernels, write_listings
from smc.codegen.plan.work import padded_width
from smc.ir import Encoding
from smc.targets import TARGETS, Level

DRIVER = Path(__file__).with_name("kernels_driver.c")
X86_64 = TARGETS["x86-64"]
HUGE_PAGE = 2 << 20


class Workload(ctypes.Structure):
    """struct tuner_workload of smc/runtime/tuner/tuner.h."""

    _fields_ = [
        *((name, c_int32) for name in ("rows", "columns", "tokens", "padded_rows", "x_stride")),
        *((name, c_uint64) for name in ("scales_offset", "zeros_offset", "bytes")),
    ]


class Product(ctypes.Structure):
    """struct product of the driver."""

    _fields_ = [
        *((name, c_void_p) for name in ("linear", "x", "x_scales", "x_sums", "weights", "out")),
        ("workload", Workload),
        *((name, c_int32) for name in ("matrices", "begin", "end", "prefetch_distance")),
    ]


@dataclass(frozen=True)
class Shape:
    """A matrix [rows, columns] by so many tokens; weights: bytes of the matrices that alternate."""

    rows: int
    columns: int
    tokens: int
    weights: int = 0

    @property
    def macs(self) -> int:
        """Multiply-adds of one product."""
        return self.rows * self.columns * self.tokens


def _cpu_features() -> set[str]:
    """What this CPU has, in LLVM's names."""
    return set(read_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8"))[1])


def measurable_levels() -> list[Level]:
    """The levels that this CPU has; of AVX-VNNI only the instructions need to be there, in AVX-512's encoding."""
    features = _cpu_features()
    if features >= {"avx512vl", "avx512vnni"}:
        features.add("avxvnni")
    return [level for level in X86_64.levels if set(level.features) <= features]


def _measurable_files(objects: Sequence[KernelObject], level: Level, folder: Path) -> list[Path]:
    """What to link: the objects, or, where AVX-VNNI is not there, their listings in `folder` with the same instructions
    on the same registers in AVX-512's encoding."""
    if "avxvnni" not in level.features or "avxvnni" in _cpu_features():
        return [o.path for o in objects]
    write_listings(objects, X86_64, folder, ["asm"])
    files = [folder / f"{o.symbol}.s" for o in objects]
    for file in files:
        file.write_text(file.read_text(encoding="utf-8").replace("{vex}", "{evex}"), encoding="utf-8")
    return files


class Memory:
    """Random words in pages of 2 MiB, as the engine has its weights, that are harmless in every role.

    As codes they are anything; read as f16, bf16 or f32 they are normal numbers of both signs whose products are
    normal, too, for others would take longer.
    """

    def __init__(self, size: int) -> None:
        # Private: what processes may share, as Python would have it, gets small pages.
        self._map = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        first = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        offset = -first % HUGE_PAGE
        self.address, self.size = first + offset, size
        words = np.frombuffer(self._map, np.uint16, size // 2, offset)
        rng = np.random.default_rng(0)
        for chunk in np.array_split(words, max(1, size >> 24)):
            chunk[:] = rng.integers(0, 1 << 16, chunk.size, np.uint16) & 0x83FF | 0x2C00


def load_c(source: Path, *arguments: str) -> ctypes.CDLL:
    """A C file, compiled as the engine is and loaded; arguments: more of the compiler's, such as objects to link."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "library.so"
        command = [sys.executable, "-m", "ziglang", "cc", "-target", X86_64.zig_target, "-shared", *FLAGS]
        command += ["-fvisibility=default", *arguments, str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(library))


def wall_seconds(pool: ThreadPoolExecutor, function: Callable[..., int], parts: Iterable[tuple[Any, ...]]) -> float:
    """Until all threads have returned from the function, each with its part of the arguments."""
    begin = time.perf_counter()
    for future in [pool.submit(function, *part) for part in parts]:
        future.result()
    return time.perf_counter() - begin


class Kernels:
    """The matmul kernels of encodings on one level, with the tiles that `smc compile` chooses on this machine."""

    def __init__(
        self, encodings: Sequence[Encoding], level: Level, shape: Shape, progress: Callable[[float], None]
    ) -> None:
        tuning = load_tuning("native")
        measured = workloads((encoding, shape.rows, shape.columns) for encoding in encodings)
        specs = [tuning.choose(LinearKernel(encoding), level, measured).spec for encoding in encodings]
        with tempfile.TemporaryDirectory() as folder:
            objects = build_kernels([(spec, level) for spec in specs], X86_64, Path(folder), progress)
            files = _measurable_files(objects, level, Path(folder))
            # Of C's options listings take few.
            options = ["-I", str(tuner_folder()), "-Wno-unused-command-line-argument"]
            self._library = load_c(DRIVER, *options, *map(str, [engine_folder() / "cpu.c", *files]))
        self._symbols = {encoding: o.symbol for encoding, o in zip(encodings, objects, strict=True)}
        for name, types in {
            "time_products": [POINTER(Product), c_int64],
            "count_instructions": [POINTER(Product)],
        }.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = types, c_int64

    def product(self, encoding: Encoding, shape: Shape, memory: Memory, inputs: Memory, out: Memory) -> Product:
        """A product of random numbers."""
        layout = MatrixLayout(encoding, shape.rows, shape.columns)
        matrices = max(1, shape.weights // layout.total_bytes)
        width, rows = padded_width(shape.columns), layout.padded_rows
        assert matrices * layout.total_bytes <= memory.size
        assert 4 * shape.tokens * max(width, rows) <= min(inputs.size, out.size)
        offsets = layout.scales_offset, layout.zeros_offset, layout.total_bytes
        return Product(
            ctypes.cast(getattr(self._library, self._symbols[encoding]), c_void_p).value,
            *[inputs.address] * 3,
            memory.address,
            out.address,
            Workload(shape.rows, shape.columns, shape.tokens, rows, width, *offsets),
            matrices,
            0,
            rows // ROW_BLOCK,
            self._library.smc_prefetch_distance(),
        )

    def run(self, encoding: Encoding, arguments: Sequence[np.ndarray | int]) -> None:
        """One call with arguments of one's own, by the signature of `LinearKernel`."""
        values = [c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else c_int32(a) for a in arguments]
        getattr(self._library, self._symbols[encoding])(*values)

    def instructions(self, product: Product) -> int:
        """How many one product takes."""
        return int(self._library.count_instructions(product))

    def seconds(self, pool: ThreadPoolExecutor, threads: int, product: Product, calls: int) -> float:
        """Of one product, of so many in a row, the row blocks shared out among threads."""
        parts = []
        for thread in range(threads):
            part = Product.from_buffer_copy(product)
            part.begin, part.end = (product.end * end // threads for end in (thread, thread + 1))
            parts.append((part, calls))
        return wall_seconds(pool, self._library.time_products, parts) / calls
