"""The cache of artifacts that were compiled because a checkpoint was run.

An entry is two files in the cache's folder `models`: NAME-KEY.smc, and NAME-KEY.json, which says what it was compiled
from. KEY is a hash of the source's path, sizes and times of writing, and of smc's version, so a source that has changed
is compiled again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from smc.distribution import VERSION
from smc.errors import InputError
from smc.folders import cache_folder

DEFAULT_RECIPE = "int4"
"""The recipe for floats; codes are kept."""

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class CachedModel:
    """An entry: its name, the artifact, what it was compiled from, when (seconds since 1970), and its size in bytes."""

    name: str
    path: Path
    source: str
    made: float
    bytes: int


def is_checkpoint(source: str | Path) -> bool:
    """Whether `source` must be compiled before it can run: a folder, a GGUF file, or a hub id that is not a file."""
    path = Path(source)
    try:
        if path.is_dir():
            return True
        if path.is_file():
            with path.open("rb") as file:
                return file.read(4) == b"GGUF"
    except OSError:
        return False
    return HUB_ID.fullmatch(str(source)) is not None and path.suffix != ".smc" and not path.parent.exists()


def artifact_of(source: str | Path, progress: Callable[[str, float], None] | None = None) -> Path:
    """`source` itself if it is not a checkpoint, else its artifact in the cache, which is compiled now if it is
    missing.

    progress: called with a stage's name and how much of it is done, from 0 to 1. Raises InputError if the checkpoint
    can't be compiled or the cache can't be written.
    """
    if not is_checkpoint(source):
        return Path(source)
    folder = _folder()
    name = f"{_readable(source)}-{_key(source)}"
    path = folder / f"{name}.smc"
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"the cache {folder} can't be made ({error.strerror})"
        raise InputError(f"{reason}: set SMC_CACHE to another folder") from None
    _compile(source, path, progress)
    facts = {"source": str(source if not Path(source).exists() else Path(source).resolve()), "made": time.time()}
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    os.replace(partial, path.with_suffix(".json"))
    return path


def cached_models() -> list[CachedModel]:
    """The entries of the cache, the newest first."""
    return sorted(_entries(), key=lambda entry: -entry.made)


def remove_model(name: str) -> CachedModel:
    """Remove the entry of this name, or of this source. Raises InputError if there is none, or there are several."""
    found = [e for e in _entries() if name in (e.name, e.source) or str(Path(name).absolute()) == e.source]
    if len(found) != 1:
        known = ", ".join(entry.name for entry in cached_models()) or "none"
        problem = "several models in the cache are" if found else "no model in the cache is"
        raise InputError(f"{problem} called {name}: there are {known}")
    found[0].path.with_suffix(".json").unlink(missing_ok=True)
    found[0].path.unlink(missing_ok=True)
    return found[0]


def as_json(entry: CachedModel) -> dict[str, object]:
    """An entry as an object for JSON."""
    return {**asdict(entry), "path": str(entry.path)}


def _entries() -> Iterator[CachedModel]:
    folder = cache_folder()
    for path in sorted((folder / "models").glob("*.smc")) if folder is not None else ():
        try:
            facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            size = path.stat().st_size
            yield CachedModel(path.stem, path, str(facts["source"]), float(facts["made"]), size)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it is being written, or was removed by hand in part


def _folder() -> Path:
    folder = cache_folder()
    if folder is None:
        raise InputError("there is no home folder for the cache of compiled models: set SMC_CACHE to a folder")
    return folder / "models"


def _readable(source: str | Path) -> str:
    path = Path(source)
    name = path.stem if path.is_file() else (path.resolve() if path.is_dir() else path).name
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip(".-") or "model"


def _key(source: str | Path) -> str:
    path = Path(source)
    if not path.exists():
        return hashlib.sha256(repr((VERSION, str(source))).encode()).hexdigest()[:12]
    files = sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr((VERSION, str(path.resolve()), facts)).encode()).hexdigest()[:12]


def _compile(source: str | Path, out: Path, progress: Callable[[str, float], None] | None) -> None:
    """Compile like `smc compile SOURCE -o OUT` without a recipe."""
    import smc

    module = smc.load_checkpoint(source)
    if all(parameter.encoding.is_float for parameter in module.parameters.values()):
        with_report = (lambda done: progress("run passes", done)) if progress else None
        module = smc.apply(module, smc.passes.load_recipe(DEFAULT_RECIPE).passes, progress=with_report)
        if progress:
            progress("run passes", 1.0)
    smc.compile(module, out=out, progress=progress)
