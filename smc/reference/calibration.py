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
"""The text that comes with smc: prose, code, chat turns and other languages (texts/README.md says where from)."""

WINDOW = 512
"""Tokens that are seen together, or the model's context where that is shorter."""

MOST_WINDOWS = 96
"""Windows taken of a longer text, evenly spread over it."""

GRADIENT_SHARE = 3
"""Every third window is one that gradients are taken of: going back through the model costs three times as much."""

LEAST_TOKENS = 1024
"""Fewer say too little: the second moments of a few inputs have no use for the others."""


class CalibrationText:
    """Windows of a text, int64 [length] each, that quantizers see a model run on."""

    def __init__(self, windows: Sequence[Tensor]) -> None:
        """windows: tokens of the model, each seen alone, from position 0."""
        self.windows = list(windows)

    @staticmethod
    def read(path: Path, facts: ModelFacts) -> CalibrationText:
        """A text file, by the model's own tokenizer; InputError where it is too short or no text of that model."""
        tokens = read_tokens(path, facts.tokenizer, facts.vocab_size)
        length = min(WINDOW, facts.context_length)
        count = len(tokens) // length
        if len(tokens) < LEAST_TOKENS or not count:
            raise InputError(
                f"the calibration text {path} is too short: it has {len(tokens):,} tokens, and at least "
                f"{LEAST_TOKENS:,} are needed, better {MOST_WINDOWS * length:,}"
            )
        whole = torch.tensor(tokens, dtype=torch.int64)[: count * length].view(count, length)
        taken = min(count, MOST_WINDOWS)
        return CalibrationText([whole[index * count // taken] for index in range(taken)])

    @property
    def window(self) -> int:
        """Tokens of a window. ValueError where they differ."""
        (length,) = {len(window) for window in self.windows}
        return length

    @property
    def counts(self) -> tuple[int, int]:
        """How many windows gradients are taken of, and how many others there are."""
        gradients = len(self.gradient_windows)
        return gradients, len(self.windows) - gradients

    @property
    def gradient_windows(self) -> list[Tensor]:
        """The windows that gradients are taken of."""
        return self.windows[::GRADIENT_SHARE]

    def digest(self) -> str:
        """A hash of the windows."""
        tokens = [window.tolist() for window in self.windows]
        return hashlib.sha256(repr(tokens).encode()).hexdigest()

    def runner(self, module: Module, only_gradient_windows: bool = False) -> CallRunner:
        """Runs this module on the text from its first call on."""
        return CallRunner(module, self.gradient_windows if only_gradient_windows else self.windows)

    def gradient_runner(self, module: Module, folder: Path, seed: int) -> GradientRunner:
        """Runs this module forward and back again; what lies between is kept in files in `folder`."""
        rest = [window for index, window in enumerate(self.windows) if index % GRADIENT_SHARE]
        return GradientRunner(module, self.gradient_windows, rest, folder, seed)
