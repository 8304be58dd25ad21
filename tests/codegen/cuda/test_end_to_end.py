"""Whole models on the stand-in, from a prompt over greedy tokens: the bits of the artifact for x86-64."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smc
from benchmarks.models import smollm2
from smc.ir import Module
from tests.cuda_emulator import StandIn
from tests.frontend.drawn import DRAWS, drawn

Make = Callable[..., tuple[Path, Any]]

GREEDY = """
import json, sys
import numpy as np
import smc
path, out, tokens, count = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
with smc.load(path, context_length=64) as model:
    with model.new_sequence() as sequence:
        steps = [sequence.extend(tokens, logits="all").copy()]
        for _ in range(count):
            tokens.append(int(steps[-1][-1].argmax()))
            steps.append(sequence.extend(tokens[-1:], logits="all").copy())
    with model.new_sequence() as sequence:  # all tokens in one step, and no logits
        assert sequence.next_token(tokens) == steps[-1][-1].argmax()
np.save(out, np.concatenate(steps))
"""


def same_as_a_cpu(
    module: Module, folder: Path, tokens: Sequence[int], count: int, settings: str, races: bool = True
) -> None:
    """The logits of a prompt and so many greedy tokens behind it have the same bits on both."""
    stand_in, cpu = StandIn.of(module, folder, races=races), folder / "cpu.smc"
    smc.compile(module, out=cpu)
    found = []
    for artifact in (stand_in.artifact, cpu):
        out = str(folder / f"{artifact.stem}.npy")
        run = stand_in.python(GREEDY, str(artifact), out, json.dumps(list(tokens)), str(count), settings=settings)
        assert run.returncode == 0, run.stderr[-3000:]
        found.append(np.load(out))
    assert found[0].shape[0] == len(tokens) + count
    np.testing.assert_array_equal(*found)


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(DRAWS)), ids=list(DRAWS))
def test_a_drawn_model_of_every_family(make_checkpoint: Make, tmp_path: Path, place: int) -> None:
    kind, changes = drawn(2 * len(DRAWS) + place)
    module = smc.apply(smc.load_checkpoint(make_checkpoint(kind, **changes)[0]), ["quantize-rtn:bits=4"])
    same_as_a_cpu(module, tmp_path / "gpu", range(40, 48), 4, "blocks=3,order=random,seed=2")


@pytest.mark.slow
def test_smollm2(tmp_path: Path) -> None:
    """A token of 135 million weights takes the stand-in about a second, for it does not look for races."""
    smollm2(tmp_path / "smollm2")
    module = smc.apply(smc.load_checkpoint(tmp_path / "smollm2"), ["quantize-rtn:bits=4"])
    same_as_a_cpu(module, tmp_path / "gpu", [6403, 1980, 253, 655, 665, 436, 253, 1685], 16, "blocks=3", False)
