"""The distribution: its name and version, and the command that installs missing packages."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from smc.errors import InputError

NAME = "smc-compiler"
"""The name of the distribution. The package and the command are `smc`; another distribution has that name."""

VERSION = "0.1.0"

RUNTIME_PACKAGES = frozenset({"click", "jinja2", "numpy", "prompt_toolkit", "rich", "tokenizers"})
"""The packages of every installation, by their names for `import`."""

COMPILER_PACKAGES = frozenset(
    {"gguf", "huggingface_hub", "networkx", "safetensors", "torch", "tvm", "tvm_ffi", "yaml", "ziglang"}
)
"""The packages of the extra "compile", by their names for `import`."""


SERVER_PACKAGES = frozenset({"fastapi", "llguidance", "prometheus_client", "uvicorn"})
"""The packages of the extra "serve", by their names for `import`."""


def install_command(extra: Literal["", "compile", "eval", "serve"] = "compile") -> str:
    """The command that completes this installation: from the clone that contains this package, else from the wheel.

    For an installed wheel, pip takes the extra from its metadata and looks for no other distribution.
    """
    root = Path(__file__).parents[1]
    wanted = f"[{extra}]" if extra else ""
    arguments = ["-e", f"{root}{wanted}"] if _is_clone(root) else [NAME + wanted]
    return shlex.join([sys.executable or "python3", "-m", "pip", "install", *arguments])


def _is_clone(root: Path) -> bool:
    try:
        return f'\nname = "{NAME}"\n' in (root / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _missing_package(error: ImportError) -> str | None:
    """The sentence for an import that failed because a package that smc needs is not installed; None for any other
    reason."""
    name = (error.name or "").partition(".")[0]
    if name not in RUNTIME_PACKAGES | COMPILER_PACKAGES | SERVER_PACKAGES or importlib.util.find_spec(name) is not None:
        return None
    if name in COMPILER_PACKAGES:
        return f"this needs the package {name}, which comes with the compiler: {install_command()}"
    if name in SERVER_PACKAGES:
        return f"this needs the package {name}, which comes with the server: {install_command('serve')}"
    return f"the package {name} is missing: {install_command('')}"


@contextmanager
def packages_named() -> Iterator[None]:
    """A context manager or decorator: an import that fails inside because a package that smc needs is not installed
    becomes an InputError with the command that installs it."""
    try:
        yield
    except ImportError as error:
        sentence = _missing_package(error)
        if sentence is None:
            raise
        raise InputError(sentence) from error
