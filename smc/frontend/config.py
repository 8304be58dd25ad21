"""A model's config.json, read with the types that we expect: what does not fit is told in one sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smc.errors import InputError
from smc.ir import RopeScaling


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; InputError where the file cannot be read or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


@dataclass(frozen=True)
class Config:
    """The values of a config.json (or of a GGUF's metadata, spelled like one); `origin` names the file in messages.

    A key that is null counts as missing: transformers writes null for "derive it".
    """

    values: Mapping[str, Any]
    origin: str

    def fault(self, name: str, wanted: str) -> InputError:
        """The error for a value that is not what it should be."""
        return InputError(f"{self.origin}: {name} must be {wanted}, not {self.values.get(name)!r}")

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive integer; required where no default is given."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.fault(name, "a positive integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive finite number; required where no default is given."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise self.fault(name, "a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.fault(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string; required where no default is given."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.fault(name, "a string")
        return value

    def integers(self, name: str, count: int) -> int | list[int]:
        """One positive integer that stands for all `count` layers, or a list of as many."""
        value = self.values.get(name)
        if not isinstance(value, list):
            return self.integer(name)
        if len(value) != count or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in value):
            raise self.fault(name, f"a positive integer or a list of {count} of them, one a layer")
        return value

    def section(self, name: str) -> Config:
        """A nested object, empty where it is missing."""
        value = self._value(name, {})
        if not isinstance(value, dict):
            raise self.fault(name, "an object")
        return Config(value, f"{self.origin}: {name}")

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is None:
            raise InputError(f"{self.origin} has no {name}")
        return default


def rope_of(config: Config, default_theta: float = 10000.0) -> tuple[float, RopeScaling | None]:
    """Base frequency and scaling of the rotary embedding.

    Reads both spellings: `rope_parameters` (transformers 5) and `rope_theta` with `rope_scaling` (transformers 4, where
    the oldest files call `rope_type` just `type`). InputError names a scaling that is not supported.
    """
    rope = config.section("rope_parameters")
    if not rope.values:
        rope = config.section("rope_scaling")
    theta = rope.number("rope_theta", config.number("rope_theta", default_theta))
    kind = rope.text("rope_type", rope.text("type", "default"))
    partial = rope.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    if partial != 1:
        raise InputError(f"{config.origin}: rotary embedding of a part of each head ({partial:g}) is not supported")
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", rope.number("factor"))
    if kind == "llama3":
        fallback = config.integer("original_max_position_embeddings", config.integer("max_position_embeddings", 8192))
        scaling = RopeScaling(
            "llama3",
            rope.number("factor"),
            rope.number("low_freq_factor"),
            rope.number("high_freq_factor"),
            rope.integer("original_max_position_embeddings", fallback),
        )
        if scaling.low_freq_factor >= scaling.high_freq_factor:
            raise InputError(f"{rope.origin}: low_freq_factor must be smaller than high_freq_factor")
        return theta, scaling
    raise InputError(f"{config.origin}: rope type {kind} is not supported (default, linear and llama3 are)")
