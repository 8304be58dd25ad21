"""The registry of architectures: each registers itself, with its names in Hugging Face configs and in GGUF files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from smc.errors import InputError
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.config import Config

Build = Callable[[Checkpoint], Decoder]


@dataclass(frozen=True)
class GGUF:
    """How GGUF files of a family differ.

    prefix: `general.architecture`, which begins the names of its metadata. tensors: GGUF's name of a module → the
    checkpoint's, beside those that all have. metadata: key (after the prefix) → key of config.json, beside those that
    all have. config: keys that the file lacks. paired_rows: q and k have the rows of a rotary pair side by side.
    layer: what the checkpoint's names of a layer's tensors begin with. needs: a key of the metadata without which the
    file is of another family. applied: kinds of transforms that the converter has done.
    """

    prefix: str
    tensors: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    paired_rows: bool = False
    layer: str = "model.layers.{}."
    needs: str | None = None
    applied: frozenset[str] = frozenset()

    @property
    def has_experts(self) -> bool:
        """Whether the family is a mixture of experts."""
        return "expert_count" in self.metadata


@dataclass(frozen=True)
class Architecture:
    """One family: the class name of its configs, other spellings of it, its model_type, and how it is built."""

    name: str
    model_type: str
    build: Build
    aliases: tuple[str, ...] = ()
    gguf: GGUF | None = None


_registered: dict[str, Architecture] = {}


def architecture(
    name: str, *, model_type: str, aliases: tuple[str, ...] = (), gguf: GGUF | None = None
) -> Callable[[Build], Build]:
    """Decorator of the function that makes a `Decoder` of a checkpoint."""

    def declare(build: Build) -> Build:
        if name in _registered:
            raise ValueError(f"there are two architectures named {name}")
        _registered[name] = Architecture(name, model_type, build, aliases, gguf)
        return build

    return declare


def architectures() -> dict[str, Architecture]:
    """All architectures by class name, in alphabetical order."""
    return dict(sorted(_registered.items()))


def gguf_family(metadata: Config) -> tuple[Architecture, GGUF]:
    """The architecture of a GGUF file; InputError names the supported ones."""
    prefix = metadata.text("general.architecture")
    families = [(a, a.gguf) for a in architectures().values() if a.gguf is not None]
    # A file of experts may have the keys of the other families with its prefix, too.
    for family, gguf in sorted(families, key=lambda pair: (pair[1].needs is None, not pair[1].has_experts)):
        if gguf.prefix == prefix and (gguf.needs is None or metadata.values.get(f"{prefix}.{gguf.needs}")):
            return family, gguf
    known = dict.fromkeys(sorted({gguf.prefix for _, gguf in families}))
    raise InputError(
        f"{metadata.origin}: GGUF files of the architecture {prefix} are not supported; {_choices(prefix, known)}"
    )


def find_architecture(checkpoint: Checkpoint) -> Architecture:
    """The checkpoint's architecture; from `model_type` where an old config names no class. InputError if unknown."""
    config, known = checkpoint.config, architectures()
    classes = config.values.get("architectures")
    if classes:
        if not isinstance(classes, list) or not isinstance(classes[0], str):
            raise config.fault("architectures", "a list of class names")
        name = {alias: a.name for a in known.values() for alias in a.aliases}.get(classes[0], classes[0])
    else:
        model_type = config.text("model_type")
        name = {a.model_type: a.name for a in known.values()}.get(model_type, model_type)
    if name not in known:
        raise InputError(f"{config.origin}: {name} is not supported; {_choices(name, known)}")
    return known[name]


def _choices(name: str, known: Mapping[str, Any]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.7)
    return f"supported are {', '.join(known)}" + (f" (the nearest is {close[0]})" if close else "")
