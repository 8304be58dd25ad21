"""Texts as tokens of a model, for calibration and evaluation; what is no use as such is refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

from smc.errors import InputError

MOST_UNKNOWN = 0.1
"""A text with a larger share of unknown tokens is in another alphabet than the tokenizer's."""


def read_tokens(path: Path, tokenizer: str | None, vocab_size: int) -> list[int]:
    """The tokens of a text file, by a model's own tokenizer (the text of a `tokenizers` JSON file).

    InputError where there is no such file or no tokenizer, where the file is empty or no UTF-8 text, and where the
    tokenizer does not know what it is written in.
    """
    from tokenizers import Tokenizer

    text = read_text(path)
    if tokenizer is None:
        raise InputError("the model has no tokenizer, so it cannot read a text")
    try:
        encoder = Tokenizer.from_str(tokenizer)
        encoder.no_truncation()
        encoder.no_padding()
        tokens = list(encoder.encode(text).ids)
    except Exception as error:  # tokenizers raises nothing narrower
        raise InputError(f"the model's tokenizer cannot read {path}: {' '.join(str(error).split())}") from error
    unknown = _unknown_token(tokenizer)
    share = tokens.count(unknown) / max(1, len(tokens)) if unknown is not None else 0.0
    if share > MOST_UNKNOWN:
        raise InputError(
            f"the model's tokenizer does not know {100 * share:.0f} % of {path}: "
            "take a text in a language that the model was trained on"
        )
    if tokens and max(tokens) >= vocab_size:
        raise InputError(f"the tokenizer makes token {max(tokens)} of {path}, beyond the model's {vocab_size}")
    return tokens


def read_text(path: Path) -> str:
    """The text of a file; InputError where there is none, where it is empty or no UTF-8 text."""
    if not path.is_file():
        raise InputError(f"there is no text file {path}")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text (see byte {error.start})") from error
    if "\0" in text:
        raise InputError(f"{path} is no text: it has a zero byte, as binary files do")
    if not text.strip():
        raise InputError(f"the text file {path} is empty")
    return text


def _unknown_token(tokenizer: str) -> int | None:
    """The id that stands for what a tokenizer does not know; None where it knows all bytes."""
    content = json.loads(tokenizer)
    model = content.get("model") or {}
    if isinstance(model.get("unk_id"), int):  # Unigram
        return int(model["unk_id"])
    token, vocabulary = model.get("unk_token"), model.get("vocab")
    if not isinstance(token, str) or not isinstance(vocabulary, dict) or not isinstance(vocabulary.get(token), int):
        return None
    return int(vocabulary[token])
