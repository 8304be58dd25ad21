"""What guesses tokens for the texts of a model, by its name: `lookup`, an n-gram model, or a smaller artifact."""

from __future__ import annotations

from pathlib import Path

from smc.errors import InputError
from smc.runtime.artifact import read_manifest
from smc.runtime.model import Model
from smc.runtime.ngram import NgramModel
from smc.runtime.speculation import Drafter, DraftModel, PromptLookup


class Drafters:
    """Makes a drafter for each text.

    what: `lookup`, or a file: an n-gram model, or an artifact with the tokenizer of `model`, which is opened. texts:
    how many have a drafter at once. Raises InputError where the two do not have the same tokens.
    """

    def __init__(self, what: str, model: Model, texts: int = 1) -> None:
        self._target = model
        self._ngrams: NgramModel | None = None
        self._small: Model | None = None
        self._free: list[DraftModel] = []
        if what == "lookup":
            return
        path = Path(what)
        if not path.is_file():
            raise InputError(f"a draft is `lookup`, an n-gram model or an artifact; there is no file {what}")
        if NgramModel.is_one(path):
            self._ngrams = NgramModel.load(path)
            if (self._ngrams.tokenizer, self._ngrams.vocab_size) != (model.artifact.tokenizer, model.vocab_size):
                raise InputError(f"{path} can't draft for {model.artifact.path}: it was built with another tokenizer")
            return
        length = min(model.context_length, read_manifest(path).context_length)
        self._small = Model(path, context_length=length, threads=model.threads, sequences=texts)
        try:
            self.new().close()
        except InputError:
            self._small.close()
            raise

    def new(self) -> Drafter:
        """For a text; `close` it at the text's end."""
        if self._small is not None:
            return self._free.pop() if self._free else DraftModel(self._small, self._target, self._free.append)
        return self._ngrams if self._ngrams is not None else PromptLookup()

    def close(self) -> None:
        """Free what was opened."""
        if self._small is not None:
            self._small.close()
