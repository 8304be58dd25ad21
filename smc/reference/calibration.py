"""Calibration: a text cut into windows, and the model run over all of them, one call at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from smc.errors import InputError
from smc.ir import ModelFacts, Module
from smc.reference.gradients import GradientRunner
from smc.reference.runner import CallRunner
from smc.reference.text import read_tokens

SHIPPED_TEXT = Path(__file__).parent / "texts" / "calibration.txt"
"""The text that comes with smc: prose, code, chat turns and other languages (texts/README.md has the sources)."""

WINDOW = 512
"""Tokens of a window; fewer if the model's context is shorter."""

MOST_WINDOWS = 96
"""Most windows of a text; of a longer one these, evenly spread."""

MOST_HELD_OUT = 6
"""Windows that are kept apart to judge the result by."""

HELD_OUT_SHARE = 12
"""One of so many windows is, where there are few."""

GRADIENT_SHARE = 3
"""Gradients are computed on every third window: the backward pass costs three times as much."""

LEAST_TOKENS = 1024
"""Fewer tokens are refused: second moments of so few inputs say too little."""


class CalibrationText:
    """Windows of a text, int64 [length] each, on which quantizers run a model.

    held_out: windows that they do not see, to judge the result by.
    """

    def __init__(self, windows: Sequence[Tensor], held_out: Sequence[Tensor] = ()) -> None:
        """windows: tokens of the model; each window runs alone, from position 0."""
        self.windows, self.held_out = list(windows), list(held_out)

    @staticmethod
    def read(path: Path, facts: ModelFacts) -> CalibrationText:
        """Read a text file with the model's own tokenizer; InputError if it is too short or not a text for that
        model."""
        tokens = read_tokens(path, facts.tokenizer, facts.vocab_size)
        length = min(WINDOW, facts.context_length)
        count = len(tokens) // length
        if len(tokens) < LEAST_TOKENS or not count:
            raise InputError(
                f"the calibration text {path} is too short: it has {len(tokens):,} tokens, and at least "
                f"{LEAST_TOKENS:,} are needed, better {MOST_WINDOWS * length:,}"
            )
        whole = torch.tensor(tokens, dtype=torch.int64)[: count * length].view(count, length)
        held = min(MOST_HELD_OUT, count // HELD_OUT_SHARE)
        apart = [(2 * index + 1) * count // (2 * held) for index in range(held)]
        rest = [index for index in range(count) if index not in apart]
        taken = min(len(rest), MOST_WINDOWS)
        seen = [whole[rest[index * len(rest) // taken]] for index in range(taken)]
        return CalibrationText(seen, [whole[index] for index in apart])

    @property
    def window(self) -> int:
        """Tokens of a window. ValueError if they differ."""
        (length,) = {len(window) for window in self.windows}
        return length

    @property
    def counts(self) -> tuple[int, int]:
        """The number of windows with gradients, and of the others."""
        gradients = len(self.gradient_windows)
        return gradients, len(self.windows) - gradients

    @property
    def gradient_windows(self) -> list[Tensor]:
        """The windows with gradients."""
        return self.windows[::GRADIENT_SHARE]

    def digest(self) -> str:
        """A hash of the windows."""
        tokens = [window.tolist() for window in self.windows]
        return hashlib.sha256(repr(tokens).encode()).hexdigest()

    def runner(self, module: Module, only_gradient_windows: bool = False) -> CallRunner:
        """A runner of this module on the text, at the first call."""
        return CallRunner(module, self.gradient_windows if only_gradient_windows else self.windows)

    def gradient_runner(self, module: Module, folder: Path, seed: int) -> GradientRunner:
        """A runner of this module forward and backward, which keeps values in files in `folder`."""
        rest = [window for index, window in enumerate(self.windows) if index % GRADIENT_SHARE]
        return GradientRunner(module, self.gradient_windows, rest, folder, seed)
