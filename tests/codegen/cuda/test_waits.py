"""Every wait of a program is needed, and would be missed: each is left out in turn, and the stand-in must notice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import smc
from smc.ir import F16, Encoding, Module, integer
from tests.codegen.cuda.test_bits import with_encodings
from tests.cuda_emulator import StandIn
from tests.frontend.families import FAMILIES

Make = Callable[..., tuple[Path, Any]]
Steps = Sequence[tuple[int, str]]
TOKENS = torch.randint(0, 96, (300,), generator=torch.Generator().manual_seed(3)).tolist()

FLOAT_INPUTS = Encoding.of(bits=4, activation="none")
MATRICES = [  # q, k, v, o, gate, up, down of two layers, between the embedding and the head
    integer(4),
    *(FLOAT_INPUTS, integer(4), F16, Encoding.of(bits=4, rotation=16)),
    *(Encoding.of(bits=4, activation_group=128), integer(4), FLOAT_INPUTS),
    *(integer(4), integer(4), integer(4), integer(4), integer(4), F16, integer(4)),
    integer(4),
]
WIDE = {"hidden_size": 72, "head_dim": 12, "intermediate_size": 1072}
"""More columns than a block of threads has in hand at once."""

SHORT: Steps = ((12, "argmax"), (9, "mixed"), (1, "all"))
LONG: Steps = ((265, "none"), (9, "mixed"), (1, "all"))
"""More cached tokens than a split has: in the first step one block goes through all splits, later each has its own.

The 9 tokens have three logits, so that behind a gather of rows two blocks read rows that moved: one of them is not the
block that moved them.
"""


OTHER_GROUPS = {"if (rows.first > 0) smc_sync();", "if (split > first_split) smc_sync();", "if (pass > 0) smc_sync();"}
"""Waits that only models with more query heads per KV head, or more KV heads, need (test_prompts.py)."""


def wide(make: Make) -> Module:
    return with_encodings(smc.load_checkpoint(make(**WIDE)[0]), MATRICES)


def long(make: Make) -> Module:
    return smc.apply(smc.load_checkpoint(make(max_position_embeddings=512)[0]), ["quantize-rtn:bits=4"])


def needed(waits: Mapping[int, str], unnoticed: Sequence[int], merges: bool = True) -> dict[int, str]:
    """Those that should have been noticed. merges: a step had several splits of the cache, and so phases of merges.

    Only experts' linears have several blocks in a call (test_experts.py). The last phase of the head ends with the
    launch. Where a step has a head for logits and one for ids, the second begins with a gather, which writes what the
    first has long read.
    """
    last = [line for line, text in waits.items() if text.startswith("end of head")][-1]
    found = {line: waits[line] for line in unnoticed if line != last and "block > begin" not in waits[line]}
    return {line: text for line, text in found.items() if merges or "merge of" not in text}


def test_some_waits(make_checkpoint: Make, tmp_path: Path) -> None:
    """Every fifth of a model's; all of them are in the slow tests."""
    stand_in = StandIn.of(wide(make_checkpoint), tmp_path / "wide")
    waits = stand_in.waits()
    unnoticed = stand_in.unnoticed(list(waits)[1::5], TOKENS, SHORT, "blocks=2,cancel=3", "i8")
    found = needed(waits, unnoticed, merges=False)
    assert [text for text in found.values() if "first_split" not in text] == []


@pytest.mark.slow
def test_every_wait(make_checkpoint: Make, tmp_path: Path) -> None:
    """One of two models misses each wait of the kernels that their programs share, and each its own phases' ends."""
    kernels = []
    for name, make, steps, kv_dtype in (("wide", wide, SHORT, "i8"), ("long", long, LONG, "f16")):
        stand_in = StandIn.of(make(make_checkpoint), tmp_path / name)
        waits = stand_in.waits()
        unnoticed = stand_in.unnoticed(list(waits), TOKENS, steps, "blocks=3,cancel=3", kv_dtype)
        found = needed(waits, unnoticed, merges=name == "long")
        assert [text for text in found.values() if text.startswith("end of")] == [], name
        own = {(line, text) for line, text in found.items() if not text.startswith("end of")}
        kernels.append({(line, text) for line, text in own if text not in OTHER_GROUPS})
    assert kernels[0] & kernels[1] == set()


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_ends_of_phases_of_every_family(make_checkpoint: Make, tmp_path: Path, kind: str) -> None:
    folder, _ = make_checkpoint(kind, **{"max_position_embeddings": 512, **FAMILIES[kind][0]})
    stand_in = StandIn.of(smc.apply(smc.load_checkpoint(folder), ["quantize-rtn:bits=4"]), tmp_path / "gpu")
    waits = stand_in.waits()
    ends = [line for line, text in waits.items() if text.startswith("end of")]
    # A head whose logits are capped behind it finds no largest one, so that all that is wanted goes through it at once.
    never = {"end of head, gather the tokens whose output is requested"} if kind == "Gemma2" else set()
    steps = [(count, "some") if kind == "Gemma2" and wants == "mixed" else (count, wants) for count, wants in LONG]
    assert {*needed(waits, stand_in.unnoticed(ends, TOKENS, steps, "blocks=3", "f16")).values()} == never
