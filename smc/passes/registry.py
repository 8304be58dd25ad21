"""Passes by name: smc's own, those of installed packages (entry points `smc.passes`) and those in a user's own file."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import is_dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeVar

from smc.errors import InputError
from smc.passes.base import Pass
from smc.passes.options import make_pass, nearest

PassType = TypeVar("PassType", bound=type[Pass])

_registered: dict[str, type[Pass]] = {}

_USERS_MODULES = "smc_user_passes_"
"""How the names of the modules of users' files begin."""


def register(name: str) -> Callable[[PassType], PassType]:
    """Class decorator that registers a pass under a kebab-case name; put it above `@dataclass(frozen=True)`."""

    def decorate(cls: PassType) -> PassType:
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
            raise InputError(f"the name of a pass must be kebab-case, not {name!r}")
        if not issubclass(cls, Pass) or not is_dataclass(cls):
            raise InputError(f"pass {name} must be a Pass and a frozen dataclass")
        if not cls.__doc__ or cls.__doc__.startswith(f"{cls.__name__}("):
            raise InputError(f"pass {name} has no docstring: say what it does")
        if name in _registered:
            raise InputError(
                f"there are two passes named {name}, the other one in {_registered[name].__module__}: rename one"
            )
        cls.name = name
        _registered[name] = cls
        return cls

    return decorate


def registered_passes() -> dict[str, type[Pass]]:
    """All registered passes by name, including those of installed packages."""
    for entry in entry_points(group="smc.passes"):
        if entry.name not in _registered:
            _load_entry_point(entry)
    return dict(sorted(_registered.items()))


def find_pass(name: str) -> type[Pass]:
    """The pass of this name; InputError with the nearest match."""
    if name not in _registered:
        for entry in entry_points(group="smc.passes", name=name):
            _load_entry_point(entry)
    if name not in _registered:
        raise InputError(f"there is no pass {name!r}: {nearest(name, list(registered_passes()))}")
    return _registered[name]


def parse_pass(text: str) -> Pass:
    """A pass from `name`, `name:option=value,…` or `./file.py:name:option=value,…`; a list is `a+b`."""
    parts = text.split(":")
    if parts[0].endswith(".py"):
        load_file(Path(parts.pop(0)))
        if not parts:
            raise InputError(f"pass {text!r} names a file but no pass in it: write {text}:NAME")
    if len(parts) > 2:
        raise InputError(f"pass {text!r} is not of the form name:option=value,option=value")
    options: dict[str, str] = {}
    for item in parts[1].split(",") if len(parts) == 2 and parts[1] else []:
        name, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"{item!r} in pass {text!r} is not of the form option=value")
        if name in options:
            raise InputError(f"pass {text!r} gives option {name} twice")
        options[name] = value
    return make_pass(find_pass(parts[0]), options)


def load_file(path: Path) -> None:
    """Run a user's Python file, once, so that its passes are registered."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    name = f"{_USERS_MODULES}{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    known = dict(_registered)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        _registered.clear()
        _registered.update(known)
        del sys.modules[name]
        if isinstance(error, MemoryError):
            raise
        raise InputError(f"{path} can't be loaded: {_text(error)}") from error


def is_users(step: Pass) -> bool:
    """Whether a pass is not one of smc's own."""
    return not type(step).__module__.startswith("smc.")


def users_fault(error: BaseException) -> str | None:
    """The sentence for an error that a user's pass raised; None if none of them was running.

    Passes may also run late: they change a parameter when it is written.
    """
    if isinstance(error, KeyboardInterrupt) or not isinstance(error, (Exception, SystemExit)):
        return None
    packages = {cls.__module__.partition(".")[0] for cls in _registered.values()} - {"smc"}
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = str(frame.f_globals.get("__name__"))
        if module.startswith(_USERS_MODULES) or module.partition(".")[0] in packages:
            return f"the pass in {frame.f_code.co_filename} failed in line {line}: {_text(error)}"
    return None


def _text(error: BaseException) -> str:
    """An error as the end of a sentence."""
    if isinstance(error, SystemExit):
        return f"it called exit ({error.code})"
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _load_entry_point(entry: importlib.metadata.EntryPoint) -> None:
    try:
        entry.load()
    except (Exception, SystemExit) as error:
        if isinstance(error, MemoryError):
            raise
        raise InputError(f"the pass {entry.name} of an installed package can't be loaded: {_text(error)}") from error
    if entry.name not in _registered:
        raise InputError(f"the entry point {entry.value} names the pass {entry.name} but does not register it")
