"""Programs for GPUs on the stand-in: the bits of the exact reference, for every encoding and family."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import smc
from benchmarks.kernel_inputs import random_tensor
from smc.ir import Encoding, Module
from smc.reference import ExactReference
from tests.codegen.encodings import ENCODINGS
from tests.cuda_emulator import StandIn
from tests.frontend.families import CASES, FAMILIES

Make = Callable[..., tuple[Path, Any]]
TOKENS = torch.randint(0, 96, (300,), generator=torch.Generator().manual_seed(1)).tolist()
ORDERS = (("blocks=3", "f16"), ("blocks=1,order=reverse", "i8"), ("blocks=7,order=random,seed=5", "f32"))


def equal_bits(
    module: Module, folder: Path, chunks: Sequence[int], cases: Sequence[tuple[str, str]] = ORDERS, **options: Any
) -> None:
    """Logits of the stand-in are those of the exact reference."""
    count = chunks[-1]
    logits = StandIn.of(module, folder, **options).logits(TOKENS[:count], chunks, cases)
    for (settings, kv_dtype), found in zip(cases, logits, strict=True):
        expected = ExactReference(module, kv_dtype).logits(torch.tensor(TOKENS[:count])).numpy()
        np.testing.assert_array_equal(found, expected, err_msg=f"{settings}, {kv_dtype}")


def test_a_tiny_llama(make_checkpoint: Make, tmp_path: Path) -> None:
    """Int4, in every order of threads and number of blocks, in chunks and token by token; with real machine code."""
    module = smc.apply(smc.load_checkpoint(make_checkpoint()[0]), ["quantize-rtn:bits=4"])
    equal_bits(module, tmp_path / "gpu", [0, 5, 6, 28, *range(29, 33)], machine_code=True)


@pytest.mark.slow
def test_launches_in_place_of_one(make_checkpoint: Make, tmp_path: Path) -> None:
    """Where blocks can't wait for each other, or a shared GPU says so too late, every phase is a launch: the same bits,
    with splits of a long cache."""
    module = smc.apply(smc.load_checkpoint(make_checkpoint(max_position_embeddings=512)[0]), ["quantize-rtn:bits=4"])
    stand_in = StandIn.of(module, tmp_path / "gpu")
    cases = [
        ("blocks=3", "f16"),
        ("blocks=3,cooperative=0", "f16"),
        ("blocks=3,cooperative=2", "f16"),
        ("blocks=1", "f16"),
    ]
    expected = ExactReference(module, "f16").logits(torch.tensor(TOKENS)).numpy()
    for found in stand_in.logits(TOKENS, [0, 290, 291, 300], cases):
        np.testing.assert_array_equal(found, expected)


def with_encodings(module: Module, encodings: Sequence[Encoding]) -> Module:
    """The module, its matrices in turn with random values in these encodings."""
    result = module.copy()
    matrices = [name for name, parameter in module.parameters.items() if len(parameter.shape) == 2]
    for place, name in enumerate(matrices):
        encoding = encodings[place % len(encodings)]
        load = functools.partial(random_tensor, encoding, *module.parameters[name].shape, place)
        result.parameters[name] = replace(module.parameters[name], encoding=encoding, load=load)
    return result


GROUPS = [ENCODINGS[i : i + 8] for i in range(0, len(ENCODINGS), 8)]


@pytest.mark.slow
@pytest.mark.parametrize("group", range(len(GROUPS)))
def test_every_encoding(make_checkpoint: Make, tmp_path: Path, group: int) -> None:
    """Of matrices, of the embedding and the head; widths that fill no tile."""
    sizes = {"hidden_size": 44, "num_attention_heads": 4, "head_dim": 12, "intermediate_size": 332}
    module = smc.load_checkpoint(make_checkpoint(**sizes)[0])
    equal_bits(with_encodings(module, GROUPS[group]), tmp_path / "gpu", [0, 11, 12, 14])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "place"), CASES)
def test_every_family(make_checkpoint: Make, tmp_path: Path, kind: str, place: int) -> None:
    folder, _ = make_checkpoint(kind, **{"max_position_embeddings": 512, **FAMILIES[kind][place]})
    module = smc.apply(smc.load_checkpoint(folder), ["quantize-rtn:bits=8"])
    equal_bits(module, tmp_path / "gpu", [0, 90, 91, 92], ORDERS[:2])
