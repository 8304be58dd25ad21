"""Builds the engine around a small hand-written program, and drivers of its parts."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import smc.runtime
from smc.runtime.binding import Engine

Open = Callable[..., Engine]

ENGINE = Path(smc.runtime.__file__).parent / "engine"
HERE = Path(__file__).parent
ALIGNMENT = 65536
VOCAB = 97
WEIGHTS = bytes(np.random.default_rng(1).integers(0, 251, VOCAB, dtype=np.uint8))

# The first level is of a machine yet to be built; the second is what every machine of its kind has.
PLAIN = "sse2" if platform.machine() == "x86_64" else "neon"
LEVELS = (f'-DFAKE_FUTURE_FEATURES="{PLAIN},quantum,holodeck"', f'-DFAKE_PLAIN_FEATURES="{PLAIN}"')
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wno-sign-conversion", "-Werror")


def compile_c(output: Path, sources: list[Path], *flags: str, compiler: list[str] | None = None) -> Path:
    """Compile with gcc, or with the zig that smc compiles with."""
    if compiler is None:
        compiler = ["gcc"] if shutil.which("gcc") else [sys.executable, "-m", "ziglang", "cc"]
    command = [*compiler, "-std=c11", "-g", "-O2", f"-I{ENGINE}", "-o", str(output), *flags, *map(str, sources)]
    done = subprocess.run([*command, "-lm", "-lpthread"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output


def supports(sanitizer: str, folder: Path) -> bool:
    """Whether this machine's gcc can build and run with a sanitizer."""
    source = folder / "empty.c"
    source.write_text("int main(void) { return 0; }\n")
    if not shutil.which("gcc"):
        return False
    build = subprocess.run(
        ["gcc", f"-fsanitize={sanitizer}", "-o", str(folder / "empty"), str(source)], capture_output=True, check=False
    )
    return build.returncode == 0 and subprocess.run([str(folder / "empty")], check=False).returncode == 0


def compile_fake_program(output: Path, *flags: str) -> Path:
    """program.so of the fake model, linked as codegen links the real ones."""
    sources = [*sorted([*ENGINE.glob("*.c"), *ENGINE.glob("cpu/*.c")]), HERE / "fake_program.c"]
    link = ("-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-Bsymbolic")
    return compile_c(output, sources, *LEVELS, *link, *flags)


@pytest.fixture(scope="session")
def fake_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_fake_program(tmp_path_factory.mktemp("engine") / "program.so")


def write_artifact(path: Path, weights: bytes = WEIGHTS, *, align: int = ALIGNMENT, name: str = "weights") -> Path:
    """A ZIP file with what the engine looks for: stored members, the weights at a multiple of 64 KiB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("manifest.json", "{}")
        member = zipfile.ZipInfo(name)
        begin = archive.fp.tell() + 30 + len(name)  # type: ignore[union-attr]
        padding = -begin % align
        if 0 < padding < 4:
            padding += align
        if padding:
            member.extra = b"\xff\xff" + (padding - 4).to_bytes(2, "little") + bytes(padding - 4)
        archive.writestr(member, weights)
    return path


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("artifact") / "fake.smc")


@pytest.fixture
def open_model(fake_program: Path, artifact: Path) -> Iterator[Open]:
    """Opens the fake model; closes what is still open in the end."""
    opened: list[Engine] = []

    def open_one(path: Path = artifact, **options: object) -> Engine:
        opened.append(Engine(path, fake_program.read_bytes(), **{"threads": 2, **options}))  # type: ignore[arg-type]
        return opened[-1]

    yield open_one
    for engine in opened:
        engine.close()


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds a C driver beside these tests with the engine's files that it needs → executable."""
    folder = tmp_path_factory.mktemp("drivers")
    built: dict[tuple[str, str], Path] = {}

    def build(
        name: str, *files: str, sanitizer: str = "", more: tuple[str, ...] = (), flags: tuple[str, ...] = ()
    ) -> Path:
        if (name, sanitizer) not in built:
            if sanitizer and not supports(sanitizer, folder):
                pytest.skip(f"no gcc with -fsanitize={sanitizer}")
            if sanitizer:
                flags = (*flags, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
            sources = [HERE / f"{name}.c", *(HERE / file for file in more), *(ENGINE / file for file in files)]
            built[name, sanitizer] = compile_c(folder / f"{name}-{sanitizer or 'plain'}", sources, *flags)
        return built[name, sanitizer]

    return build
