"""`smc passes` and `smc encodings`: list passes, recipes and encodings."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from inspect import getdoc
from typing import TYPE_CHECKING, Any, get_type_hints

import click

from smc.cli.options import verbosity_options

if TYPE_CHECKING:
    from smc.ir import Encoding
    from smc.passes import Pass


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@verbosity_options
def passes(name: str | None, as_json: bool) -> None:
    """List the passes and recipes, or explain one.

    NAME is a pass, a recipe, or ./file.py:pass.

    \b
    Example:
      smc passes quantize-rtn
    """
    from smc.passes import registered_passes
    from smc.passes.recipe import load_recipe, recipe_names

    if name is not None:
        description = _describe(name)
        click.echo(json.dumps(description, indent=2) if as_json else _explanation(description))
        return
    known = {key: _describe_pass(cls) for key, cls in registered_passes().items()}
    recipes = {key: load_recipe(key).description for key in recipe_names()}
    if as_json:
        click.echo(json.dumps({"passes": known, "recipes": recipes}, indent=2))
        return
    click.echo("Passes (-p NAME:option=value,…; `smc passes NAME` shows the options)")
    _echo_table({key: description["help"].splitlines()[0] for key, description in known.items()})
    click.echo("\nRecipes (--quant NAME)")
    _echo_table(recipes)


@click.command()
@click.option("--group", type=click.IntRange(8), default=32, show_default=True, help="Columns that share a scale.")
@click.option("--columns", type=click.IntRange(1), default=4096, show_default=True, help="Length of a row.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@verbosity_options
def encodings(group: int, columns: int, as_json: bool) -> None:
    """List the usual encodings and their true bits per weight.

    Scales, zeros and the padding of the last group are counted.

    \b
    Example:
      smc encodings --group 128 --columns 576
    """
    described: list[dict[str, Any]] = [
        {
            "encoding": str(encoding),
            "decode": decode,
            "activations": "i8" if encoding.rounds_inputs else "none",
            "bits_per_weight": round(encoding.stored_bits((1, columns)) / columns, 4),
        }
        for encoding, decode in usual_encodings(group)
    ]
    if as_json:
        click.echo(json.dumps(described, indent=2))
        return
    click.echo(f"{'encoding':<24} {'decode':<22} {'activations':<12} bits per weight")
    for row in described:
        click.echo(f"{row['encoding']:<24} {row['decode']:<22} {row['activations']:<12} {row['bits_per_weight']:g}")
    click.echo("\nA pass of your own can make others, such as codebooks and offsets: values of smc.ir.Encoding.")


def usual_encodings(group: int) -> list[tuple[Encoding, str]]:
    """The usual encodings with groups of this size, and how each is decoded."""
    from smc.ir import BF16, F16, F32, Encoding, integer

    rows: list[tuple[Encoding, str]] = [(encoding, "value") for encoding in (F32, F16, BF16)]
    for bits in range(8, 1, -1):
        rows.append((integer(bits, group=group), f"scale * (code - {1 << (bits - 1)})"))
        rows.append((integer(bits, group=group, symmetric=False), "scale * (code - zero)"))
    for ternary in (Encoding.of(bits=2, zero=1, group=group), Encoding.of("base3", group=group)):
        rows.append((ternary, "scale * (code - 1)"))
    return rows


def _describe(name: str) -> dict[str, Any]:
    """The pass or recipe of this name; InputError with the nearest pass if there is none."""
    from pathlib import Path

    from smc.passes.recipe import load_recipe, recipe_names
    from smc.passes.registry import find_pass, load_file

    if name in recipe_names() or name.endswith((".yaml", ".yml")):
        recipe = load_recipe(name)
        return {"name": recipe.name, "help": recipe.description, "passes": [str(step) for step in recipe.passes]}
    if ".py:" in name:
        file, _, name = name.partition(".py:")
        load_file(Path(f"{file}.py"))
    return {"name": name, **_describe_pass(find_pass(name))}


def _describe_pass(cls: type[Pass]) -> dict[str, Any]:
    from smc.passes.base import option_text
    from smc.passes.options import describe_type

    hints = get_type_hints(cls)
    options = {
        field.name: {
            "takes": describe_type(hints[field.name]),
            "default": None if field.default is MISSING else option_text(field.default),
        }
        for field in sorted(fields(cls), key=lambda field: bool(field.kw_only))
    }
    return {"help": getdoc(cls), "needs": sorted(cls.needs), "options": options}


def _explanation(description: dict[str, Any]) -> str:
    lines = [description["name"], "", description["help"], ""]
    if "passes" in description:
        return "\n".join([*lines, *(f"  -p {step}" for step in description["passes"])])
    width = max(map(len, description["options"]), default=0)
    for name, option in description["options"].items():
        default = "required" if option["default"] is None else f"default {option['default'] or 'empty'}"
        lines.append(f"  {name:<{width}}  {option['takes']} ({default})")
    if description["needs"]:
        lines += ["", f"needs {', '.join(description['needs'])}"]
    return "\n".join(lines).rstrip()


def _echo_table(rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    for name, text in rows.items():
        click.echo(f"  {name:<{width}}  {text}")
