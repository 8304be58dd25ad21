"""Mixtures of experts on the stand-in: the bits of the exact reference for every encoding, and every wait is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import smc
from smc.codegen.cuda.program import device_folder
from smc.codegen.cuda.static import static_facts
from smc.frontend.fresh import new_model
from smc.ir import F16, Encoding, Module, encode_float, integer
from smc.reference import ExactReference
from tests.codegen.encodings import ENCODINGS
from tests.codegen.test_experts import SIZES, SOME, TOKENS, mixture
from tests.cuda_emulator import StandIn

OLMOE = {**SIZES, "architectures": ["OlmoeForCausalLM"], "num_hidden_layers": 1}
ORDERS = (("blocks=3", "f16"), ("blocks=7,order=random,seed=5,cooperative=0", "f16"))
"""All phases in one launch, and a launch per phase."""


def equal_bits(module: Module, folder: Path, chunks: Sequence[int], cases: Sequence[tuple[str, str]] = ORDERS) -> None:
    """Logits of the stand-in are those of the exact reference."""
    expected = ExactReference(module, "f16").logits(torch.tensor(TOKENS[: chunks[-1]])).numpy()
    assert np.isfinite(expected).all()
    for found in StandIn.of(module, folder).logits(TOKENS[: chunks[-1]], chunks, cases):
        np.testing.assert_array_equal(found, expected)


ALL = [ENCODINGS[first : first + 9] for first in range(0, len(ENCODINGS), 9)]


@pytest.mark.parametrize("encodings", [SOME[:1], *(pytest.param(e, marks=pytest.mark.slow) for e in (SOME, *ALL))])
def test_every_encoding_of_experts(tmp_path: Path, encodings: list[Encoding]) -> None:
    """One token, few, and a prompt, whose experts have more rows than one product of tensor cores takes."""
    equal_bits(mixture(encodings), tmp_path / "gpu", [0, 1, 4, 36, 40])


@pytest.mark.slow
@pytest.mark.parametrize(("experts", "chosen"), [(70, 40), (128, 8), (2, 1)])
@pytest.mark.parametrize("normalized", [False, True])
def test_routers(tmp_path: Path, experts: int, chosen: int, normalized: bool) -> None:
    """Of many experts, whose logits are equal in pairs, more than a warp has lanes are chosen."""
    changes: dict[str, Any] = {"num_experts": experts, "num_experts_per_tok": chosen, "norm_topk_prob": normalized}
    module = new_model({**OLMOE, **changes}, "mixture")
    name = "model.layers.0.mlp.gate.weight"
    rows = module.parameters[name].values()
    rows[1::2] = rows[: rows.shape[0] // 2 * 2 : 2]
    twins = encode_float(rows, module.parameters[name].encoding)
    module.parameters[name] = replace(module.parameters[name], load=lambda: twins)
    equal_bits(module, tmp_path / "gpu", [0, 1, 34, 40])


@pytest.mark.slow
def test_every_wait_around_experts(tmp_path: Path) -> None:
    """As test_waits.py has it for those of other kernels, and for the ends of phases."""
    module = mixture([integer(4), Encoding.of(bits=4, activation="none"), F16], max_position_embeddings=512)
    stand_in = StandIn.of(module, tmp_path / "gpu")
    own = (device_folder() / "experts.cuh").read_text(encoding="utf-8")
    begin = stand_in.text()[: stand_in.text().index(own)].count("\n")
    inside = range(begin, begin + own.count("\n"))
    waits = [n for n, text in stand_in.waits().items() if n in inside or "block > begin" in text]
    assert len(waits) == 5 + 4  # four kinds of products
    steps = ((140, "none"), (20, "all"))
    assert stand_in.unnoticed(waits, TOKENS * 4, steps, "blocks=3", "f16") == []


@pytest.mark.slow
def test_static_checks_of_experts() -> None:
    """A token must move the weights of the experts that it chooses alone; no registers are spilled."""
    sizes = {"hidden_size": 512, "intermediate_size": 256, "num_attention_heads": 8, "num_experts": 64}
    module = new_model({**OLMOE, **sizes, "num_experts_per_tok": 8}, "mixture")
    facts = static_facts(smc.apply(module, ["quantize-rtn:bits=4"]))
    assert facts.faults() == []
    assert 1.0 <= facts.token_bytes / facts.least_bytes <= 1.1
