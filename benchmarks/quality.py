"""Quality of quantized artifacts: KL divergence and perplexity beside transformers in fp32, and llama.cpp's formats.

    python -m benchmarks.quality --quant int8 --quant int4 --peer Q8_0 --peer Q4_0-pure [--windows 100] [--json FILE]
    python -m benchmarks.quality --artifact smollm2.smc --windows 20

The model is the off-grid SmolLM2 (benchmarks/models.py) unless --model names another folder; the text is Wikipedia
prose (benchmarks/text.py), cut into windows that don't overlap, each seen alone. The second half of a window is scored,
as llama.cpp's perplexity tool does. llama.cpp's formats are judged by that tool, beside llama.cpp's own f16.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks import inputs, peer
from benchmarks.publish import Table, publish
from smc.reference.evaluation import evaluate, text_windows
from smc.runtime.artifact import read_manifest


@dataclass
class Quality:
    """One line of the table. KL divergence in nats, `same_top_token` a share of 1, bits with scales and embedding.

    kl_error: the standard error of the mean over windows, or over tokens in llama.cpp's tool.
    """

    name: str
    bits_per_weight: float
    perplexity: float
    reference_perplexity: float
    mean_kl: float
    same_top_token: float
    kl_error: float


class Fp32Reference:
    """transformers in fp32, whose final hidden states are kept on disk.

    Logits would take forty times the space; the head is applied each time, so that they are fp32 without loss.
    """

    def __init__(self, model: Path) -> None:
        """Load the model of a Hugging Face folder."""
        from transformers import AutoModelForCausalLM

        self.network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        digest = hashlib.sha256()
        for file in sorted(model.glob("*.safetensors")):
            digest.update(file.read_bytes())
        self.folder = inputs.BUILD / "reference" / digest.hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)

    @torch.inference_mode()
    def logits(self, tokens: Tensor) -> Tensor:
        """Tokens of one window, int64 [n] → float32 [n, vocab]."""
        path = self.folder / f"{hashlib.sha256(tokens.numpy().tobytes()).hexdigest()[:16]}.npy"
        if path.is_file():
            hidden = torch.from_numpy(np.load(path))
        else:
            hidden = self.network.model(tokens[None]).last_hidden_state[0]
            with open(partial := path.with_suffix(".partial"), "wb") as file:
                np.save(file, hidden.numpy())
            os.replace(partial, path)
        logits: Tensor = self.network.lm_head(hidden)
        return logits


def measure(
    artifact: Path, reference: Fp32Reference, windows: list[Tensor], threads: int, perplexity: float
) -> Quality:
    """An artifact beside the reference, which has this perplexity."""
    import smc

    model = smc.load(artifact, threads=threads)

    def logits(tokens: Tensor) -> Tensor:
        return torch.from_numpy(model.logits(tokens.tolist()))

    own = evaluate(logits, windows, against=reference.logits, scored="second-half")
    assert own.kl_divergence is not None
    assert own.same_top is not None
    assert own.kl_error is not None
    return Quality(
        artifact.stem,
        read_manifest(artifact).bits_per_weight,
        own.perplexity,
        perplexity,
        own.kl_divergence,
        own.same_top,
        own.kl_error,
    )


def measure_artifacts(
    model: Path, artifacts: Sequence[Path], text: Path, windows: int, context: int, threads: int
) -> list[Quality]:
    """Artifacts of a model, beside transformers."""
    from tokenizers import Tokenizer

    tokens = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text.read_text(encoding="utf-8")).ids
    reference = Fp32Reference(model)
    chosen = text_windows(tokens, context, windows)
    perplexity = evaluate(reference.logits, chosen, scored="second-half").perplexity
    return [measure(artifact, reference, chosen, threads, perplexity) for artifact in artifacts]


def measure_peer(model: Path, format: str, text: Path, windows: int, context: int, threads: int) -> Quality:
    """One of llama.cpp's formats ("Q8_0", "Q4_0-pure") beside llama.cpp's f16."""
    type, _, pure = format.partition("-")
    gguf = peer.convert(model, type, pure=bool(pure))
    figures = peer.divergence(peer.convert(model, "F16"), gguf, text, windows=windows, context=context, threads=threads)
    return Quality(f"llama.cpp {format}", peer.bits_per_weight(gguf), **figures)


def table(rows: list[Quality]) -> Table:
    """The table of docs/benchmarks.md."""
    columns = ["format", "bits per weight", "perplexity", "mean KL divergence", "same top token"]
    cells = [
        [
            row.name if row.name.startswith("llama.cpp") else f"`{row.name}`",
            f"{row.bits_per_weight:.2f}",
            f"{row.perplexity:.2f}",
            f"{row.mean_kl:.2g} ± {row.kl_error:.1g}",
            f"{100 * row.same_top_token:.1f} %",
        ]
        for row in rows
    ]
    return Table("", columns, cells)


def print_table(rows: list[Quality]) -> None:
    """One line a format."""
    click.echo(f"{'':<24}{'bits/weight':>12}{'perplexity':>12}{'fp':>9}{'mean KL':>19}{'same top':>10}")
    for row in rows:
        click.echo(
            f"{row.name:<24}{row.bits_per_weight:>12.2f}{row.perplexity:>12.2f}{row.reference_perplexity:>9.2f}"
            f"{row.mean_kl:>10.4f} ± {row.kl_error:.4f}{row.same_top_token:>10.1%}"
        )


@click.command(help=__doc__)
@click.option("--quant", "quants", multiple=True, help="A recipe to compile and judge; may be repeated.")
@click.option(
    "--artifact",
    "artifacts",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An artifact of the model to judge; may be repeated.",
)
@click.option("--peer", "formats", multiple=True, help="A format of llama.cpp; may be repeated.")
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--text", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--windows", default=100, show_default=True, type=click.IntRange(2))
@click.option("--context", default=512, show_default=True, help="Tokens in a window.")
@click.option("--threads", default=len(os.sched_getaffinity(0)), show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures there too.")
@click.option("--publish", "published", is_flag=True, help="Write the table for docs/benchmarks.md.")
def main(
    quants: tuple[str, ...],
    artifacts: tuple[Path, ...],
    formats: tuple[str, ...],
    model: Path | None,
    text: Path | None,
    windows: int,
    context: int,
    threads: int,
    json_file: Path | None,
    published: bool,
) -> None:
    """Measure and print the table."""
    model = model or inputs.offgrid_model()
    text = text or inputs.evaluation_text()
    torch.set_num_threads(threads)
    rows = [measure_peer(model, format, text, windows, context, threads) for format in formats]
    files = [*(inputs.artifact(model, quant) for quant in quants), *artifacts]
    if files:
        rows += measure_artifacts(model, files, text, windows, context, threads)
    print_table(rows)
    if json_file:
        figures = {"machine": inputs.machine(), "windows": windows, "rows": [asdict(row) for row in rows]}
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if published:
        publish("quality", [table(rows)])


if __name__ == "__main__":
    main()
