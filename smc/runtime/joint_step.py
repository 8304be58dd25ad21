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
    """Tokens to run in a sequence, at least one. wanted: the number of last tokens whose results are requested."""

    sequence: models.Sequence
    tokens: Sequence[int]
    wanted: int = 1


def joint_step(
    model: models.Model, parts: Sequence[Part], largest: bool, out: NDArray[np.float32]
) -> Iterator[list[Outcome]]:
    """Run all parts in one step; returns the requested outcomes of each, in the order of its tokens.

    largest: ids of the largest logits suffice. out: a buffer for logits, float32 [wanted outcomes or more,
    model.logits_stride], which the next step overwrites. Tokens must be in the vocabulary. Raises as `Engine.step`;
    then the sequences are unchanged.
    """
    batch = np.zeros(sum(len(part.tokens) for part in parts), TOKEN)
    flag = WANT_ARGMAX if largest and model.finds_argmax else WANT_LOGITS
    begin = 0
    for part in parts:
        end, length = begin + len(part.tokens), part.sequence.length
        rows = batch[begin:end]
        rows["token"] = part.tokens
        rows["sequence"] = part.sequence.slot
        rows["index"] = rows["position"] = np.arange(length, length + len(part.tokens))
        rows["flags"][len(rows) - part.wanted :] = flag
        begin = end
    wanted = sum(part.wanted for part in parts)
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
) -> Iterator[list[Outcome]]:
    row = 0
    for part in parts:
        rows = range(row, row + part.wanted)
        row += part.wanted
        if len(ids):
            yield [int(ids[i]) for i in rows]
        else:
            values = [logits[i, : model.vocab_size] for i in rows]
            yield [int(np.argmax(one)) for one in values] if largest else list(values)
