"""Attention of prompts by tiles on the stand-in: the bits of the exact reference for odd heads, lengths and batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import smc
from smc.codegen.cuda.static import static_facts
from smc.ir import Module
from smc.reference import ExactReference
from tests.codegen.cuda.test_waits import needed
from tests.cuda_emulator import StandIn

Make = Callable[..., tuple[Path, Any]]
TOKENS = torch.randint(0, 96, (300,), generator=torch.Generator().manual_seed(7)).tolist()
CASES = (
    ("blocks=3", "f16"),
    ("blocks=1,order=reverse", "i8"),
    ("blocks=7,order=random,seed=5", "f32"),
    ("blocks=7,order=random,seed=6,cooperative=0", "i8"),
)
LENGTHS = (1, 2, 7, 8, 9, 31, 33, 63, 64, 65, 127, 129, 255, 256, 257, 300)

SEVERAL = """
import json, sys
import numpy as np
import smc
from smc.runtime.interface import WANT_LOGITS
path, tokens, steps, kv_dtype = sys.argv[1], *map(json.loads, sys.argv[2:])
with smc.load(path, sequences=len(steps[0]), kv_dtype=kv_dtype) as model:
    sequences, found = [model.new_sequence() for _ in steps[0]], []
    for counts in steps:
        batches = []
        for sequence, count in zip(sequences, counts):
            given = tokens[len(sequence.tokens) :][:count]
            batches.append(sequence._batch(given))
            sequence.tokens.extend(given)
        batch = np.concatenate(batches)
        batch["flags"] = WANT_LOGITS
        logits = model.logits_buffer(len(batch))
        model.engine.step(batch, logits=logits)
        found.append(logits[:, : model.vocab_size].copy())
np.save(sys.argv[1] + ".npy", np.concatenate(found))
"""


def int8(make: Make, kind: str = "Llama", **changes: Any) -> Module:
    """One layer, and room for long prompts."""
    folder, _ = make(kind, **{"num_hidden_layers": 1, "max_position_embeddings": 512, **changes})
    return smc.apply(smc.load_checkpoint(folder), ["quantize-rtn:bits=8"])


def heads(group: int, kv_heads: int, dim: int) -> dict[str, int]:
    count = group * kv_heads
    sizes = {"num_attention_heads": count, "num_key_value_heads": kv_heads, "head_dim": dim}
    return {"hidden_size": 12 * count, **sizes}


def equal_bits(module: Module, folder: Path, chunks: Sequence[int], cases: Sequence[tuple[str, str]] = CASES) -> None:
    tokens = TOKENS[: chunks[-1]]
    for (settings, kv_dtype), found in zip(
        cases, StandIn.of(module, folder).logits(tokens, chunks, cases), strict=True
    ):
        expected = ExactReference(module, kv_dtype).logits(torch.tensor(tokens)).numpy()
        np.testing.assert_array_equal(found, expected, err_msg=f"{settings}, {kv_dtype}")


def test_a_prompt(make_checkpoint: Make, tmp_path: Path) -> None:
    """Behind earlier pages, and with a split of the cache that only some rows see."""
    equal_bits(int8(make_checkpoint, **heads(3, 1, 24)), tmp_path / "gpu", [0, 70, 105, 106], CASES[1:3])


@pytest.mark.slow
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 3, 4, 5, 8, 9])
def test_heads(make_checkpoint: Make, tmp_path: Path, dim: int, group: int) -> None:
    """Two of the cases each, by turns."""
    cases = CASES[:2] if (dim // 16 + group) % 2 else CASES[2:]
    equal_bits(int8(make_checkpoint, **heads(group, 1, dim)), tmp_path / "gpu", [0, 45, 265, 266], cases)


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 2, 4])
def test_lengths(make_checkpoint: Make, tmp_path: Path, group: int) -> None:
    """A whole prompt of each length, and one token behind it."""
    module = int8(make_checkpoint, **heads(group, 2, 12))
    stand_in = StandIn.of(module, tmp_path / "gpu")
    for place, length in enumerate(LENGTHS):
        settings, kv_dtype = CASES[place % len(CASES)]
        tokens = [*TOKENS[:length], 5]
        expected = ExactReference(module, kv_dtype).logits(torch.tensor(tokens)).numpy()
        [found] = stand_in.logits(tokens, [0, length, length + 1], [(settings, kv_dtype)])
        np.testing.assert_array_equal(found, expected, err_msg=f"{length} tokens, {settings}, {kv_dtype}")


@pytest.mark.slow
@pytest.mark.parametrize("window", [5, 64, 90, 257])
@pytest.mark.parametrize("group", [1, 4])
def test_windows(make_checkpoint: Make, tmp_path: Path, window: int, group: int) -> None:
    """Shorter than the prompt: whole tiles and splits are not seen."""
    module = int8(make_checkpoint, "Mistral", sliding_window=window, **heads(group, 2, 20))
    equal_bits(module, tmp_path / "gpu", [0, 140, 289, 300])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Gemma2", "Qwen3"])
def test_caps_and_norms(make_checkpoint: Make, tmp_path: Path, kind: str) -> None:
    capped = {"attn_logit_softcapping": 2.0, "sliding_window": 70, "num_hidden_layers": 2} if kind == "Gemma2" else {}
    equal_bits(int8(make_checkpoint, kind, **heads(2, 2, 40), **capped), tmp_path / "gpu", [0, 130, 270, 271])


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize(("settings", "kv_dtype"), CASES)
def test_several_sequences(make_checkpoint: Make, tmp_path: Path, group: int, settings: str, kv_dtype: str) -> None:
    """Prompts of several lengths, single tokens and rests of prompts in one step."""
    module = int8(make_checkpoint, **heads(group, 2, 16))
    stand_in = StandIn.of(module, tmp_path / "gpu")
    steps = [[60, 1, 13, 100], [1, 40, 1, 3], [9, 9, 30, 170]]
    given = [json.dumps(value) for value in (TOKENS, steps, kv_dtype)]
    run = stand_in.python(SEVERAL, str(stand_in.artifact), *given, settings=settings)
    assert run.returncode == 0, run.stderr[-3000:]
    whole = ExactReference(module, kv_dtype).logits(torch.tensor(TOKENS[:280])).numpy()
    begins, expected = [0] * 4, []
    for counts in steps:
        for place, count in enumerate(counts):
            expected.append(whole[begins[place] : begins[place] + count])
            begins[place] += count
    np.testing.assert_array_equal(np.load(f"{stand_in.artifact}.npy"), np.concatenate(expected))


@pytest.mark.slow
def test_every_wait_of_prompts(make_checkpoint: Make, tmp_path: Path) -> None:
    """Of heads whose group takes two passes, and of splits; without one of them two accesses race."""
    stand_in = StandIn.of(int8(make_checkpoint, **heads(6, 1, 24)), tmp_path / "gpu")
    text = stand_in.text()
    begin, end = (text[: text.index(mark)].count("\n") for mark in ("struct smc_prompt_room {", "kernel_embedding"))
    waits = {line: wait for line, wait in stand_in.waits().items() if begin < line < end}
    assert len(waits) == 10
    unnoticed = stand_in.unnoticed(list(waits), TOKENS, ((270, "none"), (20, "all")), "blocks=2", "i8")
    assert needed(stand_in.waits(), unnoticed) == {}


@pytest.mark.slow
def test_waits_of_single_tokens(make_checkpoint: Make, tmp_path: Path) -> None:
    """More heads per group than go through at once, and so many KV heads that a block has all splits."""
    stand_in = StandIn.of(int8(make_checkpoint, **heads(36, 4, 16)), tmp_path / "gpu")
    texts = {"if (rows.first > 0) smc_sync();", "if (split > first_split) smc_sync();"}
    waits = {line: wait for line, wait in stand_in.waits().items() if wait in texts}
    assert len(waits) == 2
    assert stand_in.unnoticed(list(waits), TOKENS, ((270, "none"), (1, "all")), "blocks=1", "i8") == []


@pytest.mark.slow
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
@pytest.mark.parametrize("group", [1, 3, 8])
def test_static_checks(make_checkpoint: Make, dim: int, group: int) -> None:
    """No spills, at most 128 registers, two blocks per multiprocessor, for every GPU."""
    module = int8(make_checkpoint, **heads(group, 2, dim))
    for target in ("cuda", "jetson-orin-gpu", "cuda-sm_89"):
        faults = static_facts(module, target).faults()
        assert [fault for fault in faults if "bytes that it must" not in fault] == []
