"""The passes that a command line names (-p, --quant, --recipe), and running them on a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from smc.errors import InputError

if TYPE_CHECKING:
    from smc.ir import Encoding, Module
    from smc.passes import Pass

DEFAULT_RECIPE = "int4"

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Request:
    """Passes that the user named together: `text` is how, as on the command line.

    is_default: they named nothing, so it holds for sources of floats only.
    """

    text: str
    passes: tuple[Pass, ...]
    is_default: bool = False


def pass_options(command: Command) -> Command:
    """-p, --quant and --recipe: what `read_requests` takes."""
    for option in reversed(
        (
            click.option(
                "--quant",
                metavar="RECIPE",
                shell_complete=_complete_recipe,
                help="Recipe to quantize by: int8, int4, ternary …: see `smc passes`.",
            ),
            click.option(
                "-p",
                "--pass",
                "passes",
                multiple=True,
                metavar="NAME[:K=V,…]",
                shell_complete=_complete_pass,
                help="Pass to run before the recipe; may be given again.",
            ),
            click.option(
                "--recipe",
                type=click.Path(path_type=Path),
                metavar="FILE",
                help="Recipe of your own, a YAML file, in place of --quant.",
            ),
        )
    ):
        command = option(command)
    return command


def _complete_recipe(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    try:
        from smc.passes import recipe_names
    except ImportError:  # the compiler's packages are not installed
        return []
    return [name for name in recipe_names() if name.startswith(incomplete)]


def _complete_pass(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    try:
        from smc.passes import registered_passes
    except ImportError:
        return []
    return [name for name in registered_passes() if name.startswith(incomplete)]


def read_requests(passes: Sequence[str], quant: str | None, recipe: Path | None) -> list[Request]:
    """What the user named, in the order of running. Refuses what can't be right before the checkpoint is read."""
    from smc.passes import load_recipe, parse_pass

    if quant is not None and recipe is not None:
        raise InputError("--quant and --recipe both name a recipe: give one of them")
    if recipe is not None and recipe.suffix not in (".yaml", ".yml"):
        raise InputError(f"a recipe file ends in .yaml, {recipe} does not; for a recipe of smc's use --quant")
    requests = [Request(f"-p {text}", (parse_pass(text),)) for text in passes]
    if recipe is not None:
        requests.append(Request(f"--recipe {recipe}", load_recipe(recipe).passes))
    elif quant is not None or not passes:
        name = quant or DEFAULT_RECIPE
        requests.append(Request(f"--quant {name}", load_recipe(name).passes, is_default=quant is None))
    return requests


def run_requests(
    module: Module,
    requests: Sequence[Request],
    calibration: Path | None = None,
    *,
    report: Callable[[str], None] | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
    lazy: bool = False,
) -> Module:
    """Run the passes in order, by `smc.apply`, which has the keywords.

    A source that is quantized already keeps its codes where the user named nothing, and of every matrix that no pass
    names. Of the passes that would quantize a matrix the first decides.

    InputError for a request that has nothing left to do and would have chosen other encodings: it contradicts the
    ones before it.
    """
    import smc

    stored = frozenset(p.load for p in module.parameters.values() if not p.encoding.is_float)
    if stored and all(request.is_default for request in requests):
        return module
    result = module
    for index, request in enumerate(requests):

        def part_done(fraction: float, index: int = index) -> None:
            progress((index + fraction) / len(requests))

        before = result
        result = smc.apply(
            result, request.passes, calibration, report=report, progress=part_done, lazy=lazy, requantize=stored
        )
        part_done(1.0)
        if index == 0 or _encodings(before) != _encodings(result) or _encodings(before) == _encodings(module):
            continue
        alone = smc.apply(module, request.passes, lazy=True, requantize=stored)
        if _encodings(alone) not in (_encodings(module), _encodings(before)):
            earlier = " ".join(r.text for r in requests[:index])
            raise InputError(
                f"{request.text} contradicts {earlier}, which leaves no matrix to it: give one of them, or say by "
                "include= and exclude= which matrices the first is for"
            )
    return result


def what_happened(module: Module, result: Module, requests: Sequence[Request]) -> str:
    """Which of a checkpoint's matrices were quantized by what, in a phrase."""
    coded = {p.load for p in module.parameters.values() if not p.encoding.is_float}
    named = " ".join(request.text for request in requests)
    if not coded:
        return f"from floats, by {named}" + (" (the default)" if all(r.is_default for r in requests) else "")
    if all(request.is_default for request in requests):
        return "kept the checkpoint's codes"
    kept = {p.load for p in result.parameters.values()} & coded
    return f"kept the checkpoint's codes, the rest by {named}" if kept == coded else f"again, by {named}"


def _encodings(module: Module) -> dict[str, Encoding]:
    return {name: parameter.encoding for name, parameter in module.parameters.items()}
