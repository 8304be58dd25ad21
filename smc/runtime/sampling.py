"""Chooses the next token from logits, in numpy.

The filters and their order are those of Hugging Face transformers: repetition penalty, temperature, top-k, top-p,
min-p; then one draw. A temperature of 0 is greedy: the largest penalized logit, the lowest id where several are equal.

A standalone executable chooses the same tokens for the same seed (standalone/sampling.c): all of it is float64, where
arithmetic has the same bits everywhere and libraries' exponentials hardly differ. Logits are float32 and the largest is
subtracted: no option in its range makes anything overflow, and what underflows has no chance of being drawn.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from smc.errors import InputError
from smc.fields import Range
from smc.generation import SAMPLING

NOT_FINITE = "the model's results are NaN or infinite: its weights or inputs exceed the range of the arithmetic"

_PENALTY = Range(-2, 2, "from -2 to 2")
_PENALTIES = {"presence_penalty": _PENALTY, "frequency_penalty": _PENALTY}
_BIAS = Range(-100, 100, "from -100 to 100")
_SEED = Range(0, (1 << 64) - 1, "0 or more and below 2^64")

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class SamplingOptions:
    """How a token is chosen. The defaults are greedy decoding.

    temperature: divides the logits; 0 is greedy and leaves top_k, top_p and min_p without effect.
    top_k: keep the k most likely tokens (ties with the k-th stay); 0 keeps all.
    top_p: keep the fewest most likely tokens whose probabilities reach top_p; 1 keeps all (nucleus sampling).
    min_p: keep tokens at least min_p times as likely as the likeliest; 0 keeps all.
    repetition_penalty: > 1 lowers tokens that occur in the prompt or the text so far (positive logits are divided,
        negative ones multiplied: CTRL, Keskar et al. 2019); 1 changes nothing.
    presence_penalty: subtracted from the logits of tokens that the text so far (without the prompt) has.
    frequency_penalty: subtracted from them once for each time that the text so far has them.
    logit_bias: (token, number) pairs: added to the logits of these tokens.
    seed: below 2^64; the same seed gives the same tokens. None: a new one each time.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, within in (SAMPLING | _PENALTIES | ({} if self.seed is None else {"seed": _SEED})).items():
            if getattr(self, name) not in within:
                raise InputError(f"{name} is {getattr(self, name)}, but must be {within.wanted}")
        if wrong := [bias for _, bias in self.logit_bias if bias not in _BIAS]:
            raise InputError(f"logit_bias has {wrong[0]}, but its numbers must be {_BIAS.wanted}")

    @property
    def changes_logits(self) -> bool:
        """Whether penalties or biases change logits before they are filtered."""
        return self.repetition_penalty != 1.0 or self.changes_by_adding

    @property
    def changes_by_adding(self) -> bool:
        """Whether OpenAI's penalties or a bias are added to logits."""
        return bool(self.presence_penalty or self.frequency_penalty or self.logit_bias)


class SplitMix64:
    """Uniform random numbers from one 64-bit counter (Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", 2014).
    """

    def __init__(self, seed: int) -> None:
        self._state = seed

    def next(self) -> int:
        """The next 64 bits."""
        mask = (1 << 64) - 1
        self._state = (self._state + 0x9E3779B97F4A7C15) & mask
        bits = self._state
        bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & mask
        bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & mask
        return bits ^ bits >> 31

    def uniform(self) -> float:
        """A number from 0 to below 1, a multiple of 2^-53."""
        return (self.next() >> 11) / (1 << 53)


class Sampler:
    """Chooses tokens by `options`; one object per text, because it holds the random state and the tokens so far."""

    def __init__(self, options: SamplingOptions, prompt: list[int]) -> None:
        self.options = options
        self._random = SplitMix64(secrets.randbits(64) if options.seed is None else options.seed)
        self._seen = np.unique(np.array(prompt, np.intp))
        self._counts: dict[int, int] = {}  # of the tokens chosen so far

    @property
    def takes_largest(self) -> bool:
        """Whether `sample` always takes the largest logit, so that no other is needed."""
        return self.options.temperature == 0.0 and not self.options.changes_logits

    def sample(self, logits: NDArray[np.float32], allowed: NDArray[np.float32] | None = None) -> int:
        """The next token for `logits` [vocab], which is added to the tokens so far. `logits` is not changed.

        allowed: the same logits with -inf for tokens that must not be chosen.
        """
        options = self.options
        check_finite(logits)
        scores = cast("Floats", logits if allowed is None else allowed)
        if options.repetition_penalty != 1.0:
            scores = apply_repetition_penalty(scores, self._seen, options.repetition_penalty)
        if options.changes_by_adding:
            scores = self._added(scores)
        token = int(np.argmax(scores)) if options.temperature == 0.0 else self._draw(filter_logits(scores, options))
        if options.repetition_penalty != 1.0 and not (self._seen == token).any():
            self._seen = np.append(self._seen, token)
        self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _added(self, scores: Floats) -> Floats:
        """The scores plus the bias, minus the presence and frequency penalties."""
        options, scores = self.options, scores.astype(np.float64)
        for token, bias in options.logit_bias:
            scores[token] += bias
        for token, count in self._counts.items():
            scores[token] -= options.presence_penalty + count * options.frequency_penalty
        return scores

    def _draw(self, scores: NDArray[np.float64]) -> int:
        """A token, drawn with the probability that softmax gives it; the largest score is 0."""
        return invert_cumulative(np.exp(scores), self._random.uniform())


def check_finite(logits: NDArray[np.float32]) -> None:
    """Raise InputError if one of `logits` [… vocab] is NaN or infinite."""
    if not (np.isfinite(logits.min()) and np.isfinite(logits.max())):  # NaN wins in both
        raise InputError(NOT_FINITE)


def invert_cumulative(weights: Floats, uniform: float) -> int:
    """The first index up to which `weights` [n] sum to more than `uniform` (0 … 1) of their sum; its weight is not 0.

    In two steps, block and place in the block, because a running sum of a whole vocabulary is slow.
    """
    starts = np.arange(0, weights.size, 256)
    blocks = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    target = uniform * blocks[-1]
    block = min(int(np.searchsorted(blocks, target, side="right")), int(np.searchsorted(blocks, blocks[-1])))
    if block > 0:
        target -= blocks[block - 1]
    inside = np.cumsum(weights[starts[block] : starts[block] + 256], dtype=np.float64)
    place = min(int(np.searchsorted(inside, target, side="right")), int(np.searchsorted(inside, inside[-1])))
    return int(starts[block]) + place


def apply_repetition_penalty(
    logits: Floats, seen: NDArray[np.intp], penalty: float
) -> NDArray[np.float64]:
    """`logits` [vocab] in which the tokens `seen` are less likely (penalty > 1) or likelier (< 1)."""
    scores = logits.astype(np.float64)
    chosen = scores[seen]
    scores[seen] = np.where(chosen < 0, chosen * penalty, chosen / penalty)
    return scores


def filter_logits(logits: Floats, options: SamplingOptions) -> NDArray[np.float64]:
    """Logits [vocab] minus the largest, divided by the temperature; -inf for tokens that top-k, top-p or min-p
    exclude."""
    scaled = np.subtract(logits, logits.max(), dtype=np.float64)
    with np.errstate(over="ignore"):  # a small temperature makes -inf of all but the largest
        scaled /= options.temperature
    if 0 < options.top_k < scaled.size:
        scaled[scaled < np.partition(scaled, -options.top_k)[-options.top_k]] = -np.inf
    if options.top_p < 1.0:
        scaled[scaled < _top_p_threshold(scaled, options.top_p)] = -np.inf
    if options.min_p > 0.0:
        scaled[scaled < np.log(options.min_p)] = -np.inf  # p < min_p · p_max, in logarithms
    return scaled


def _top_p_threshold(scores: NDArray[np.float64], top_p: float) -> np.floating[Any]:
    """The score of the last of the fewest most likely tokens whose probabilities reach `top_p`; the largest is 0."""
    weights = np.exp(scores)
    wanted = top_p * weights.sum()
    for least in (1e-4, 0.0):  # the whole vocabulary is seldom sorted
        descending = np.sort(scores[weights >= least])[::-1]
        cumulative = np.cumsum(np.exp(descending))
        if cumulative[-1] >= wanted:
            break
    return descending[min(int(np.searchsorted(cumulative, wanted)), descending.size - 1)]


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-softmax of `logits` [vocab]: the model's own distribution, before penalty, temperature and filters."""
    shifted = logits.astype(np.float64) - logits.max()
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def top_tokens(log_probs: NDArray[np.float64], count: int) -> list[tuple[int, float]]:
    """The `count` most likely (token, log-probability) pairs, likeliest first, the lower id first among equals."""
    if count <= 0:
        return []
    count = min(count, log_probs.size)
    threshold = np.partition(log_probs, -count)[-count]
    candidates = np.flatnonzero(log_probs >= threshold)
    best = candidates[np.argsort(-log_probs[candidates], kind="stable")][:count]
    return [(int(token), float(log_probs[token])) for token in best]
