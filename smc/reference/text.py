"""Texts as tokens of a model, for calibration and evaluation; unsuitable texts are errors."""

from __future__ import annotations

import json
from pathlib import Path

from smc.errors import InputError

MOST_UNKNOWN = 0.1
"""A text with a larger share of unknown tokens is refused, because it has another alphabet than the tokenizer."""


def read_tokens(path: Path, tokenizer: str | None, vocab_size: int) -> list[int]:
    """The tokens of a text file, with a model's own tokenizer (the text of a `tokenizers` JSON file).

    InputError if there is no such file or no tokenizer, if the file is empty or not UTF-8 text, or if the tokenizer
    does not know its alphabet.
    """
    from tokenizers import Tokenizer

    text = read_text(path)
    if tokenizer is None:
        raise InputError("the model has no tokenizer, so it can't read a text")
    try:
        encoder = Tokenizer.from_str(tokenizer)
        encoder.no_truncation()
        encoder.no_padding()
        tokens = list(encoder.encode(text).ids)
    except Exception as error:  # tokenizers raises no narrower class
        raise InputError(f"the model's tokenizer can't read {path}: {' '.join(str(error).split())}") from error
    unknown = _unknown_token(tokenizer)
    share = tokens.count(unknown) / max(1, len(tokens)) if unknown is not None else 0.0
    if share > MOST_UNKNOWN:
        raise InputError(
            f"the model's tokenizer does not know {100 * share:.0f} % of {path}: "
            "take a text in a language that the model was trained on"
        )
    if tokens and max(tokens) >= vocab_size:
        raise InputError(f"the tokenizer makes token {max(tokens)} from {path}, but the model has {vocab_size} tokens")
    return tokens


def read_text(path: Path) -> str:
    """The text of a file; InputError if there is none, or if it is empty or not UTF-8 text."""
    if not path.is_file():
        raise InputError(f"there is no text file {path}")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (see byte {error.start})") from error
    if "\0" in text:
        raise InputError(f"{path} is not a text: it has a zero byte, as binary files do")
    if not text.strip():
        raise InputError(f"the text file {path} is empty")
    return text


def _unknown_token(tokenizer: str) -> int | None:
    """The id for characters that a tokenizer does not know; None if it knows all bytes."""
    content = json.loads(tokenizer)
    model = content.get("model") or {}
    if isinstance(model.get("unk_id"), int):  # Unigram
        return int(model["unk_id"])
    token, vocabulary = model.get("unk_token"), model.get("vocab")
    if not isinstance(token, str) or not isinstance(vocabulary, dict) or not isinstance(vocabulary.get(token), int):
        return None
    return int(vocabulary[token])
