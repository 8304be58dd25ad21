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
from smc.cli.tasks import check_tasks, run_tasks
from smc.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from smc.generation import GenerationDefaults
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
    generation: GenerationDefaults

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        return self.generation.eos_token_ids

    @property
    def prefix_token(self) -> int:
        """What stands in front of a text that has nothing before it."""
        begin = self.generation.bos_token_id
        return begin if begin is not None else next(iter(self.end_tokens), 0)


@click.command(name="eval")
@click.argument("model", type=click.Path())
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE", help="UTF-8 text to evaluate on.")
@click.option("--against", type=click.Path(), metavar="MODEL", help="Model to compare with: a checkpoint or artifact.")
@pass_options
@calibration_options
@click.option("--windows", type=click.IntRange(1), metavar="N", help="Maximum number of windows; by default all.")
@count_option("--window", 512, "N", "Tokens per window; at most the model's context.", least=4)
@click.option("--tasks", metavar="NAMES", help="Tasks of lm-eval's harness to do, with commas between.")
@click.option(
    "--task-folder", type=click.Path(path_type=Path), metavar="DIR", help="Folder of further tasks, the harness's YAML."
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Do at most N examples of every task.")
@click.option("-t", "--threads", type=click.IntRange(0), default=0, metavar="N", help="Threads for an artifact.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@verbosity_options
def evaluate(
    model: str,
    text: Path | None,
    against: str | None,
    quant: str | None,
    passes: tuple[str, ...],
    recipe: Path | None,
    bits: float | None,
    calib: Path | None,
    work: Path | None,
    windows: int | None,
    window: int,
    tasks: str | None,
    task_folder: Path | None,
    limit: int | None,
    threads: int,
    as_json: bool,
) -> None:
    """Measure the quality of MODEL (an artifact, or a checkpoint after the given passes) on a text.

    The text is cut into windows, and the model sees each window alone. Perplexity is shown for all tokens of a window
    except its first, and for the second half of each window, as llama.cpp counts. --against adds, for the second
    halves, the KL divergence (in nats) and how often the likeliest token is the same. The engine runs artifacts. Torch
    runs checkpoints, with the same rounding, but slowly. --tasks has lm-eval's harness ask the model (extra "eval").

    \b
    Examples:
      smc eval smollm2.smc --text prose.txt --against ./SmolLM2-135M-Instruct
      smc eval ./TinyLlama -p quantize-gptq:bits=3 --calib calibration.txt --text prose.txt --against ./TinyLlama
      smc eval smollm2.smc --tasks arc_easy,lambada_openai --limit 200
    """
    from smc.reference.text import read_text

    if text is None and tasks is None:
        raise InputError("what to judge the model by is missing: --text FILE or --tasks NAMES")
    if against is not None and text is None:
        raise InputError("--against compares two models on a text: give --text FILE")
    if text is not None:
        read_text(text)  # refuse what is no text before the passes do their work
    names = tasks.split(",") if tasks is not None else []
    manager = check_tasks(names, task_folder) if names else None
    requests = read_requests(passes, quant, recipe, bits) if passes or quant or recipe or bits else []
    figures: dict[str, Any] = {"model": model, "against": against}
    with StageProgress() as progress:
        progress.update("read models", 0)
        with (
            _opened(against, [], None, None, threads, progress) if against is not None else _nobody() as other,
            _opened(model, requests, calib, work, threads, progress) as judged,
        ):
            figures |= {"bits_per_weight": judged.bits_per_weight, "packed": judged.packed}
            progress.update("read models", 1)
            if text is not None:
                figures |= _on_text(judged, other, text, windows, window, progress)
            if names:
                done = run_tasks(judged, names, manager, limit, lambda part: progress.update("do tasks", part))
                figures["tasks"] = done
    click.echo(json.dumps(figures, indent=2) if as_json else _table(figures))


def _on_text(
    judged: Subject, other: Subject | None, text: Path, windows: int | None, window: int, progress: StageProgress
) -> dict[str, Any]:
    """What --json prints about a text."""
    from smc.reference.evaluation import score, text_windows
    from smc.reference.text import read_tokens

    if other is not None and other.vocab_size != judged.vocab_size:
        raise InputError(
            f"{other.name} has a vocabulary of {other.vocab_size} tokens, {judged.name} one of {judged.vocab_size}: "
            "choose models with the same tokens"
        )
    length = min(window, *(subject.context_length for subject in (judged, other) if subject is not None))
    chosen = text_windows(read_tokens(text, judged.tokenizer, judged.vocab_size), length, windows)
    if not chosen:
        raise InputError(
            f"the text {text} is too short for a window of {length} tokens: give a longer text or a smaller --window"
        )
    scores = score(
        judged.logits,
        chosen,
        None if other is None else other.logits,
        lambda fraction: progress.update("evaluate", fraction),
    )
    return _figures(scores, other is not None, len(chosen), length)


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
            generation=artifact.artifact.manifest.generation,
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
    return Subject(
        model,
        logits,
        facts.tokenizer,
        facts.vocab_size,
        facts.context_length,
        bits,
        packed=False,
        generation=facts.generation,
    )


def _figures(scores: Scores, compared: bool, windows: int, length: int) -> dict[str, Any]:
    """The scores as --json prints them."""
    full, half = scores.summary("full"), scores.summary("second-half")
    figures: dict[str, Any] = {
        "windows": windows,
        "window": length,
        "perplexity": {"full": full.perplexity, "second_half": half.perplexity},
        "tokens": {"full": full.tokens, "second_half": half.tokens},
    }
    if compared:
        found = asdict(half)
        names = {"kl_divergence": "mean", "kl_error": "standard_error", "median_kl": "median", "kl_99": "99 %"}
        figures["kl_divergence"] = {name: found[field] for field, name in names.items()}
        figures["same_top_token"] = half.same_top
    return figures


def _table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    bits = figures["bits_per_weight"]
    rows = {"bits per weight": "unknown" if bits is None else f"{bits:.3f}, {BITS[figures['packed']]}"}
    if "windows" in figures:
        perplexity = figures["perplexity"]
        rows["text"] = f"{figures['windows']:,} windows of {figures['window']} tokens"
        rows["perplexity"] = f"{perplexity['full']:.4f}; of second halves {perplexity['second_half']:.4f}"
    if "kl_divergence" in figures:
        divergence = figures["kl_divergence"]
        error = divergence["standard_error"]
        rows["KL divergence"] = (
            f"mean {divergence['mean']:.5f}{'' if error is None else f' ± {error:.5f}'}, "
            f"median {divergence['median']:.5f}, 99 % {divergence['99 %']:.4f}"
        )
        rows["same top token"] = f"{100 * figures['same_top_token']:.2f} %"
    for task, found in figures.get("tasks", {}).items():
        rows[task] = ", ".join(f"{metric} {value:.4f}" for metric, value in found.items())
    title = figures["model"] if figures["against"] is None else f"{figures['model']} against {figures['against']}"
    width = max(map(len, rows))
    return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in rows.items())])
