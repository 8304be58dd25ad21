"""smc for 64-bit ARM as a program to count: an artifact, and its engine, host program and kernels linked with a driver.

The program is static, keeps its symbols and lies at fixed addresses, so that counts can be assigned to functions.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks import inputs, qemu

DRIVER = Path(__file__).with_name("instructions_driver.c")
BUILD = inputs.BUILD / "instructions"


@dataclass(frozen=True)
class Program:
    """The driver's executable and the artifact whose weights it reads."""

    executable: Path
    artifact: Path

    def command(self, context: int, prompt: int, decode: int, repeat: int) -> list[str]:
        """So many times a prompt in one step and single tokens behind it, each time from an empty cache."""
        return [str(self.executable), str(self.artifact), *map(str, (context, prompt, decode, repeat))]


def build(model: Path, quant: str) -> Program:
    """Compile a model for arm64 and link the driver, unless that was done since smc's sources changed."""
    from smc.codegen.cpu.link import FLAGS, engine_folder

    artifact = BUILD / f"{model.name}.{quant}.smc"
    program = Program(artifact.with_suffix(".driver"), artifact)
    if inputs.is_newer_than_smc(program.executable) and program.executable.stat().st_mtime >= DRIVER.stat().st_mtime:
        return program
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as name:
        folder = Path(name)
        compile = [*inputs.SMC, "compile", str(model), "--quant", quant, "--target", "arm64", "-o", str(artifact)]
        if subprocess.run([*compile, "--emit", "c,obj", name], check=False).returncode:
            raise SystemExit(f"this command failed: {' '.join(compile)}")
        engine = [*engine_folder().glob("*.c"), *engine_folder().glob("cpu/*.c")]
        sources = [DRIVER, folder / "program.c", *sorted(engine)]
        zig = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-static", *FLAGS]
        inputs_of_link = [*map(str, sources), *map(str, sorted(folder.glob("*.o")))]
        qemu.run([*zig, "-I", str(engine_folder()), *inputs_of_link, "-o", str(program.executable)])
    return program
