"""The passes of a command line (-p, --quant, --bits, --recipe), and how they are run on a model."""

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


CALIB = click.option(
    "--calib",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text file for passes that take statistics; by default the one that comes with smc.",
)
WORK = click.option(
    "--work",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder where long passes keep their state, so that they can continue; by default in the cache.",
)


@dataclass(frozen=True)
class Request:
    """Passes that one option names; `text` is the option as on the command line.

    is_default: no option named passes, so these are for float checkpoints only.
    """

    text: str
    passes: tuple[Pass, ...]
    is_default: bool = False


def pass_options(command: Command) -> Command:
    """The options -p, --quant, --bits and --recipe, for `read_requests`."""
    for option in reversed(
        (
            click.option(
                "--quant",
                metavar="RECIPE",
                shell_complete=_complete_recipe,
                help="Recipe to quantize with: int8, int4, ternary …; see `smc passes`.",
            ),
            click.option(
                "--bits",
                type=click.FloatRange(1, 32),
                metavar="N",
                help="Bits per weight of the whole model, spread so that it loses least (calibrated; takes minutes).",
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


def calibration_options(command: Command) -> Command:
    """The options --calib and --work of calibrated passes."""
    for option in reversed((CALIB, WORK)):
        command = option(command)
    return command


def training_options(command: Command) -> Command:
    """The options --teacher and --work of passes that train."""
    for option in reversed(
        (
            click.option(
                "--teacher",
                type=click.Path(),
                metavar="MODEL",
                help="Model that the pass distill learns from; by default MODEL as it is before the passes.",
            ),
            WORK,
        )
    ):
        command = option(command)
    return command


def work_folder(work: Path | None) -> Path | None:
    """The folder where long passes keep their state; None if there is none."""
    from smc.folders import cache_folder

    if work is not None:
        if work.exists() and not work.is_dir():
            raise InputError(f"--work {work} is not a folder: name a folder, or a new one")
        return work
    cache = cache_folder()
    return None if cache is None else cache / "training"


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


def read_requests(
    passes: Sequence[str], quant: str | None, recipe: Path | None, bits: float | None = None
) -> list[Request]:
    """The requests of the command line, in the order of running. Contradictions are InputErrors, before the checkpoint
    is read."""
    from smc.passes import QuantizeGuided, Rotate, load_recipe, parse_pass

    if bits is not None and (quant is not None or recipe is not None):
        other = "--quant" if quant is not None else "--recipe"
        raise InputError(f"--bits and {other} both choose the size of the model: give one of them")
    if quant is not None and recipe is not None:
        raise InputError("--quant and --recipe both name a recipe: give one of them")
    if recipe is not None and recipe.suffix not in (".yaml", ".yml"):
        raise InputError(f"a recipe file ends in .yaml, and {recipe} does not: for a recipe of smc use --quant")
    requests = [Request(f"-p {text}", (parse_pass(text),)) for text in passes]
    if bits is not None:
        requests.append(Request(f"--bits {bits:g}", (Rotate(), QuantizeGuided(bits=bits))))
    elif recipe is not None:
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
    teacher: Module | None = None,
    work: Path | None = None,
    note: Callable[[str], None] | None = None,
    after: Callable[[Pass, Module], None] | None = None,
) -> Module:
    """Run the passes in order with `smc.apply`, which explains the keywords. Without a teacher, `module` is the
    teacher.

    A checkpoint that is quantized already keeps its codes if no option names passes, and those of every matrix that no
    pass selects. Of the passes that select a matrix, the first decides.

    InputError for a request that has nothing left to do and would have chosen other encodings: it contradicts an
    earlier request.
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
            result,
            request.passes,
            calibration,
            report=report,
            progress=part_done,
            lazy=lazy,
            requantize=stored,
            teacher=module if teacher is None else teacher,
            work=work,
            note=note,
            after=after,
        )
        part_done(1.0)
        if index == 0 or _encodings(before) != _encodings(result) or _encodings(before) == _encodings(module):
            continue
        alone = smc.apply(module, request.passes, calibration, work=work, lazy=True, requantize=stored)
        if _encodings(alone) not in (_encodings(module), _encodings(before)):
            earlier = " ".join(r.text for r in requests[:index])
            raise InputError(
                f"{request.text} contradicts {earlier}, which leaves no matrix to it: give one of them, or say by "
                ""
                "include= and exclude= which matrices the first is for"
            )
    return result


def what_happened(module: Module, result: Module, requests: Sequence[Request]) -> str:
    """A phrase that says which of a checkpoint's matrices were quantized, and how."""
    lines = (line.partition(": ") for line in module.facts.provenance)
    found = [text for key, _, text in lines if key in ("grid", "dequantized")]
    source = f" ({'; '.join(found)})" if found else ""
    coded = {p.load for p in module.parameters.values() if not p.encoding.is_float}
    named = " ".join(request.text for request in requests)
    if not coded:
        return f"from floats{source}, by {named}" + (" (the default)" if all(r.is_default for r in requests) else "")
    if all(request.is_default for request in requests):
        floats = [p.encoding for p in module.parameters.values() if p.encoding.is_float and len(p.shape) > 1]
        dtypes = ", ".join(sorted({str(encoding) for encoding in floats}))
        others = f", and {len(floats)} matrices as floats ({dtypes})" if floats else ""
        return f"kept the checkpoint's codes{source}{others}"
    kept = {p.load for p in result.parameters.values()} & coded
    return f"kept the checkpoint's codes, the rest by {named}" if kept == coded else f"again, by {named}"


def _encodings(module: Module) -> dict[str, Encoding]:
    return {name: parameter.encoding for name, parameter in module.parameters.items()}
