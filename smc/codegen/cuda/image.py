"""CUDA C++ → machine code, by NVRTC from PyPI: no GPU, no CUDA toolkit and no host compiler are needed.

Floats follow docs/numerics.md: no product is fused with a sum, nothing is approximated.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from smc.codegen import cache
from smc.errors import InputError
from smc.targets import GpuLevel

PACKAGE = "nvidia-cuda-nvrtc-cu12"
"""CUDA 12: its machine code runs in drivers from 525 on."""

OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")


def compiler_version() -> str:
    """The version of NVRTC; InputError if it is not installed."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"compiling for GPUs needs {PACKAGE}: pip install 'smc-compiler[cuda]'") from None


def build_image(text: str, level: GpuLevel) -> bytes:
    """The machine code (cubin) or PTX of a device's program for a level; kept in the cache.

    RuntimeError with NVRTC's log where the text does not compile, which is a fault of smc's.
    """
    options = (*OPTIONS, f"--gpu-architecture={'compute' if level.ptx else 'sm'}_{level.architecture}")
    key = cache.key_of("cuda", text, options, compiler_version())
    if kept := cache.fetch(key):
        return kept.data
    image = _Nvrtc().compile(text, options, "PTX" if level.ptx else "CUBIN")
    cache.keep(key, image)
    return image


def build_checked(text: str, level: GpuLevel) -> tuple[bytes, str]:
    """`build_image`, and what the assembler says of registers and spills; both kept in the cache."""
    options = (*OPTIONS, f"--gpu-architecture=sm_{level.architecture}", "--ptxas-options=-v")
    key = cache.key_of("cuda report", text, options, compiler_version())
    if kept := cache.fetch(key):
        size = int.from_bytes(kept.data[:8], "little")
        return kept.data[8 : 8 + size], kept.data[8 + size :].decode()
    nvrtc = _Nvrtc()
    image = nvrtc.compile(text, options, "CUBIN")
    cache.keep(key, len(image).to_bytes(8, "little") + image + nvrtc.log.encode())
    return image, nvrtc.log


def library_folder() -> Path:
    """Where NVRTC's shared libraries are; InputError if they are not installed."""
    compiler_version()
    spec = importlib.util.find_spec("nvidia.cuda_nvrtc")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / "lib" / "libnvrtc.so.12").exists():
            return Path(place) / "lib"
    raise InputError(f"{PACKAGE} is installed, but has no libnvrtc.so.12: pip install --force-reinstall {PACKAGE}")


class _Nvrtc:
    """The library's C functions (NVRTC 12, "NVRTC User Guide")."""

    def __init__(self) -> None:
        self.log = ""
        folder = library_folder()
        try:
            for builtins in folder.glob("libnvrtc-builtins.so.12*"):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
            self._library = ctypes.CDLL(str(folder / "libnvrtc.so.12"))
        except OSError as error:
            raise InputError(f"NVRTC can't be loaded ({error}): pip install --force-reinstall {PACKAGE}") from None

    def compile(self, text: str, options: Sequence[str], kind: str) -> bytes:
        program = ctypes.c_void_p()
        self._call("CreateProgram", ctypes.byref(program), text.encode(), b"program.cu", 0, None, None)
        try:
            given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            failed = self._library.nvrtcCompileProgram(program, len(options), given)
            self.log = self._bytes("ProgramLog", program).rstrip(b"\0").decode("utf-8", "replace")
            if failed:
                raise RuntimeError(f"NVRTC refuses the device's program:\n{self.log}")
            return self._bytes(kind, program)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _bytes(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", program, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        self._call(f"Get{what}", program, data)
        return data.raw

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, f"nvrtc{name}")(*arguments)
        if status:
            raise RuntimeError(f"nvrtc{name} failed with status {status}")
