"""Reads values from JSON objects and GGUF metadata of checkpoints, and checks their types and ranges.

Config, generation config and manifest are read only with this module; a wrong value gives an error of one sentence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from smc.errors import InputError

MOST = 1 << 30
"""The largest count: the sum of two, and one rounded up to whole blocks, still fit 32 bits with a sign."""

MOST_CONTEXT = 1 << 24
"""The longest context in tokens (MAX_CONTEXT in engine.c): float32 distinguishes positions up to there."""

_SHOWN = 60


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`, both included; `wanted` says so in a sentence ("must be …")."""

    low: float
    high: float
    wanted: str

    def __contains__(self, value: object) -> bool:
        """Whether a value is a number in the range; true and false are not."""
        if isinstance(value, bool) or not isinstance(value, Real):
            return False
        return bool(self.low <= value <= self.high)  # type: ignore[operator]  # every Real compares with a float


LEAST_FLOAT32, MOST_FLOAT32 = 2.0**-126, (2 - 2.0**-23) * 2.0**127

POSITIVE = Range(LEAST_FLOAT32, MOST_FLOAT32, "a positive number in the range of float32")
"""The range of numbers that divide: as a float32 they are neither 0 nor infinite."""

COUNT = Range(1, MOST, f"a positive integer, at most {MOST:,}")


def parse_json(text: str, origin: str) -> dict[str, Any]:
    """The object in a JSON text. InputError, which names `origin`, if the text is anything else."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{origin} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{origin} must hold a JSON object, not a {type(content).__name__}")
    return content


@dataclass(frozen=True)
class Fields:
    """The values of one object of a file; `origin` names it in messages ("…/config.json", "…: rope_scaling").

    A key that is null counts as missing: transformers writes null for "derive it".
    Every reader raises InputError for a value of another type or out of range, and for a missing value without a
    default.
    """

    values: Mapping[str, Any]
    origin: str

    def __contains__(self, name: str) -> bool:
        """Whether there is a value."""
        return self.values.get(name) is not None

    def fault(self, name: str, wanted: str) -> InputError:
        """The error for a wrong value. wanted: what it must be."""
        shown = repr(self.values.get(name))
        if len(shown) > _SHOWN:
            shown = f"{shown[:_SHOWN]}…"
        return InputError(f"{self.origin}: {name} must be {wanted}, not {shown}")

    def integer(self, name: str, default: int | None = None, within: Range = COUNT) -> int:
        """A whole number in the range; 2.0 is refused."""
        value = self._value(name, default)
        if not is_integer(value, within):
            raise self.fault(name, within.wanted)
        return int(value)

    def number(self, name: str, default: float | None = None, within: Range = POSITIVE) -> float:
        """A number in the range."""
        value = self._value(name, default)
        if value not in within:
            raise self.fault(name, within.wanted)
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.fault(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string that UTF-8 can write."""
        value = self._value(name, default)
        if not is_text(value):
            raise self.fault(name, "a string")
        return str(value)

    def integers(self, name: str, count: int) -> int | list[int]:
        """A positive integer for all `count` layers, or a list with one for each."""
        value = self.values.get(name)
        if not isinstance(value, list):
            return self.integer(name)
        if len(value) != count or not all(is_integer(v, COUNT) for v in value):
            raise self.fault(name, f"a positive integer or a list of {count} of them, one per layer")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """Token ids: one, a list of them, or none; negative ids, which some files write for "none", are left out."""
        value = self.values.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(is_integer(i, Range(-MOST, MOST, "")) for i in ids):
            raise self.fault(name, "a token id or a list of them")
        return tuple(i for i in ids if i >= 0)

    def items(self, name: str) -> list[Any]:
        """A list, empty if it is missing."""
        value = self._value(name, [])
        if not isinstance(value, list):
            raise self.fault(name, "a list")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings, empty if it is missing."""
        value = self.items(name)
        if not all(map(is_text, value)):
            raise self.fault(name, "a list of strings")
        return tuple(value)

    def text_by_name(self, name: str) -> dict[str, str]:
        """An object whose values are strings, empty if it is missing."""
        value = self.section(name).values
        if not all(is_text(key) and is_text(text) for key, text in value.items()):
            raise self.fault(name, "an object whose values are strings")
        return dict(value)

    def section(self, name: str) -> Fields:
        """A nested object, empty if it is missing."""
        value = self._value(name, {})
        if not isinstance(value, dict):
            raise self.fault(name, "an object")
        return Fields(value, f"{self.origin}: {name}")

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is None:
            raise InputError(f"{self.origin} has no {name}")
        return default


def is_integer(value: object, within: Range) -> bool:
    """Whether a value is a whole number in the range."""
    return isinstance(value, Integral) and value in within


def is_text(value: object) -> bool:
    """Whether a value is a string without lone surrogates, which JSON can write but UTF-8 can't."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False
