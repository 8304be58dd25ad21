"""Rotary position embedding: frequencies and their scalings, as data shared by the reference and codegen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RopeScaling:
    """How the frequencies are stretched for long contexts; `kind` is the checkpoint's `rope_type`.

    linear: every frequency divided by `factor`.
    llama3: low frequencies divided by `factor`, high ones kept, a smooth ramp between (Llama 3.1).
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def __str__(self) -> str:
        if self.kind == "linear":
            return f"linear({self.factor:g})"
        band = f"{self.low_freq_factor:g}..{self.high_freq_factor:g}"
        return f"{self.kind}({self.factor:g}, {band}, {self.original_context})"


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """float32 [head_dim / 2]: radians a position turns each pair of channels (i, i + head_dim/2) by.

    Computed in float32 step by step as transformers does, so that long contexts agree with it.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.int64).astype(np.float32) / np.float32(head_dim)
    frequencies = (np.float32(1.0) / np.power(np.float32(theta), exponents, dtype=np.float32)).astype(np.float32)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return (frequencies / np.float32(scaling.factor)).astype(np.float32)
    wavelengths = 2 * math.pi / frequencies
    low = scaling.original_context / scaling.low_freq_factor
    high = scaling.original_context / scaling.high_freq_factor
    stretched = np.where(wavelengths > low, frequencies / scaling.factor, frequencies)
    smooth = (scaling.original_context / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    between = (1 - smooth) * stretched / scaling.factor + smooth * stretched
    medium = (wavelengths >= high) & (wavelengths <= low)
    return np.where(medium, between, stretched).astype(np.float32)
