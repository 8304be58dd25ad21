"""`--draft`: the drafter, which guesses tokens so that a model is faster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smc.errors import InputError

if TYPE_CHECKING:
    from smc.runtime import Model
    from smc.runtime.speculation import Drafter

draft_option = click.option(
    "--draft",
    metavar="WHAT",
    help="Drafter that guesses tokens, which is faster and changes no text: `lookup` (what the text had before), an "
    "n-gram model, or a smaller artifact.",
)


def drafter_of(what: str | None, model: Model) -> Callable[[], Drafter | None]:
    """A function that makes a drafter for each text of `model`. Raises InputError if the two do not have the same
    tokens."""
    if what is None:
        return lambda: None
    if what == "lookup":
        from smc.runtime.speculation import PromptLookup

        return PromptLookup
    path = Path(what)
    if not path.is_file():
        raise InputError(f"there is no file {what}: --draft takes `lookup`, an n-gram model or an artifact")
    from smc.runtime.ngram import NgramModel

    if NgramModel.is_one(path):
        ngrams = NgramModel.load(path)
        if (ngrams.tokenizer, ngrams.vocab_size) != (model.artifact.tokenizer, model.vocab_size):
            raise InputError(
                f"{path} can't draft for {model.artifact.path}: its tokenizer is another; build it with this model"
            )
        return lambda: ngrams
    from smc.runtime import load
    from smc.runtime.speculation import DraftModel

    small = DraftModel(load(path, context_length=min(model.context_length, _trained(path))), model)
    return lambda: small


def _trained(path: Path) -> int:
    from smc.runtime.artifact import read_manifest

    return read_manifest(path).context_length
