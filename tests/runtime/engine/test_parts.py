"""The ZIP directory under damage, the CPU's features, and how the engine compiles."""

from __future__ import annotations

import ctypes
import io
import platform
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .conftest import ENGINE, HERE, LEVELS, VOCAB, WARNINGS, WEIGHTS, compile_c, write_artifact

FILES = ("artifact.c", "cpu.c", "crc.c", "memory.c", "cgroup.c", "huge_pages.c", "errors.c")
Driver = Callable[..., Path]


def run(program: Path, *arguments: object) -> str:
    done = subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def zip64(name: bytes, data: bytes) -> bytes:
    """A ZIP file of one member with every size and offset in the 64-bit fields (APPNOTE.TXT 4.3.14, 4.5.3)."""
    marker = 0xFFFFFFFF
    extra = struct.pack("<HHQQ", 1, 16, len(data), len(data))
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, 0, 0, marker, marker, len(name), len(extra)) + name + extra
    extra = struct.pack("<HHQQQ", 1, 24, len(data), len(data), 0)
    sizes = (0, marker, marker, len(name), len(extra), 0, 0, 0, 0, marker)
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 45, 45, 0, 0, 0, 0, *sizes) + name + extra
    start = len(local) + len(data)
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(entry), start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + len(entry), 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, marker, marker, 0)
    return local + data + entry + record + locator + end


@settings(max_examples=15, deadline=None)
@given(
    members=st.dictionaries(
        st.text("abcdefgh/._", min_size=1, max_size=12), st.binary(max_size=200), min_size=1, max_size=6
    ),
    comment=st.binary(max_size=40),
    front=st.binary(max_size=100),
)
def test_members_are_found_where_zipfile_put_them(
    driver: Driver, tmp_path_factory: pytest.TempPathFactory, members: dict[str, bytes], comment: bytes, front: bytes
) -> None:
    memory = io.BytesIO(front)  # an executable may lie in front
    memory.seek(0, io.SEEK_END)
    with zipfile.ZipFile(memory, "a") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.comment = comment
    path = tmp_path_factory.mktemp("zip") / "file.zip"
    path.write_bytes(memory.getvalue())
    program = driver("parts", *FILES, sanitizer="address,undefined")
    for name, data in members.items():
        offset, length = map(int, run(program, "find", path, name).split())
        assert memory.getvalue()[offset : offset + length] == data
    assert run(program, "find", path, "ABC") == "it has no member 'ABC'"


def test_zip64(driver: Driver, tmp_path: Path) -> None:
    data = zip64(b"weights", WEIGHTS)
    (tmp_path / "zip64").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "zip64") as archive:  # the test's own writer is right
        assert archive.infolist()[0].file_size == VOCAB
    offset, length = map(int, run(driver("parts", *FILES), "find", tmp_path / "zip64", "weights").split())
    assert data[offset : offset + length] == WEIGHTS


def test_compressed_and_double_members_are_refused(driver: Driver, tmp_path: Path) -> None:
    program = driver("parts", *FILES)
    with zipfile.ZipFile(tmp_path / "zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights", b"0" * 1000)
    assert "compressed" in run(program, "find", tmp_path / "zip", "weights")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("weights", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("weights", b"2")
    assert "two members" in run(program, "find", tmp_path / "zip", "weights")


@pytest.mark.parametrize("kind", ["plain", "zip64", "comment"])
def test_a_damaged_directory_is_a_sentence(driver: Driver, tmp_path: Path, kind: str) -> None:
    path = write_artifact(tmp_path / "file", WEIGHTS[:16], align=64)
    if kind == "zip64":
        path.write_bytes(zip64(b"weights", WEIGHTS[:16]))
    if kind == "comment":
        with zipfile.ZipFile(path, "a") as archive:
            archive.comment = b"PK\5\6" * 10
    program = driver("parts", *FILES, sanitizer="address,undefined")
    found, refused = map(int, run(program, "fuzz", path, "weights", 20000, 99).split())
    assert found > 100  # damage to names, dates and data goes unseen
    assert refused > 5000


def test_every_cut_is_seen(driver: Driver, tmp_path: Path) -> None:
    program, whole = driver("parts", *FILES), write_artifact(tmp_path / "whole", align=64).read_bytes()
    path = tmp_path / "cut"
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        assert "incomplete" in run(program, "find", path, "weights")


# Linux's names in /proc/cpuinfo, and LLVM's.
LINUX_NAMES = {
    "x86_64": {
        "sse2": "sse2", "pni": "sse3", "pclmulqdq": "pclmul", "ssse3": "ssse3", "fma": "fma", "cx16": "cx16",
        "sse4_1": "sse4.1", "sse4_2": "sse4.2", "movbe": "movbe", "popcnt": "popcnt", "avx": "avx", "f16c": "f16c",
        "abm": "lzcnt", "bmi1": "bmi", "avx2": "avx2", "bmi2": "bmi2", "avx512f": "avx512f", "avx512dq": "avx512dq",
        "avx512ifma": "avx512ifma", "avx512cd": "avx512cd", "avx512bw": "avx512bw", "avx512vl": "avx512vl",
        "avx512vbmi": "avx512vbmi", "avx512_vbmi2": "avx512vbmi2", "gfni": "gfni", "vaes": "vaes",
        "vpclmulqdq": "vpclmulqdq", "avx512_vnni": "avx512vnni", "avx512_bitalg": "avx512bitalg",
        "avx512_vpopcntdq": "avx512vpopcntdq", "avx512_fp16": "avx512fp16", "avx_vnni": "avxvnni",
        "avx512_bf16": "avx512bf16",
    },
    "aarch64": {
        "fp": "fp-armv8", "asimd": "neon", "crc32": "crc", "atomics": "lse", "asimdhp": "fullfp16",
        "asimdrdm": "rdm", "asimddp": "dotprod", "sve": "sve", "asimdfhm": "fp16fml", "sve2": "sve2", "i8mm": "i8mm",
        "bf16": "bf16",
    },
}  # fmt: skip


def test_features_are_those_of_cpuinfo(driver: Driver) -> None:
    text = Path("/proc/cpuinfo").read_text()
    flags = set(re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.M)[1].split())  # type: ignore[index]
    names = LINUX_NAMES[platform.machine()]
    answers = run(driver("parts", *FILES), "features", *names.values()).split()
    assert {name for name, has in zip(names, answers, strict=True) if has == "1"} == flags & names.keys()


def test_unknown_features_are_missing(driver: Driver) -> None:
    program, base = driver("parts", *FILES), "sse2" if platform.machine() == "x86_64" else "neon"
    assert run(program, "features", "", "avx3", base[:-1], base + " ", base.upper()).split() == ["0"] * 5
    assert run(program, "missing", f"{base},warp,{base},flux") == "2\nwarp, flux"
    assert run(program, "missing", base) == "0"
    assert run(program, "missing", "") == "0"
    assert run(program, "missing", f"{'x' * 40},y").startswith("2\nxxx")  # longer than the buffer


def test_prefetch_distance(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Intel's CPUs matmuls prefetch; the variable decides on all."""
    program = driver("parts", *FILES)
    monkeypatch.delenv("SMC_PREFETCH", raising=False)
    intel = re.search(r"^vendor_id\s*: GenuineIntel$", Path("/proc/cpuinfo").read_text(), re.M)
    assert run(program, "prefetch") == ("12288" if intel else "0")
    for asked, bytes in {"": None, "0": 0, "4096": 4096, "-1": 0, "99999999999999999999": 1 << 20, "no": 0}.items():
        monkeypatch.setenv("SMC_PREFETCH", asked)
        assert run(program, "prefetch") == ("12288" if bytes is None and intel else str(bytes or 0))


ZIG = [sys.executable, "-m", "ziglang", "cc", "-fno-sanitize=undefined", "-target"]


SYSTEMS = ("x86_64-linux-gnu.2.17", "aarch64-linux-gnu.2.17", "aarch64-linux-musl", "aarch64-macos.11.0")


@pytest.mark.parametrize("target", SYSTEMS)
def test_compiles_for_the_oldest_systems_without_a_warning(tmp_path: Path, target: str) -> None:
    tokenizer = (ENGINE.parents[1] / "standalone" / "c").glob("tokenizer*.c")
    sources = sorted([*ENGINE.glob("*.c"), *ENGINE.glob("cpu/*.c"), *tokenizer])
    flags = ("-shared", "-fPIC", "-fvisibility=hidden", *WARNINGS)
    compile_c(tmp_path / "engine.so", [*sources, HERE / "fake_program.c"], *flags, *LEVELS, compiler=[*ZIG, target])


def test_exports_one_symbol(fake_program: Path) -> None:
    library = ctypes.CDLL(str(fake_program))
    for source in ENGINE.glob("*.[ch]"):
        for name in set(re.findall(r"\b(smc_\w+)\(", source.read_text())):
            assert not hasattr(library, name)
    assert hasattr(library, "smc_engine")


# ---- checksums


@pytest.mark.parametrize("size", [0, 1, 7, 8, 63, 64, 127, 128, 129, 511, 512, 513, 100_003])
def test_crc_is_that_of_zip_files(driver: Driver, tmp_path: Path, size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    (tmp_path / "data").write_bytes(data)
    program = driver("parts", *FILES, sanitizer="address,undefined")
    for part in (1 << 20, 1000, 129):
        assert int(run(program, "crc", tmp_path / "data", part), 16) == zlib.crc32(data)
        assert int(run(program, "join", tmp_path / "data", part), 16) == zlib.crc32(data)


def test_crc_by_tables(tmp_path: Path) -> None:
    """What a CPU without the instruction takes."""
    data = np.random.default_rng(5).integers(0, 256, 10_007, np.uint8).tobytes()
    (tmp_path / "data").write_bytes(data)
    (tmp_path / "no.c").write_text(
        '#include "internal.h"\n'
        "int smc_cpu_has(const char *feature, size_t length) { (void)feature, (void)length; return 0; }\n"
        "int smc_cpu_missing(const char *all, char *missing, size_t size) { return !all + !missing + (int)size; }\n"
        "int32_t smc_prefetch_distance(void) { return 0; }\n"
    )
    files = [ENGINE / file for file in FILES if file != "cpu.c"]
    program = compile_c(tmp_path / "parts", [HERE / "parts.c", tmp_path / "no.c", *files])
    for part in (1 << 20, 1000):
        assert int(run(program, "crc", tmp_path / "data", part), 16) == zlib.crc32(data)


# ---- file systems that map no files

REFUSE = """
#include <errno.h>
#include <sys/mman.h>

void *__real_mmap(void *, size_t, int, int, int, off_t);
void *__wrap_mmap(void *, size_t, int, int, int, off_t);

/* As file systems do that share no mappings, or have none at all. */
void *__wrap_mmap(void *begin, size_t size, int protection, int flags, int file, off_t offset) {
  const int given = file < 0 || (SHARED_ONLY && !(flags & MAP_SHARED));
  if (given) return __real_mmap(begin, size, protection, flags, file, offset);
  errno = ENODEV;
  return MAP_FAILED;
}
"""


@pytest.mark.parametrize("shared_only", [0, 1])
def test_a_file_that_cannot_be_mapped_is_read(tmp_path: Path, shared_only: int) -> None:
    data = np.random.default_rng(6).integers(0, 256, 300_001, np.uint8).tobytes()
    (tmp_path / "data").write_bytes(data)
    (tmp_path / "refuse.c").write_text("#define _GNU_SOURCE\n" + REFUSE)
    files = [ENGINE / file for file in FILES]
    flags = ("-Wl,--wrap=mmap", f"-DSHARED_ONLY={shared_only}")
    program = compile_c(tmp_path / "parts", [HERE / "parts.c", tmp_path / "refuse.c", *files], *flags)
    assert int(run(program, "map", tmp_path / "data"), 16) == zlib.crc32(data)
