"""`--draft`: what guesses tokens for a model, so that it is faster."""

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
    help="What guesses tokens, which makes it faster and changes none: `lookup` (what the text had before), an n-gram "
    "model, or a smaller artifact.",
)


def drafter_of(what: str | None, model: Model) -> Callable[[], Drafter | None]:
    """What makes a drafter for each text of `model`. Raises InputError where the two do not have the same tokens."""
    if what is None:
        return lambda: None
    if what == "lookup":
        from smc.runtime.speculation import PromptLookup

        return PromptLookup
    path = Path(what)
    if not path.is_file():
        raise InputError(f"--draft is `lookup`, an n-gram model or an artifact; there is no file {what}")
    from smc.runtime.ngram import NgramModel

    if NgramModel.is_one(path):
        ngrams = NgramModel.load(path)
        if (ngrams.tokenizer, ngrams.vocab_size) != (model.artifact.tokenizer, model.vocab_size):
            raise InputError(f"{path} can't draft for {model.artifact.path}: it was built with another tokenizer")
        return lambda: ngrams
    from smc.runtime import load
    from smc.runtime.speculation import DraftModel

    small = DraftModel(load(path, context_length=min(model.context_length, _trained(path))), model)
    return lambda: small


def _trained(path: Path) -> int:
    from smc.runtime.artifact import read_manifest

    return read_manifest(path).context_length
