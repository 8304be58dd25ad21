"""One step of the engine for several sequences at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from smc.runtime.generation import Outcome
from smc.runtime.interface import TOKEN, WANT_ARGMAX, WANT_LOGITS

if TYPE_CHECKING:
    from smc.runtime import model as models


@dataclass(frozen=True)
class Part:
    """Tokens to run in a sequence, at least one. wanted: whether the result of the last one is requested."""

    sequence: models.Sequence
    tokens: Sequence[int]
    wanted: bool = True


def joint_step(
    model: models.Model, parts: Sequence[Part], largest: bool, out: NDArray[np.float32]
) -> Iterator[Outcome | None]:
    """Run all parts in one step; returns the outcome of each, None if it is not requested.

    largest: ids of the largest logits suffice. out: a buffer for logits, float32 [wanted parts or more,
    model.logits_stride], which the next step overwrites. Tokens must be in the vocabulary. Raises as `Engine.step`;
    then the sequences are unchanged.
    """
    batch = np.zeros(sum(len(part.tokens) for part in parts), TOKEN)
    flag = WANT_ARGMAX if largest and model.finds_argmax else WANT_LOGITS
    begin = wanted = 0
    for part in parts:
        end, length = begin + len(part.tokens), part.sequence.length
        rows = batch[begin:end]
        rows["token"] = part.tokens
        rows["sequence"] = part.sequence.slot
        rows["index"] = rows["position"] = np.arange(length, length + len(part.tokens))
        if part.wanted:
            rows["flags"][-1] = flag
            wanted += 1
        begin = end
    logits = out[: wanted if flag == WANT_LOGITS else 0]
    ids = model.engine.step(batch, logits=logits if len(logits) else None)
    for part in parts:
        part.sequence.tokens.extend(part.tokens)
    return _outcomes(model, parts, largest, ids, logits)


def _outcomes(
    model: models.Model,
    parts: Sequence[Part],
    largest: bool,
    ids: NDArray[np.int32],
    logits: NDArray[np.float32],
) -> Iterator[Outcome | None]:
    row = 0
    for part in parts:
        if not part.wanted:
            yield None
            continue
        if len(ids):
            yield int(ids[row])
        else:
            values = logits[row, : model.vocab_size]
            yield int(np.argmax(values)) if largest else values
        row += 1
