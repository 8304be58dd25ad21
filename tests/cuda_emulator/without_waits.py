"""Run under the stand-in: which waits of a program can be left out, one at a time, and nobody sees it."""

from __future__ import annotations

import json
import os
import sys

import numpy as np

import smc
from smc.runtime.binding import CancelledError
from smc.runtime.interface import WANT_ARGMAX, WANT_LOGITS
from smc.runtime.model import Model, Sequence

WANTS = {
    "none": [0],
    "all": [WANT_LOGITS],
    "some": [0, WANT_LOGITS],
    "argmax": [WANT_ARGMAX],
    "mixed": [WANT_LOGITS, 0, WANT_ARGMAX, 0],
}
"""What the tokens of a step want, in turn."""


def step(model: Model, sequence: Sequence, tokens: list[int], wants: str) -> np.ndarray:
    """What the tokens get; if somebody cancels the step, at the second try."""
    batch = sequence._batch(tokens)
    flags = WANTS[wants]
    batch["flags"] = [flags[i % len(flags)] for i in range(len(tokens))]
    logits = model.logits_buffer(int(np.count_nonzero(batch["flags"] & WANT_LOGITS)))
    try:
        ids = model.engine.step(batch, logits=logits)
    except CancelledError:
        ids = model.engine.step(batch, logits=logits)
    sequence.tokens.extend(tokens)
    return np.concatenate([ids, logits[:, : model.vocab_size].view(np.int32).ravel()])


def results(path: str, kv_dtype: str, tokens: list[int], steps: list[tuple[int, str]]) -> np.ndarray:
    """Of all steps, one after the other."""
    found, done = [], 0
    with smc.load(path, kv_dtype=kv_dtype) as model, model.new_sequence() as sequence:
        for count, wants in steps:
            found.append(step(model, sequence, tokens[done : done + count], wants))
            done += count
    return np.concatenate(found)


def main(path: str, out: str, settings: str, kv_dtype: str, given: str) -> None:
    """Print the lines whose waits can be left out as JSON. given: JSON with the tokens, the steps, and the lines."""
    tokens, steps, lines = json.loads(given)

    def fails(line: int) -> bool:
        """Whether the program without a wait (0: with all) fails or gives something else, in its own process."""
        sys.stdout.flush()
        child = os.fork()
        if not child:
            os.environ["SMC_EMULATOR"] = f"{settings},left_out={line}"
            os.dup2(os.open(f"{out}.{line}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            try:
                found = results(path, kv_dtype, tokens, steps)
            except RuntimeError as error:
                print(error, file=sys.stderr, flush=True)
                os._exit(1)
            if not line:
                np.save(out, found)
            os._exit(0 if np.array_equal(found, np.load(out)) else 2)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0

    if fails(0):
        with open(f"{out}.0", encoding="utf-8") as said:
            sys.exit(said.read()[-3000:])
    print(json.dumps([line for line in lines if not fails(line)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
