"""`smc ngram`: n-gram models, which draft for a language model or predict by themselves."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from smc.cli import messages
from smc.cli.options import utf8_text, verbosity_options
from smc.cli.output import check_replaceable
from smc.errors import InputError, blamed_on


@click.group()
def ngram() -> None:
    """Build n-gram models from texts, and predict with them.

    An n-gram model guesses tokens for `smc run --draft FILE`, or predicts the next words as a phone's keyboard does.

    \b
    Examples:
      smc ngram build smollm2.smc notes.txt -o notes.ngram
      smc run smollm2.smc --draft notes.ngram "What did I write about the garden?"
      smc ngram predict notes.ngram "In the garden"
    """


@ngram.command()
@click.argument("model", type=click.Path())
@click.argument("text", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="FILE", help="File to write; by default NAME.ngram."
)
@click.option("--order", type=int, default=5, show_default=True, metavar="N", help="Tokens of the longest n-grams.")
@click.option("--force", is_flag=True, help="Replace FILE even if it is not an n-gram model.")
@verbosity_options
def build(model: str, text: Path, out: Path | None, order: int, force: bool) -> None:
    """Count the n-grams of TEXT, a UTF-8 file, in the tokens of MODEL (an artifact or a checkpoint)."""
    from tokenizers import Tokenizer

    from smc.runtime.ngram import NgramModel

    out = out or Path(f"{text.stem}.ngram")
    if not force:
        check_replaceable(out, "n-gram model", b"PK")
    tokenizer, vocab_size = _tokenizer(model)
    try:
        words = text.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{text} is not UTF-8 text") from None
    started = time.perf_counter()
    with blamed_on(f"the tokenizer of {model} can't encode {text}"):
        tokens = Tokenizer.from_str(tokenizer).encode(words, add_special_tokens=False).ids
    made = NgramModel.build(tokens, vocab_size, tokenizer, order)
    made.save(out)
    messages.note(
        f"{out}: {made.ngrams:,} n-grams of 1 to {order} tokens from {len(tokens):,} tokens, "
        f"{out.stat().st_size / 1e6:,.1f} MB, {time.perf_counter() - started:.1f} s"
    )


def _tokenizer(model: str) -> tuple[str, int]:
    """The tokenizer's JSON and the vocabulary of an artifact or a checkpoint."""
    from smc.cli.inspect import is_artifact

    if is_artifact(Path(model)):
        from smc.runtime.artifact import read_artifact

        artifact = read_artifact(Path(model))
        found, vocab_size = artifact.tokenizer, artifact.manifest.vocab_size
    else:
        from smc.frontend import load_checkpoint

        facts = load_checkpoint(model).facts
        found, vocab_size = facts.tokenizer, facts.vocab_size
    if found is None:
        raise InputError(f"{model} has no tokenizer: use a model that has one")
    return found, vocab_size


@ngram.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("text", callback=utf8_text)
@click.option(
    "-n", "--count", type=click.IntRange(1), default=5, show_default=True, metavar="N", help="How many guesses to show."
)
@click.option("--json", "as_json", is_flag=True, help="Print the guesses as JSON.")
@verbosity_options
def predict(file: Path, text: str, count: int, as_json: bool) -> None:
    """Show the likeliest tokens after TEXT with their probabilities."""
    from tokenizers import Tokenizer

    from smc.runtime.ngram import NgramModel

    model = NgramModel.load(file)
    with blamed_on(f"the tokenizer in {file} can't be used"):
        tokenizer = Tokenizer.from_str(model.tokenizer)
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
    guesses = [(token, tokenizer.decode([token]), chance) for token, chance in model.predict(tokens, count)]
    if as_json:
        rows = [{"token": token, "text": words, "probability": chance} for token, words, chance in guesses]
        click.echo(json.dumps(rows, ensure_ascii=not messages.writes_unicode()))
        return
    for _, words, chance in guesses:
        click.echo(f"{chance:7.4f}  {json.dumps(words, ensure_ascii=not messages.writes_unicode())}")
