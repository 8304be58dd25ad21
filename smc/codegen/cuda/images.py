"""The machine code of a device's program for all levels of a target, as objects that programs are linked with."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from smc.codegen.cpu.zig import zig_compile
from smc.codegen.cuda.image import PACKAGE, build_image, compiler_version
from smc.runtime.manifest import TuningFacts
from smc.targets import GpuLevel, Target


@dataclass(frozen=True)
class Images:
    """text: the device's program. codes: by level, machine code or PTX. files: the same as objects, whose symbols are
    `symbols`."""

    text: str
    codes: Mapping[GpuLevel, bytes]
    files: list[Path]
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def symbols(self) -> list[str]:
        """By level."""
        return [_symbol(level) for level in self.codes]

    @property
    def count(self) -> int:
        """One program for every level."""
        return len(self.codes)

    def tuning_facts(self) -> TuningFacts:
        """Nothing is tuned for GPUs."""
        return TuningFacts({}, "")

    def write_listings(self, target: Target, folder: Path, kinds: Collection[str]) -> None:
        """program.cu; of every level its PTX (LEVEL.ptx) or machine code, an ELF file (LEVEL.cubin)."""
        if "cu" in kinds:
            (folder / "program.cu").write_text(self.text, encoding="utf-8")
        for level, code in self.codes.items():
            if "ptx" in kinds:
                ptx = code if level.ptx else build_image(self.text, as_ptx(level))
                (folder / f"{level.name}.ptx").write_bytes(ptx.rstrip(b"\0"))
            if "sass" in kinds and not level.ptx:
                (folder / f"{level.name}.cubin").write_bytes(code)


def as_ptx(level: GpuLevel) -> GpuLevel:
    """The level of PTX for the same architecture."""
    return GpuLevel(level.name, level.family, level.features, level.architecture, ptx=True)


def build_images(text: str, target: Target, folder: Path, report: Callable[[float], None]) -> Images:
    """Compile for every level, in parallel, and wrap the results as objects in `folder`."""
    version = compiler_version()
    codes: dict[GpuLevel, bytes] = {}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        levels = target.gpu_levels
        for level, code in zip(levels, pool.map(lambda level: build_image(text, level), levels), strict=True):
            codes[level] = code
            report(len(codes) / len(levels))
    files = [_object(level, code, target, folder) for level, code in codes.items()]
    return Images(text, codes, files, {PACKAGE: version})


def _symbol(level: GpuLevel) -> str:
    return f"smc_image_{level.name}"


def _object(level: GpuLevel, code: bytes, target: Target, folder: Path) -> Path:
    """An object with the code and its size, by the compiler's `#embed`."""
    symbol = _symbol(level)
    image, source, path = (folder / f"{symbol}{ending}" for ending in (".bin", ".c", ".o"))
    image.write_bytes(code if code.endswith(b"\0") else code + b"\0")
    source.write_text(
        "#include <stdint.h>\n"
        f'extern const uint8_t {symbol}[];\nconst uint8_t {symbol}[] = {{\n#embed "{image.name}"\n}};\n'
        f"extern const uint64_t {symbol}_bytes;\nconst uint64_t {symbol}_bytes = {len(code)};\n",
        encoding="utf-8",
    )
    zig_compile(target.zig_target, ["-std=c23", "-O1", "-fPIC", "-c", str(source), "-o", str(path)], folder)
    return path
