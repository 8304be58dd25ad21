"""What healing gains: the perplexity of SmolLM2 before a change, after it, and after training.

    python -m benchmarks.healing pruned          # six layers dropped
    python -m benchmarks.healing up-scaled       # 30 layers become 42
    python -m benchmarks.healing two-bits        # 2 bits, learned with rounding in every step; or: ternary
    python -m benchmarks.healing pruned-lora     # as pruned, but only factors of rank 16 are trained
    python -m benchmarks.healing sparse          # half of the weights 0, by three methods, without training
    python -m benchmarks.healing speed           # decode speed of the pruned model beside the whole one

The texts are those of benchmarks.text: the perplexity is that of second halves of 24 windows of 512 tokens from its
first articles, training has all the others. Runs are by tokens, so they can be repeated; an interrupted run continues
when the command is given again. Figures go to benchmarks/results/healing.json.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import click

from benchmarks import inputs
from benchmarks.publish import RESULTS
from benchmarks.speed import run_json

HELD_OUT = 80_000
"""Characters of the evaluation text that nothing is trained on, and perhaps the rest of an article."""

WINDOWS = 24

DROPPED = "drop-layers:layers=12-15+17+25"


@dataclass(frozen=True)
class Run:
    """A change and how it is healed. tokens: how long. options: of the pass distill."""

    passes: tuple[str, ...] = ()
    tokens: int = 0
    options: dict[str, Any] = field(default_factory=dict)


HEAL = {"batch": 2, "window": 512, "learning_rate": 6e-4, "warmup": 10, "save": 60}
TOKENS = 200 * 1024
FLOATS = "convert:dtype=f32"
RUNS = {
    "pruned": Run((FLOATS, DROPPED), TOKENS, HEAL),
    "pruned-lora": Run((FLOATS, DROPPED), TOKENS, {**HEAL, "weights": "lora", "learning_rate": 2e-3}),
    "up-scaled": Run((FLOATS, "up-scale:remove=9"), TOKENS, HEAL),
    "two-bits": Run((FLOATS,), TOKENS, {**HEAL, "quantize": "int2"}),
    "ternary": Run((FLOATS,), TOKENS, {**HEAL, "quantize": "ternary"}),
}
SPARSE = ("sparsify-magnitude", "sparsify-wanda", "sparsify-sparsegpt")


@click.command(help=__doc__)
@click.argument("name", type=click.Choice([*RUNS, "sparse", "speed"]))
@click.option("--tokens", type=int, help="Another length of the training.")
@click.option("--set", "settings", multiple=True, metavar="OPTION=VALUE", help="Another option of the pass distill.")
@click.option("--work", type=click.Path(path_type=Path), default=inputs.BUILD / "healing", help="Folder of the run.")
@click.option("--publish", is_flag=True, help="Keep the figures in benchmarks/results/healing.json.")
def main(name: str, tokens: int | None, settings: tuple[str, ...], work: Path, publish: bool) -> None:
    """Measure one figure."""
    work.mkdir(parents=True, exist_ok=True)
    train, held_out = texts(work)
    model = inputs.offgrid_model()
    if name == "sparse":
        found = sparse(model, held_out)
    elif name == "speed":
        found = speed(model, work)
    else:
        found = heal(RUNS[name], tokens, dict(s.split("=", 1) for s in settings), model, train, held_out, work)
    found |= {"machine": inputs.machine(), "date": date.today().isoformat(), "commit": inputs.commit()}
    click.echo(json.dumps({name: found}, indent=1))
    if publish:
        path = RESULTS / "healing.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        path.write_text(json.dumps(known | {name: found}, indent=1) + "\n", encoding="utf-8")


def texts(work: Path) -> tuple[Path, Path]:
    """Files to train on and to measure on, split between two articles."""
    evaluation = inputs.evaluation_text()
    text = evaluation.read_text(encoding="utf-8")
    end = text.index("\n= ", HELD_OUT) + 1
    train, held_out = work / "train.txt", work / "held_out.txt"
    calibration = evaluation.with_name("calibration.txt").read_text(encoding="utf-8")
    for path, part in ((train, text[end:] + calibration), (held_out, text[:end])):
        if not path.is_file() or path.read_text(encoding="utf-8") != part:
            path.write_text(part, encoding="utf-8")
    return train, held_out


def heal(
    run: Run, tokens: int | None, settings: dict[str, str], model: Path, train: Path, held_out: Path, work: Path
) -> dict[str, Any]:
    """Change, measure, train, measure."""
    import smc
    from smc.passes import Distill, load_recipe
    from smc.passes.options import make_pass

    before = smc.load_checkpoint(model)
    options = {**run.options, "data": str(train), "tokens": tokens or run.tokens, **settings}
    job = make_pass(Distill, options)
    assert isinstance(job, Distill)
    rounding = [*load_recipe(job.quantize).passes] if job.quantize else []
    lines: list[str] = []
    started, spent = time.perf_counter(), time.process_time()
    healed = smc.apply(before, [*run.passes, job], work=work, report=lines.append, note=_say)
    seconds, cpu = time.perf_counter() - started, time.process_time() - spent
    _say(lines[-1])
    modules = {"before": before, "right after": smc.apply(before, [*run.passes, *rounding]), "healed": healed}
    found: dict[str, Any] = {key: perplexity(module, held_out) for key, module in modules.items()}
    first, broken, last = (math.log(found[key]) for key in modules)
    return {
        **{key: round(value, 3) for key, value in found.items()},
        "share of the gap": round((broken - last) / (broken - first), 3),
        "pass": str(replace(job, data=(train.name,))),
        "done": lines[-1],
        "seconds": round(seconds),
        "CPU seconds": round(cpu),
        "load": os.getloadavg()[1],
    }


def sparse(model: Path, held_out: Path) -> dict[str, Any]:
    """Perplexities with half of the weights of the layers 0."""
    import smc

    before = smc.load_checkpoint(model)
    found = {"before": round(perplexity(before, held_out), 3)}
    for name in SPARSE:
        for pattern in ("any", "2:4"):
            made = smc.apply(before, [f"{name}:sparsity=0.5,pattern={pattern}"], note=_say)
            found[f"{name} {pattern}"] = round(perplexity(made, held_out), 3)
            _say(f"{name} {pattern}: {found[f'{name} {pattern}']}")
    return found


def speed(model: Path, work: Path, rounds: int = 5) -> dict[str, Any]:
    """Tokens per second in decode of the 4-bit artifacts, alternating."""
    import smc
    from smc.passes import load_recipe

    rates: dict[str, list[float]] = {}
    for name, passes in {"whole": [], "pruned": [DROPPED]}.items():
        if not (work / f"{name}.smc").is_file():
            module = smc.apply(smc.load_checkpoint(model), [*passes, *load_recipe("int4").passes])
            smc.compile(module, "native", work / f"{name}.smc")
        rates[name] = []
    bench = [*inputs.SMC, "bench", "--json", "--prompt-tokens", "1", "--decode-tokens", "64", "--repeat", "3"]
    for turn in range(rounds):
        for name in sorted(rates, reverse=bool(turn % 2)):
            rates[name].append(run_json([*bench, str(work / f"{name}.smc")])["decode"]["tokens_per_s"])
    ratios = [pruned / whole for pruned, whole in zip(rates["pruned"], rates["whole"], strict=True)]
    sizes = {f"{name} MB": round((work / f"{name}.smc").stat().st_size / 1e6, 1) for name in rates}
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    return {**medians, "ratio": round(statistics.median(ratios), 3), "lowest": round(min(ratios), 3), **sizes}


def perplexity(module: Any, text: Path) -> float:
    """Of the tokens behind the middle of windows of 512."""
    from smc.reference import Reference, evaluate, text_windows
    from smc.reference.text import read_tokens

    tokens = read_tokens(text, module.facts.tokenizer, module.facts.vocab_size)
    windows = text_windows(tokens, 512, WINDOWS)
    return evaluate(Reference(module).logits, windows, scored="second-half").perplexity


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
