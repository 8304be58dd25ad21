"""Reads options of a pass from text or YAML, with the types of the dataclass's fields; errors name the nearest
match."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from smc.errors import InputError
from smc.passes.base import Pass

BOOLEANS = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False, "0": False}


def nearest(word: str, known: list[str]) -> str:
    """The end of an error sentence: the nearest known word, else all of them."""
    close = get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"use one of {', '.join(known)}" if known else "there are none"


def make_pass(cls: type[Pass], options: Mapping[str, Any]) -> Pass:
    """An instance with these options, given as text ("4") or as YAML values (4); InputError names the wrong one."""
    hints = get_type_hints(cls)
    names = [field.name for field in fields(cls)]
    values = {}
    for name, given in options.items():
        if name not in names:
            raise InputError(f"pass {cls.name} has no option {name!r}: {nearest(name, names)}")
        try:
            values[name] = convert(given, hints[name])
        except ValueError:
            wanted = describe_type(hints[name])
            raise InputError(f"option {name} of pass {cls.name} takes {wanted}, not {given!r}") from None
    for field in fields(cls):
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"pass {cls.name} needs its option {field.name}: {describe_type(hints[field.name])}")
    return cls(**values)


def convert(value: Any, hint: Any) -> Any:
    """`value` as the annotated type; ValueError if it does not fit."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for alternative in sorted(arguments, key=lambda kind: kind is not type(None)):  # "none" is not a text
            try:
                return convert(value, alternative)
            except ValueError:
                continue
        raise ValueError
    if origin is Literal:
        for choice in arguments:
            if str(value) == str(choice):
                return choice
        raise ValueError
    if origin is tuple:
        items = () if value in ("", None) else value.split("+") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise ValueError
        return tuple(convert(item, arguments[0]) for item in items)
    if hint is type(None):
        if value is None or value == "none":
            return None
        raise ValueError
    return _convert_plain(value, hint)


def _convert_plain(value: Any, hint: Any) -> Any:
    if hint is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in BOOLEANS:
            return BOOLEANS[str(value).lower()]
        raise ValueError
    if hint not in (int, float, str):
        raise TypeError(f"an option can't have the type {hint}")
    given = (int, str) if hint is int else (int, float, str)
    if isinstance(value, bool) or not isinstance(value, given):
        raise ValueError
    return hint(value)


def describe_type(hint: Any) -> str:
    """A description of an option's type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(alternative) for alternative in arguments)
    if origin is Literal:
        return " or ".join(str(choice) for choice in arguments)
    if origin is tuple:
        return "names joined by +"
    words = {int: "a whole number", float: "a number", bool: "yes or no", str: "text", type(None): "none"}
    return words.get(hint, str(hint))
