"""llama.cpp for 64-bit ARM: the version of `benchmarks.peer`, cross-built by zig as a static program, once per level.

It is built as for the machine itself, except that the instruction set is named: its weights are repacked at load for
the instructions that a level has. It has no OpenMP, which does not come with zig; with one thread nothing depends on
it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import peer, qemu

BUILD = peer.BUILD / "llama.cpp-arm64"


@dataclass(frozen=True)
class Level:
    """A step of the ARM instruction set: our name, qemu's CPU, and the instructions for zig's `-march`.

    llama.cpp gets what the CPUs of that level have, thus arithmetic on f16 vectors from `dotprod` on.
    """

    name: str
    cpu: str
    march: str


LEVELS = {
    level.name: level
    for level in (
        Level("neon", "cortex-a53", "generic"),
        Level("dotprod", "cortex-a76", "generic+v8_2a+dotprod+fullfp16"),
        Level("i8mm", "max,sve=off,sme=off", "generic+v8_2a+dotprod+fullfp16+i8mm"),
    )
}
"""SVE is off: what is compared are NEON kernels, which also run on Apple's CPUs and on phones without SVE."""


def build(level: Level) -> Path:
    """Build llama-bench for a level unless that was done before; the program."""
    out = BUILD / f"llama-bench-{level.name}"
    if out.is_file():
        return out
    peer.unpack_source()
    options = {
        "CMAKE_MAKE_PROGRAM": peer.program("ninja"),
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_C_COMPILER": str(_zig("cc", "-target", "aarch64-linux-musl")),
        "CMAKE_CXX_COMPILER": str(_zig("c++", "-target", "aarch64-linux-musl")),
        "CMAKE_AR": str(_zig("ar")),
        "CMAKE_RANLIB": str(_zig("ranlib")),
        "BUILD_SHARED_LIBS": "OFF",
        "GGML_NATIVE": "OFF",
        "GGML_OPENMP": "OFF",
        "GGML_CPU_ARM_ARCH": level.march,  # the same tree for every level: only the kernels are compiled again
        "LLAMA_BUILD_TESTS": "OFF",
        "LLAMA_BUILD_EXAMPLES": "OFF",
        "LLAMA_BUILD_SERVER": "OFF",
        "LLAMA_BUILD_APP": "OFF",
        "LLAMA_OPENSSL": "OFF",
    }
    tree = BUILD / "build"
    definitions = [f"-D{key}={value}" for key, value in options.items()]
    qemu.run([peer.program("cmake"), "-S", str(peer.SOURCE), "-B", str(tree), "-G", "Ninja", *definitions])
    qemu.run(["nice", peer.program("cmake"), "--build", str(tree), "--target", "llama-bench"])
    shutil.copy(tree / "bin" / "llama-bench", out)
    return out


def _zig(*arguments: str) -> Path:
    """A script that runs a tool of zig's: cmake takes one word for a compiler."""
    script = BUILD / "tools" / arguments[0]
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ziglang {" ".join(arguments)} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return script


def command(level: Level, gguf: Path, options: Sequence[str]) -> list[str]:
    """llama-bench with one thread on a file: no warm-up, so that a repetition more is a run more."""
    return [str(build(level)), "-m", str(gguf), "-t", "1", "--no-warmup", "-o", "json", *options]
