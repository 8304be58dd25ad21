"""Fast paths change speed alone: the logits are the same bits with and without each of them, and without all."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import smc
from smc.codegen import CompileOptions, compile_module
from smc.codegen.schedule.fast_paths import FAST_PATHS
from smc.ir import Module
from smc.passes import FUSIONS, QuantizeRTN, apply
from tests.codegen.modules import OPERATIONS, block_of, block_with
from tests.levels import usable_levels

MakeCheckpoint = Callable[..., tuple[Path, Any]]

CHAINS = {
    "int4 and wide groups": ["quantize-rtn:bits=4,activation_group=128"],
    "mixed": ["quantize-rtn:bits=8,group=16,include=v_proj", "quantize-rtn:bits=5,symmetric=no,exclude=k_proj"],
    "floats": ["convert:dtype=f16"],
}


def rows_of(path: Path, prompt: Sequence[int], **options: Any) -> NDArray[np.float32]:
    """Logits of a long prompt, of which but one token is wanted; of all of a shorter one; of one and two tokens more;
    and the ids that are most likely after them."""
    with smc.load(path, sequences=2, **options) as model, model.new_sequence() as long, model.new_sequence() as short:
        rows = [long.extend(prompt, logits="last"), short.extend(prompt[:40], logits="all")]
        rows += [long.extend([token]) for token in prompt[:3]]
        rows += [long.extend(prompt[3:5], logits="all"), short.extend(prompt[:9], logits="last")]
        ids = [long.next_token(prompt[5:6])]
        ids += [long.next_token(ids) for _ in range(2)]
        return np.concatenate([*(row.copy() for row in rows), np.full((1, rows[0].shape[1]), ids[-1], np.float32)])


def check_same_bits(module: Module, folder: Path, prompt: Sequence[int], levels: Sequence[str]) -> None:
    """Compile a fused module with all fast paths, without each, and without all, and compare."""
    variants = {"all": (), **{name: (name,) for name in FAST_PATHS}, "none": tuple(FAST_PATHS)}
    texts, results = {}, {}
    for name, without in variants.items():
        path = folder / f"{name}.smc"
        options = CompileOptions(emit=folder / name, emit_kinds=("c", "schedule"), without=without)
        compile_module(module, path, options)
        texts[name] = (folder / name / "program.c").read_text(encoding="utf-8").split('.weights_hash')[0]
        for level in levels:
            for threads in (1, 3):
                results[name, level, threads] = rows_of(path, prompt, level=level, threads=threads)
    for (name, level, threads), rows in results.items():
        expected = results["none", level, 1]
        assert np.array_equal(rows.view(np.uint32), expected.view(np.uint32)), (name, level, threads)
    # A path that changes nothing would not be tested.
    assert len(set(texts.values())) == len(texts)


def test_a_layer_has_the_same_bits_without_each(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    module = smc.load_checkpoint(make_checkpoint(max_position_embeddings=400)[0])
    module = apply(module, [*CHAINS["int4 and wide groups"], *FUSIONS])
    prompt = random.Random(0).choices(range(96), k=300)  # longer than a split of the cache
    check_same_bits(module, tmp_path, prompt, usable_levels()[:1])


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("seed", range(2))
def test_random_models_have_the_same_bits(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, chain: str, seed: int
) -> None:
    """Heads, widths and layers drawn at random, biases, tied heads and windows, on every level."""
    draw = random.Random(f"{chain} {seed}")
    kv_heads, group, head_dim = draw.choice((1, 2)), draw.choice((1, 3)), draw.choice((10, 16))
    changes = {
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * group,
        "head_dim": head_dim,
        "hidden_size": draw.choice((42, 66, 96)),  # multiples of the heads
        "intermediate_size": draw.choice((61, 96, 160)),
        "num_hidden_layers": draw.choice((1, 3)),
        "tie_word_embeddings": draw.random() < 0.5,
        "max_position_embeddings": 400,
    }
    kind = draw.choice(("Llama", "Mistral"))
    changes |= {"sliding_window": 70} if kind == "Mistral" else {"attention_bias": True, "mlp_bias": True}
    module = apply(smc.load_checkpoint(make_checkpoint(kind, **changes)[0]), [*CHAINS[chain], *FUSIONS])
    check_same_bits(module, tmp_path, draw.choices(range(96), k=300), usable_levels())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_random_blocks_have_the_same_bits(tmp_path: Path, seed: int) -> None:
    """Graphs that no model has; where a fast path finds nothing to do, its text is the same."""
    draw = random.Random(seed)
    steps = [(draw.choice(OPERATIONS), draw.randrange(10), draw.randrange(10)) for _ in range(8)]
    module = apply(block_with(block_of(steps)), [QuantizeRTN(bits=8, include=("square",)), *FUSIONS])
    module.facts = replace(module.facts, context_length=100)
    rows = []
    for without in ((), *((name,) for name in FAST_PATHS), tuple(FAST_PATHS)):
        path = tmp_path / f"{'-'.join(without)}.smc"
        compile_module(module, path, CompileOptions(without=without))
        rows.append(rows_of(path, [0, 1, 2, 3, 4] * 10).view(np.uint32))
    assert all(np.array_equal(row, rows[0]) for row in rows)
