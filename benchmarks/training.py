"""A training step through the ir beside transformers' own model in the same torch, alternating.

    python -m benchmarks.training MODEL        # a folder in the Hugging Face layout

Each turn is a process of its own: it takes steps (forward, loss of every token, backward, AdamW) on the same windows of
random tokens, and prints the fastest, its CPU time, and the peak of its memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from smc.runtime.memory import peak_memory_bytes


def ours(model: str) -> tuple[Any, Callable[[Any], Any]]:
    """Parameters, and a loss of windows int64 [n, window]."""
    import torch

    import smc
    from smc.passes import Train
    from smc.training.data import Example
    from smc.training.objective import Objective
    from smc.training.program import Program
    from smc.training.setup import leaves_of

    module = smc.load_checkpoint(model)
    job = Train(data=("none",), steps=1)
    program = Program(module, leaves_of(module, job, {}))
    objective = Objective(job, program)

    def loss(windows: Any) -> Any:
        groups = [(Example(window, torch.ones(len(window) - 1)),) for window in windows]
        return objective.loss(groups) / objective.weight(groups)

    return program.parameters(), loss


def theirs(model: str) -> tuple[Any, Callable[[Any], Any]]:
    """The same by transformers."""
    import torch
    import transformers

    found = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    return found.parameters(), lambda windows: found(windows, labels=windows, use_cache=False).loss


def measure(kind: str, model: str, batch: int, window: int, steps: int) -> dict[str, float]:
    """Seconds of the fastest step, bytes of the peak and the first loss."""
    import torch

    parameters, loss = {"smc": ours, "transformers": theirs}[kind](model)
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    generator, seconds, losses = torch.Generator().manual_seed(0), [], []
    busy = []
    for _ in range(steps):
        windows = torch.randint(0, 40_000, (batch, window), generator=generator)
        started, spent = time.perf_counter(), time.process_time()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(windows)
        value.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
        busy.append(time.process_time() - spent)
        losses.append(value.item())
    return {"seconds": min(seconds), "cpu": min(busy), "peak": peak_memory_bytes(), "loss": losses[0]}


@click.command(help=__doc__)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--batch", default=4, show_default=True, help="Windows per step.")
@click.option("--window", default=256, show_default=True, help="Tokens per window.")
@click.option("--steps", default=2, show_default=True, help="Steps per turn.")
@click.option("--turns", default=2, show_default=True)
@click.option("--kind", type=click.Choice(["smc", "transformers"]), help="Measure this one, in this process.")
def main(model: Path, batch: int, window: int, steps: int, turns: int, kind: str | None) -> None:
    """Measure both, alternating, and print a table."""
    if kind is not None:
        click.echo(json.dumps(measure(kind, str(model), batch, window, steps)))
        return
    best: dict[str, dict[str, float]] = {}
    for _ in range(turns):
        for name in ("smc", "transformers"):
            options = {"--batch": batch, "--window": window, "--steps": steps, "--kind": name}
            words = [str(word) for pair in options.items() for word in pair]
            command = [sys.executable, "-m", "benchmarks.training", str(model), *words]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            if name not in best or found["seconds"] < best[name]["seconds"]:
                best[name] = found
    for name, found in best.items():
        times = f"{found['seconds']:6.2f} s  {found['cpu']:6.2f} CPU s"
        click.echo(f"{name:<13} {times}  {found['peak'] / 2**30:5.2f} GiB  loss {found['loss']:.4f}")
    own, other = best["smc"], best["transformers"]
    seconds, cpu, peak = (own[key] / other[key] for key in ("seconds", "cpu", "peak"))
    click.echo(f"{'ratio':<13} {seconds:6.2f}    {cpu:6.2f}        {peak:5.2f}")


if __name__ == "__main__":
    main()
