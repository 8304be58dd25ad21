"""The peer: llama.cpp, built for this machine from the sources that the PyPI package llama-cpp-python vendors.

    python -m benchmarks.peer build                        llama-bench, llama-batched-bench, llama-quantize, …
    python -m benchmarks.peer build --level avx2           llama-bench with no newer instructions than AVX2
    python -m benchmarks.peer convert MODEL_DIR Q4_0 --pure      a GGUF file of a Hugging Face folder

Everything is kept under benchmarks/build/. A build takes about ten minutes on two cores. It needs a C++ compiler, and
cmake and ninja (on the path, or `pip install cmake ninja`).
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

BUILD = Path(__file__).parent / "build"
SOURCE = BUILD / "llama.cpp"
TOOLS = ("llama-bench", "llama-batched-bench", "llama-quantize", "llama-perplexity")

FEATURES = {
    "SSE42": "sse4_2",
    "AVX": "avx",
    "AVX2": "avx2",
    "FMA": "fma",
    "F16C": "f16c",
    "BMI2": "bmi2",
    "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_TILE": "amx_tile",
    "AMX_INT8": "amx_int8",
    "AMX_BF16": "amx_bf16",
}
"""CPU features by the name of llama.cpp's build option (GGML_…): their names in /proc/cpuinfo."""

_AVX2 = ("SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2")
LEVELS = {"avx2": _AVX2, "avxvnni": (*_AVX2, "AVX_VNNI")}
"""Our feature levels below a CPU's best: the features that llama.cpp may use."""

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # of Linux on x86-64: asm/prctl.h

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"


def build(level: str | None = None, tools: Sequence[str] = TOOLS) -> Path:
    """Build llama.cpp unless that was done before; returns the folder of its programs.

    A release build with OpenMP that repacks weights when it loads them, for all features of this CPU that the system
    offers. (GGML_NATIVE would ask the CPU itself: on some virtual machines such a build dies of an instruction that
    the host forbids.) With a level of LEVELS it is llama-bench alone, with the level's features but still scheduled
    for this CPU.
    """
    tree = SOURCE / "build" if level is None else BUILD / f"llama.cpp-{level}"
    tools = tools if level is None else TOOLS[:1]
    if all((tree / "bin" / tool).is_file() for tool in tools):
        return tree / "bin"
    cmake, ninja = program("cmake"), program("ninja")
    unpack_source()
    options = {
        "CMAKE_MAKE_PROGRAM": ninja,
        "CMAKE_BUILD_TYPE": "Release",
        "LLAMA_BUILD_TESTS": "OFF",
        "LLAMA_BUILD_EXAMPLES": "OFF",
        "LLAMA_BUILD_SERVER": "ON",  # `build` makes it only for callers that name it
        "LLAMA_BUILD_APP": "OFF",
        "LLAMA_OPENSSL": "OFF",
    }
    if platform.machine() == "x86_64":
        features = offered_features() if level is None else LEVELS[level]
        options |= {f"GGML_{name}": "ON" if name in features else "OFF" for name in FEATURES}
        options |= {"GGML_NATIVE": "OFF", "CMAKE_C_FLAGS": "-mtune=native", "CMAKE_CXX_FLAGS": "-mtune=native"}
    definitions = [f"-D{key}={value}" for key, value in options.items()]
    run([cmake, "-S", str(SOURCE), "-B", str(tree), "-G", "Ninja", *definitions])
    run([cmake, "--build", str(tree), "--target", *tools])
    return tree / "bin"


def offered_features() -> tuple[str, ...]:
    """Those of FEATURES that /proc/cpuinfo lists; AMX only where Linux also lets a program use its tiles."""
    flags = re.findall(r"^flags\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    found = [name for name, flag in FEATURES.items() if flag in flags[0].split()]
    request_tiles = ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA)
    return tuple(name for name in found if not name.startswith("AMX") or request_tiles == 0)


def program(name: str) -> str:
    """Path of a build tool: beside this Python (installed by pip) or on the path."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=places)
    if not found:
        raise SystemExit(f"{name} is missing: install it with `{sys.executable} -m pip install {name}`")
    return found


def run(command: Sequence[str], *, quiet: bool = False) -> str:
    """Run a command; what it prints is returned if `quiet`, and shown otherwise. Ends this program if it fails."""
    done = subprocess.run(command, check=False, capture_output=quiet, text=True)
    if done.returncode:
        raise SystemExit(f"this command failed: {' '.join(command)}\n{(done.stderr or '')[-2000:]}")
    return done.stdout or ""


def unpack_source() -> None:
    """Fetch llama.cpp's source into SOURCE unless it is there."""
    if SOURCE.is_dir():
        return
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE,
              "--dest", folder, f"{PACKAGE}=={VERSION}"])  # fmt: skip
        archive = next(Path(folder).glob("*.tar.gz"))
        if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
            raise SystemExit(f"{archive.name} does not have the SHA-256 {SHA256}")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        source = next(Path(folder).glob("*/vendor/llama.cpp"))
        _mend(source / "ggml/src/ggml-cpu/amx/mmq.cpp")
        source.rename(SOURCE)


def _mend(path: Path) -> None:
    """Make AMX usable: GCC 12 takes all but 8 bytes of a tile configuration for stores that nothing reads.

    It drops them, and the first tile instruction is refused as illegal.
    """
    text, load = path.read_text(encoding="utf-8"), "_tile_loadconfig(&tc);"
    assert text.count(load) == 1, f"{path} loads its tile configuration elsewhere"
    path.write_text(text.replace(load, f'asm volatile("" : : "m"(tc));\n    {load}'), encoding="utf-8")


def convert(model: Path, type: str, *, pure: bool = False) -> Path:
    """A GGUF file of a Hugging Face folder, made by llama.cpp's own converter and quantizer.

    A model whose tokenizer knows bytes only (benchmarks.models random) gets no vocabulary: the converter knows no such
    tokenizer. llama-bench runs without one, llama-perplexity does not.

    Args:
        model: the folder; its weights are f16.
        type: "F16", or what llama-quantize knows: "Q8_0", "Q4_0", "Q4_K_M", …
        pure: the same type for every matrix, the embedding and the head included.
    """
    folder = BUILD / "gguf" / hashlib.sha256(str(model.resolve()).encode()).hexdigest()[:8]
    out = folder / f"{model.name}.{type}{'-pure' if pure else ''}.gguf"
    if out.is_file() and out.stat().st_mtime > (model / "config.json").stat().st_mtime:
        return out
    folder.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    if type == "F16":
        script = SOURCE / "convert_hf_to_gguf.py"
        converter = ["-m", "benchmarks.peer_without_vocabulary"] if knows_bytes_only(model) else []
        arguments = [str(model), "--outtype", "f16", "--outfile", str(partial)]
        run([sys.executable, *converter, str(script), *arguments], quiet=True)
    else:
        command = [str(build() / "llama-quantize"), *(["--pure"] if pure else [])]
        run([*command, str(convert(model, "F16")), str(partial), type], quiet=True)
    os.replace(partial, out)
    return out


def knows_bytes_only(model: Path) -> bool:
    """Whether the tokenizer of a Hugging Face folder is BPE without merges: one token a byte."""
    path = model / "tokenizer.json"
    return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["model"].get("merges") == []


def bits_per_weight(path: Path) -> float:
    """Bits that a GGUF file's tensors take, scales included, divided by the number of weights."""
    from gguf import GGUFReader

    tensors = GGUFReader(path).tensors
    return 8.0 * sum(int(tensor.n_bytes) for tensor in tensors) / sum(int(tensor.n_elements) for tensor in tensors)


def divergence(
    base: Path, quantized: Path, text: Path, *, windows: int, context: int, threads: int
) -> dict[str, float]:
    """llama-perplexity's figures of a quantized file beside the f16 file, over the first windows of a text.

    The second half of each window is scored. Returns `perplexity`, `reference_perplexity`, `mean_kl` (nats), its
    standard error `kl_error`, and `same_top_token` (a share of 1). The f16 file's log-probabilities are kept: 25 MB a
    window.
    """
    program = str(build() / "llama-perplexity")
    size = ["-c", str(context), "--chunks", str(windows), "-t", str(threads)]
    key = hashlib.sha256(f"{base.resolve()} {base.stat().st_mtime_ns} {context} {windows}".encode() + text.read_bytes())
    logits = BUILD / "gguf" / f"{key.hexdigest()[:16]}.kld"
    if not logits.is_file():
        partial = logits.with_suffix(".partial")
        run([program, "-m", str(base), "-f", str(text), *size, "--kl-divergence-base", str(partial)], quiet=True)
        os.replace(partial, logits)
    command = [program, "-m", str(quantized), *size, "--kl-divergence-base", str(logits), "--kl-divergence"]
    printed = run(command, quiet=True)

    def figure(label: str, error: bool = False) -> float:
        number = r"([\d.]+)"
        match = re.search(rf"^{re.escape(label)}\s*:\s*{number}(?:\s*±\s*{number})?", printed, re.MULTILINE)
        if not match or not match[1 + error]:
            raise SystemExit(f"llama-perplexity printed no {label!r}")
        return float(match[1 + error])

    return {
        "perplexity": figure("Mean PPL(Q)"),
        "reference_perplexity": figure("Mean PPL(base)"),
        "mean_kl": figure("Mean    KLD"),
        "kl_error": figure("Mean    KLD", error=True),
        "same_top_token": figure("Same top p") / 100,
    }


@click.group(help=__doc__)
def main() -> None:
    """The group of the two commands."""


@main.command("build")
@click.option("--level", type=click.Choice(list(LEVELS)), help="No newer instructions than this level has.")
def build_command(level: str | None) -> None:
    """Build the programs and print their folder."""
    click.echo(build(level))


@main.command("convert")
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("type")
@click.option("--pure", is_flag=True, help="The same type for every matrix.")
def convert_command(model: Path, type: str, pure: bool) -> None:
    """Convert a Hugging Face folder to GGUF and print the file's name."""
    click.echo(convert(model, type, pure=pure))


if __name__ == "__main__":
    main()
