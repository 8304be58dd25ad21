"""What healing brings: the perplexity of a model before a change, right after it, and after training.

    python -m benchmarks.healing pruned MODEL TRAIN.txt HELD_OUT.txt --minutes 20 --work DIR

The changes: six layers dropped, depth up-scaled, 2 bits and ternary by distillation with straight-through rounding. A
run that was ended goes on when the command is given again. The perplexity is that of second halves of windows of 512.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import click

CHANGES: dict[str, list[str]] = {
    "pruned": ["drop-layers:layers=12-15+17+25"],
    "up-scaled": ["up-scale:remove=9"],
    "two-bits": [],
    "ternary": [],
}
ROUNDED = {"two-bits": "int2", "ternary": "ternary"}


@click.command(help=__doc__)
@click.argument("change", type=click.Choice(list(CHANGES)))
@click.argument("model", type=click.Path())
@click.argument("train", type=click.Path(path_type=Path))
@click.argument("held_out", type=click.Path(path_type=Path))
@click.option("--minutes", default=20.0, show_default=True)
@click.option("--batch", default=8, show_default=True)
@click.option("--rate", default=5e-4, show_default=True, help="Learning rate.")
@click.option("--windows", default=24, show_default=True, help="Windows of the held-out text to score.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
def main(
    change: str,
    model: str,
    train: Path,
    held_out: Path,
    minutes: float,
    batch: int,
    rate: float,
    windows: int,
    work: Path,
) -> None:
    """Change, measure, heal, measure."""
    import smc
    from smc.passes import Distill, load_recipe

    before = smc.load_checkpoint(model)
    quantize = ROUNDED.get(change)
    job = Distill(
        data=(str(train),), minutes=minutes, batch=batch, learning_rate=rate, warmup=8, save=10, quantize=quantize
    )
    rounding = [*load_recipe(quantize).passes] if quantize else []
    started, spent = time.perf_counter(), time.process_time()
    healed = smc.apply(before, [*CHANGES[change], job], work=work, report=_say, note=_say)
    _say(f"wall clock {time.perf_counter() - started:.0f} s, CPU {time.process_time() - spent:.0f} s, {_load()}")
    found = {}
    for name, module in (
        ("healed", healed), ("right after", smc.apply(before, [*CHANGES[change], *rounding])), ("before", before)
    ):  # fmt: skip
        found[name] = perplexity(module, held_out, windows)
        _say(f"{name}: perplexity {found[name]:.2f}")
    first, broken, last = (math.log(found[name]) for name in ("before", "right after", "healed"))
    _say(f"of the log-perplexity's gap {100 * (broken - last) / (broken - first):.0f} % is recovered")


def perplexity(module: Any, text: Path, windows: int) -> float:
    """Of the tokens behind the middle of windows of 512."""
    from smc.reference import Reference, evaluate, text_windows
    from smc.reference.text import read_tokens

    tokens = read_tokens(text, module.facts.tokenizer, module.facts.vocab_size)
    return evaluate(Reference(module).logits, text_windows(tokens, 512, windows), scored="second-half").perplexity


def _say(line: str) -> None:
    click.echo(line)


def _load() -> str:
    return f"load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} CPUs"


if __name__ == "__main__":
    main()
