"""The program.so of every kind of machine, as its loader sees it: what it needs, exports, and how it is aligned."""

from __future__ import annotations

import functools
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from smc.codegen import CompileOptions, compile_module
from smc.codegen.cpu import bionic
from tests.codegen.modules import random_parameters
from tests.ir.models import tiny_module

LOAD, DYNAMIC, TLS = 1, 2, 7  # program headers
NEEDED, HASH, STRING_TABLE, SYMBOL_TABLE, GNU_HASH = 1, 4, 5, 6, 0x6FFFFEF5  # entries of the dynamic section


class Elf:
    """The parts of an ELF64 shared library that a loader reads ("Executable and Linking Format" 1.2, 64-bit form)."""

    def __init__(self, data: bytes) -> None:
        assert data[:7] == b"\x7fELF\x02\x01\x01"
        self.data = data
        (self.machine,) = struct.unpack_from("<H", data, 18)
        (offset,), (size, count) = struct.unpack_from("<Q", data, 32), struct.unpack_from("<2H", data, 54)
        self.headers = [struct.unpack_from("<2I6Q", data, offset + i * size) for i in range(count)]
        [dynamic] = [header for header in self.headers if header[0] == DYNAMIC]
        self.dynamic = [struct.unpack_from("<2Q", data, dynamic[2] + i) for i in range(0, dynamic[5], 16)]
        self.values = dict(self.dynamic)
        self.strings = self.at(self.values[STRING_TABLE])

    def at(self, address: int) -> int:
        """The place in the file of an address."""
        [place] = [h[2] + address - h[3] for h in self.headers if h[0] == LOAD and h[3] <= address < h[3] + h[5]]
        return place

    def name(self, index: int) -> str:
        start = self.strings + index
        return self.data[start : self.data.index(b"\0", start)].decode()

    @property
    def needed(self) -> set[str]:
        return {self.name(value) for tag, value in self.dynamic if tag == NEEDED}

    @property
    def alignments(self) -> set[int]:
        return {header[7] for header in self.headers if header[0] == LOAD}

    def symbols(self) -> tuple[set[str], set[str]]:
        """Names that it defines, and names that it wants."""
        table = self.at(self.values[SYMBOL_TABLE])
        _, count = struct.unpack_from("<2I", self.data, self.at(self.values[HASH]))  # buckets, symbols
        defined, wanted = set(), set()
        for place in range(table + 24, table + 24 * count, 24):
            name, _, _, section = struct.unpack_from("<I2BH", self.data, place)
            (defined if section else wanted).add(self.name(name))
        return defined, wanted


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """Target → the program.so of a small module; each is compiled once."""

    @functools.cache
    def compile_one(target: str) -> bytes:
        path = tmp_path_factory.mktemp(target) / "model.smc"
        compile_module(random_parameters(tiny_module()), path, CompileOptions(target))
        with zipfile.ZipFile(path) as archive:
            return archive.read("program.so")

    return compile_one


@pytest.mark.parametrize(("target", "machine"), [("x86-64", 62), ("arm64", 183)])
def test_linux(program: Callable[[str], bytes], target: str, machine: int) -> None:
    data = program(target)
    elf = Elf(data)
    defined, _ = elf.symbols()
    assert elf.machine == machine
    assert defined == {"smc_engine"}
    assert elf.needed <= {"libc.so.6", "libm.so.6", "libpthread.so.0"}
    assert elf.alignments == {65536}
    assert TLS not in {header[0] for header in elf.headers}
    versions = {tuple(map(int, version.split(b"."))) for version in re.findall(rb"\0GLIBC_([\d.]+)", data)}
    assert versions
    assert max(versions) <= (2, 17)


@pytest.mark.arm64
def test_android(program: Callable[[str], bytes]) -> None:
    elf = Elf(program("arm64-android"))
    defined, wanted = elf.symbols()
    assert elf.machine == 183
    assert defined == {"smc_engine"}
    assert wanted <= {name for names in bionic.LIBRARIES.values() for name in names}
    assert {"mmap", "pthread_create", "__errno", "cos"} <= wanted
    assert elf.needed == {"libc.so", "libm.so"}
    assert elf.alignments == {65536}  # new phones have pages of 16 KiB
    assert TLS not in {header[0] for header in elf.headers}
    assert GNU_HASH in elf.values


@pytest.mark.arm64
def test_macos(program: Callable[[str], bytes]) -> None:
    data = program("arm64-macos")
    magic, cpu, _, kind, count = struct.unpack_from("<5I", data)
    assert (magic, cpu, kind) == (0xFEEDFACF, 0x0100000C, 6)  # 64-bit, arm64, a dynamic library
    commands, place = {}, 32
    for _ in range(count):
        command, size = struct.unpack_from("<2I", data, place)
        commands.setdefault(command, []).append(data[place : place + size])
        place += size
    [build], [signature] = commands[0x32], commands[0x1D]
    assert struct.unpack_from("<2I", build, 8) == (1, 11 << 16)  # for macOS 11 on
    assert struct.unpack_from("<I", signature, 12)[0] > 0  # Apple silicon runs nothing unsigned
    libraries = [command[24:].rstrip(b"\0") for command in commands[0xC]]
    assert libraries == [b"/usr/lib/libSystem.B.dylib"]
    assert [command[24:].rstrip(b"\0") for command in commands[0xD]] == [b"program.so"]
    assert b"\0_smc_engine\0" in data


@pytest.mark.arm64
@pytest.mark.parametrize("target", ["arm64-android", "arm64-macos"])
def test_the_same_bytes_every_time(program: Callable[[str], bytes], target: str, tmp_path: Path) -> None:
    compile_module(random_parameters(tiny_module()), tmp_path / "model.smc", CompileOptions(target))
    with zipfile.ZipFile(tmp_path / "model.smc") as archive:
        assert archive.read("program.so") == program(target)
        assert f'"target": "{target}"'.encode() in archive.read("manifest.json")
