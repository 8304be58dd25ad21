"""`smc eval`: how well a model predicts a text, and how much it differs from another model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smc.cli.options import count_option, verbosity_options
from smc.cli.pass_options import Request, calibration_options, pass_options, read_requests, run_requests, work_folder
from smc.cli.progress import StageProgress
from smc.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from smc.reference.evaluation import Scores

BITS = {True: "as packed in the artifact", False: "from the encodings, before packing"}
"""How bits per weight are counted: with packed tiles or with whole groups, which can differ by 1 %."""


@dataclass(frozen=True)
class Subject:
    """A model to evaluate: an artifact with the engine, a checkpoint with the reference.

    tokenizer: the text of its `tokenizers` JSON file. bits_per_weight: true average, of an artifact
    as it is packed (None if its manifest does not say), of a checkpoint by its encodings. packed: which of the two.
    """

    name: str
    logits: Callable[[Tensor], Tensor]
    tokenizer: str | None
    vocab_size: int
    context_length: int
    bits_per_weight: float | None
    packed: bool


@click.command(name="eval")
@click.argument("model", type=click.Path())
@click.option(
    "--text", type=click.Path(path_type=Path), required=True, metavar="FILE", help="UTF-8 text to evaluate on."
)
@click.option("--against", type=click.Path(), metavar="MODEL", help="Model to compare with: a checkpoint or artifact.")
@pass_options
@calibration_options
@click.option("--windows", type=click.IntRange(1), metavar="N", help="Maximum number of windows; by default all.")
@count_option("--window", 512, "N", "Tokens per window; at most the model's context.", least=4)
@click.option("-t", "--threads", type=click.IntRange(0), default=0, metavar="N", help="Threads for an artifact.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@verbosity_options
def evaluate(
    model: str,
    text: Path,
    against: str | None,
    quant: str | None,
    passes: tuple[str, ...],
    recipe: Path | None,
    bits: float | None,
    calib: Path | None,
    work: Path | None,
    windows: int | None,
    window: int,
    threads: int,
    as_json: bool,
) -> None:
    """Measure the quality of MODEL (an artifact, or a checkpoint after the given passes) on a text.

    The text is cut into windows, and the model sees each window alone. Perplexity is shown for all tokens of a window
    except its first, and for the second half of each window, as llama.cpp counts. --against adds, for the second
    halves, the KL divergence (in nats) and how often the likeliest token is the same. The engine runs artifacts. Torch
    runs checkpoints, with the same rounding, but slowly.

    \b
    Examples:
      smc eval smollm2.smc --text prose.txt --against ./SmolLM2-135M-Instruct
      smc eval ./TinyLlama -p quantize-gptq:bits=3 --calib calibration.txt --text prose.txt --against ./TinyLlama
    """
    from smc.reference.evaluation import score, text_windows
    from smc.reference.text import read_text, read_tokens

    read_text(text)  # refuse a wrong text before the passes do their work
    requests = read_requests(passes, quant, recipe, bits) if passes or quant or recipe or bits else []
    with StageProgress() as progress:
        progress.update("read models", 0)
        with (
            _opened(against, [], None, None, threads, progress) if against is not None else _nobody() as other,
            _opened(model, requests, calib, work, threads, progress) as judged,
        ):
            if other is not None and other.vocab_size != judged.vocab_size:
                raise InputError(
                    f"{against} has a vocabulary of {other.vocab_size} tokens, {model} one of {judged.vocab_size}: "
                    "choose models with the same tokens"
                )
            length = min(window, *(subject.context_length for subject in (judged, other) if subject is not None))
            chosen = text_windows(read_tokens(text, judged.tokenizer, judged.vocab_size), length, windows)
            if not chosen:
                raise InputError(
                    f"the text {text} is too short for a window of {length} tokens: give a longer text or a smaller "
                    "--window"
                )
            progress.update("read models", 1)
            scores = score(
                judged.logits,
                chosen,
                None if other is None else other.logits,
                lambda fraction: progress.update("evaluate", fraction),
            )
    figures = _figures(judged, against, scores, len(chosen), length)
    click.echo(json.dumps(figures, indent=2) if as_json else _table(figures))


@contextmanager
def _nobody() -> Iterator[None]:
    yield None


@contextmanager
def _opened(
    model: str,
    requests: list[Request],
    calib: Path | None,
    work: Path | None,
    threads: int,
    progress: StageProgress,
) -> Iterator[Subject]:
    """Load a model for evaluation."""
    from smc.cli.inspect import is_artifact

    if not is_artifact(Path(model)):
        yield _checkpoint(model, requests, calib, work, progress)
        return
    if requests or calib is not None:
        raise InputError(
            f"{model} is an artifact, which passes can't change: name the checkpoint that it was made from"
        )
    import torch

    import smc

    with smc.load(model, threads=threads) as artifact:
        yield Subject(
            model,
            lambda tokens: torch.from_numpy(artifact.logits(tokens.tolist())),
            artifact.artifact.tokenizer,
            artifact.vocab_size,
            artifact.context_length,
            artifact.artifact.manifest.bits_per_weight,
            packed=True,
        )


def _checkpoint(
    model: str, requests: list[Request], calib: Path | None, work: Path | None, progress: StageProgress
) -> Subject:
    import smc
    from smc.reference import Reference

    module = run_requests(
        smc.load_checkpoint(model),
        requests,
        calib,
        report=progress.note,
        progress=lambda fraction: progress.update("run passes", fraction),
        work=work_folder(work),
        note=progress.note,
    )
    facts = module.facts
    logits, bits = Reference(module).logits, module.bits_per_weight()
    return Subject(model, logits, facts.tokenizer, facts.vocab_size, facts.context_length, bits, packed=False)


def _figures(judged: Subject, against: str | None, scores: Scores, windows: int, length: int) -> dict[str, Any]:
    """All figures, for --json."""
    full, half = scores.summary("full"), scores.summary("second-half")
    figures: dict[str, Any] = {
        "model": judged.name,
        "against": against,
        "bits_per_weight": judged.bits_per_weight,
        "packed": judged.packed,
        "windows": windows,
        "window": length,
        "perplexity": {"full": full.perplexity, "second_half": half.perplexity},
        "tokens": {"full": full.tokens, "second_half": half.tokens},
    }
    if against is not None:
        compared = asdict(half)
        names = {"kl_divergence": "mean", "kl_error": "standard_error", "median_kl": "median", "kl_99": "99 %"}
        figures["kl_divergence"] = {name: compared[field] for field, name in names.items()}
        figures["same_top_token"] = half.same_top
    return figures


def _table(figures: dict[str, Any]) -> str:
    """Print the figures for people."""
    bits, perplexity = figures["bits_per_weight"], figures["perplexity"]
    rows = {
        "text": f"{figures['windows']:,} windows of {figures['window']} tokens",
        "bits per weight": "unknown" if bits is None else f"{bits:.3f}, {BITS[figures['packed']]}",
        "perplexity": f"{perplexity['full']:.4f}; of second halves {perplexity['second_half']:.4f}",
    }
    if figures["against"] is not None:
        divergence = figures["kl_divergence"]
        error = divergence["standard_error"]
        rows["KL divergence"] = (
            f"mean {divergence['mean']:.5f}{'' if error is None else f' ± {error:.5f}'}, "
            f"median {divergence['median']:.5f}, 99 % {divergence['99 %']:.4f}"
        )
        rows["same top token"] = f"{100 * figures['same_top_token']:.2f} %"
    title = figures["model"] if figures["against"] is None else f"{figures['model']} against {figures['against']}"
    width = max(map(len, rows))
    return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in rows.items())])
