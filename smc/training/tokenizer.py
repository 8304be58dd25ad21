"""A tokenizer trained on a text: byte-level BPE (Sennrich et al., arXiv 1508.07909)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from smc.errors import InputError
from smc.reference.text import read_text

END = "<|endoftext|>"
BYTES = 256


def train_tokenizer(files: Sequence[Path], vocab_size: int) -> Tokenizer:
    """A tokenizer with at most `vocab_size` tokens: every byte, merges, and <|endoftext|>, which is token 0."""
    if vocab_size < BYTES + 1:
        raise InputError(f"a new tokenizer needs at least {BYTES + 1} tokens (every byte, and {END}), not {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((read_text(path) for path in files), trainer)
    return tokenizer
