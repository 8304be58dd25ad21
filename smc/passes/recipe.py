"""Recipes: named chains of passes in YAML files. Those of smc are in `recipes/`.

::

    description: What it is good for, in a sentence.
    passes:
      - quantize-rtn: {bits: 8, include: [value]}
      - quantize-rtn: {bits: 4, symmetric: no}
      - ./my_pass.py:my-pass
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from smc.errors import InputError
from smc.passes.base import Pass
from smc.passes.options import make_pass, nearest
from smc.passes.registry import find_pass, load_file, parse_pass


@dataclass(frozen=True)
class Recipe:
    """A named chain of passes."""

    name: str
    description: str
    passes: tuple[Pass, ...]


def recipe_names() -> list[str]:
    """The names of the recipes that come with smc."""
    return sorted(entry.name[: -len(".yaml")] for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def load_recipe(source: str | Path) -> Recipe:
    """The recipe of this name, or in this YAML file (a path that ends in .yaml or .yml). InputError if it is wrong.

    A file of passes named in a recipe is looked for beside the recipe.
    """
    import yaml

    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"there is no recipe file {path}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"recipe {path} is not UTF-8 text") from error
        name, folder = path.stem, path.parent
    else:
        name, folder = str(source), Path()
        if name not in recipe_names():
            raise InputError(f"there is no recipe {name!r}: {nearest(name, recipe_names())}")
        text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"recipe {source} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise InputError(f"recipe {source} is nested too deeply") from None
    if not isinstance(content, dict) or not isinstance(content.get("passes"), list):
        raise InputError(f"recipe {source} must have a list named passes")
    keys = ["description", "passes"]
    for key in content:
        if key not in keys:
            raise InputError(f"recipe {source} has an unknown key {str(key)!r}: {nearest(str(key), keys)}")
    passes = tuple(_step(entry, folder, str(source)) for entry in content["passes"])
    return Recipe(name, str(content.get("description", "")), passes)


def _step(entry: Any, folder: Path, source: str) -> Pass:
    """A list item: `name`, the text that `parse_pass` reads, or `name: {option: value}`."""
    options: Any = {}
    if isinstance(entry, dict) and len(entry) == 1:
        ((entry, options),) = entry.items()
    if not isinstance(entry, str) or not isinstance(options or {}, dict):
        raise InputError(f"a pass in recipe {source} is written name or name: {{option: value}}, not {entry!r}")
    if ".py:" in entry:
        file, _, entry = entry.partition(".py:")
        load_file(folder / f"{file}.py")
    if not options:
        return parse_pass(entry)
    return make_pass(find_pass(entry), {str(key): value for key, value in options.items()})


def _folder() -> Any:
    return files("smc.passes") / "recipes"
