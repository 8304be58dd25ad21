"""Kernels of another CPU called as if they were here: a static program under qemu's user emulation serves the calls."""

from __future__ import annotations

import itertools
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from smc.codegen.cpu.builder import Kernel
from smc.targets import Level
from tests.emulation import CPUS, emulated

SERVER = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* A call: the kernel's number, then every argument as 8 bytes: a number, or the size of the memory that follows, or
 * SAME + i for the memory of argument i once more. The answer: the status and all memory. Behind each memory, rounded
 * up to 64 bytes, lies a page without access. */
#define PAGE 65536
#define SAME (1ull << 63)
struct smc_tile;
struct smc_argmax;
PROTOTYPES
static void must_read(void *to, size_t size) {
  if (size && fread(to, size, 1, stdin) != 1) exit(feof(stdin) ? 0 : 3);
}

static size_t used_size(size_t size) { return size ? (size + 63) / 64 * 64 : 64; }
static size_t whole_size(size_t size) { return (used_size(size) + PAGE - 1) / PAGE * PAGE; }

int main(void) {
  uint64_t number;
  for (;;) {
    must_read(&number, 8);
    const char *kinds = KINDS[number];
    uint64_t a[32], sizes[32];
    uint8_t *memory[32];
    for (int i = 0; kinds[i]; i++) {
      must_read(&a[i], 8);
      memory[i] = NULL;
      if (kinds[i] != 'p') continue;
      if (a[i] >= SAME) {
        a[i] = a[a[i] - SAME];
        continue;
      }
      sizes[i] = a[i];
      const size_t used = used_size(sizes[i]), whole = whole_size(sizes[i]);
      memory[i] = mmap(NULL, whole + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory[i] == MAP_FAILED || mprotect(memory[i] + whole, PAGE, PROT_NONE)) return 4;
      a[i] = (uint64_t)(uintptr_t)(memory[i] + whole - used);
      must_read((void *)a[i], sizes[i]);
      memory[i] += whole - used;
    }
    uint64_t status = 99;
    switch (number) {
CALLS
    }
    fwrite(&status, 8, 1, stdout);
    for (int i = 0; kinds[i]; i++)
      if (memory[i]) {
        if (sizes[i]) fwrite(memory[i], sizes[i], 1, stdout);
        munmap(memory[i] + used_size(sizes[i]) - whole_size(sizes[i]), whole_size(sizes[i]) + PAGE);
      }
    fflush(stdout);
  }
}
"""


SAME = 1 << 63


def server_source(kernels: Sequence[Kernel]) -> str:
    """The C program that calls these kernels."""
    prototypes, calls, kinds = [], [], []
    for number, kernel in enumerate(kernels):
        parameters = kernel.signature.parameters
        prototypes.append(f"int32_t {kernel.name}({kernel.signature});")
        arguments = [f"(void *)a[{i}]" if p.pointer else f"*({p.type} *)&a[{i}]" for i, p in enumerate(parameters)]
        calls.append(f"      case {number}: status = (uint64_t){kernel.name}({', '.join(arguments)}); break;")
        kinds.append('"' + "".join("p" if p.pointer else "n" for p in parameters) + '"')
    table = f"static const char *const KINDS[] = {{{', '.join(kinds)}}};"
    source = SERVER.replace("PROTOTYPES", "\n".join([*prototypes, table]))
    return source.replace("CALLS", "\n".join(calls))


def serve(
    level: Level, kernels: Sequence[Kernel], objects: Sequence[str], folder: Path
) -> tuple[subprocess.Popen[bytes], dict[str, Callable[..., None]]]:
    """Start the program with these kernels; a process to end, and {name: callable on arrays and numbers}."""
    (folder / "server.c").write_text(server_source(kernels))
    program = folder / "server"
    subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-static", "-O1",
         "-mno-outline-atomics", "-fno-sanitize=undefined", str(folder / "server.c"), *objects, "-o", str(program)],
        check=True,
    )  # fmt: skip
    process = subprocess.Popen(
        emulated("aarch64", CPUS[level.name], program), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    pipes = process.stdin, process.stdout
    return process, {kernel.name: _caller(pipes, number, kernel) for number, kernel in enumerate(kernels)}


def _caller(pipes: tuple[IO[bytes], IO[bytes]], number: int, kernel: Kernel) -> Callable[..., None]:
    parameters = kernel.signature.parameters
    formats = {"int32_t": "<i4x", "int64_t": "<q", "float": "<f4x"}

    def call(*arguments: Any) -> None:
        pipes[0].write(struct.pack("<Q", number))
        sent: list[int] = []
        for argument, parameter in zip(arguments, parameters, strict=True):
            assert isinstance(argument, np.ndarray) == parameter.pointer, (argument, parameter)
            if isinstance(argument, np.ndarray):
                assert argument.flags.c_contiguous
                same = next(place for place, other in enumerate(arguments) if other is argument)
                if same in sent:
                    pipes[0].write(struct.pack("<Q", SAME + same))
                    continue
                sent.append(same)
                pipes[0].write(struct.pack("<Q", argument.nbytes) + argument.tobytes())
            else:
                pipes[0].write(struct.pack(formats[parameter.type], argument))
        pipes[0].flush()
        status = pipes[1].read(8)
        assert status == bytes(8), f"{kernel.name} under emulation: {status!r}"
        for argument in (arguments[place] for place in sent):
            data = np.frombuffer(pipes[1].read(argument.nbytes), argument.dtype)
            if argument.flags.writeable:
                argument[...] = data.reshape(argument.shape)

    return call


def numbered_folders(root: Path) -> Callable[[], Path]:
    """A new folder in `root` at every call."""
    numbers = itertools.count()

    def new() -> Path:
        folder = root / str(next(numbers))
        folder.mkdir()
        return folder

    return new
