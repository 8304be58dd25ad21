"""fake_program.c's model in Python, and batches of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from smc.runtime.binding import Engine
from smc.runtime.interface import TOKEN, WANT_LOGITS

from .conftest import VOCAB, WEIGHTS

LAYERS, HEADS, HEAD_DIM, PRIME, PAGE, MAX_STEP, CONTEXT = 3, 2, 16, 251, 64, 24, 300
FREQUENCIES = np.array([0.75, 0.3, 0.2, 0.15, 0.11, 0.07, 0.03, 0.01], np.float32)  # table 1, whose …
MAGNITUDE = 1.5


@dataclass
class Reference:
    """One sequence of fake_program.c, computed in whole numbers."""

    keys: list[np.ndarray] = field(default_factory=list)  # one [layers, heads, head_dim] a token
    values: list[np.ndarray] = field(default_factory=list)
    window: int = 0  # of layer 1; 0: all

    def append(self, token: int) -> int:
        """The token's last state."""
        state, index, d = WEIGHTS[token], len(self.keys), np.arange(HEAD_DIM)
        self.keys.append(np.zeros((LAYERS, HEADS, HEAD_DIM), int))
        self.values.append(np.zeros((LAYERS, HEADS, HEAD_DIM), int))
        for layer in range(LAYERS):
            places = np.arange(max(0, index + 1 - self.window) if self.window and layer == 1 else 0, index + 1)
            total = 0
            for head in range(HEADS):
                self.keys[-1][layer, head] = (state * 3 + layer + head + d + index) % PRIME
                self.values[-1][layer, head] = (state * 5 + layer * 7 + head + d) % PRIME
                keys = np.array(self.keys)[places, layer, head, places % HEAD_DIM]
                values = np.array(self.values)[places, layer, head, places % HEAD_DIM]
                total += int((keys * (places + 1) + values).sum()) % PRIME
            state = (state + total) % PRIME
        return state

    def truncate(self, length: int) -> None:
        del self.keys[length:], self.values[length:]

    def copy(self) -> Reference:
        return Reference(list(self.keys), list(self.values), self.window)


def logits_of(state: int) -> np.ndarray:
    return ((state * np.arange(VOCAB) + 7) % PRIME).astype(np.float32)


def batch_of(parts: list[tuple[int, int, list[int]]], flags: int = WANT_LOGITS, shift: int = 0) -> np.ndarray:
    """A batch of parts (sequence, its length, tokens); positions are indices + shift."""
    rows = [
        (token, sequence, length + i + shift, length + i, flags, 0)
        for sequence, length, tokens in parts
        for i, token in enumerate(tokens)
    ]
    return np.array(rows, TOKEN)


def feed(engine: Engine, parts: list[tuple[int, list[int]]], offset: int = 0) -> np.ndarray:
    """Run one batch and return the logits [tokens, vocab]; the buffer begins `offset` floats behind 64 bytes."""
    batch = batch_of([(sequence, engine.sequence_length(sequence), tokens) for sequence, tokens in parts])
    stride = engine.facts.logits_stride
    memory = np.full(len(batch) * stride + 32, np.nan, np.float32)
    begin = -(memory.ctypes.data // 4) % 16 + offset
    logits = memory[begin : begin + len(batch) * stride].reshape(len(batch), stride)
    engine.step(batch, logits)
    return logits[:, :VOCAB]


def expected(reference: Reference, tokens: list[int]) -> np.ndarray:
    return np.array([logits_of(reference.append(token)) for token in tokens]).reshape(-1, VOCAB)


def tokens_of(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, count).tolist()


def page_bytes(engine: Engine) -> int:
    return int(engine.facts.kv_bytes_per_token) * PAGE
