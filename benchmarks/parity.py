"""Float artifacts beside transformers in fp32: largest difference of a logit, and greedy text.

    python -m benchmarks.parity [--model DIR] [--tokens 200]

The model is SmolLM2-135M-Instruct; the first tokens of the evaluation text are compared, and 64 greedy tokens after
each of five prompts. `f32` runs with an f32 KV cache, `f16` with an f16 one.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch

from benchmarks import inputs, models

PROMPTS = (
    "The capital of France is",
    "Once upon a time, there was a",
    "def fibonacci(n):",
    "The three laws of thermodynamics are",
    "In 1969, the first human",
)


@click.command(help=__doc__)
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--tokens", "count", default=200, show_default=True)
def main(model: Path | None, count: int) -> None:
    """Measure and print."""
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    import smc

    if model is None:
        model = inputs.BUILD / "models" / "smollm2"
        if not model.is_dir():
            models.smollm2(model)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    text = inputs.evaluation_text().read_text(encoding="utf-8")[: 20 * count]
    tokens = tokenizer.encode(text).ids[:count]
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        expected = network(torch.tensor([tokens])).logits[0].numpy()
        greedy = [
            network.generate(torch.tensor([tokenizer.encode(p).ids]), max_new_tokens=64, do_sample=False)[0].tolist()
            for p in PROMPTS
        ]
    for recipe in ("f32", "f16"):
        with smc.load(inputs.artifact(model, recipe), kv_dtype=recipe) as own:
            difference = np.abs(own.logits(tokens) - expected).max()
            equal = 0
            for prompt, theirs in zip(PROMPTS, greedy, strict=True):
                start = tokenizer.encode(prompt).ids
                result = own.generate(start, max_tokens=64, temperature=0)
                equal += list(result.tokens) == theirs[len(start) :][: len(result.tokens)]
        click.echo(
            f"{recipe}: largest difference of a logit over {len(tokens)} tokens {difference:.2e}; "
            f"greedy text identical after {equal} of {len(PROMPTS)} prompts"
        )


if __name__ == "__main__":
    main()
