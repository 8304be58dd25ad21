"""Compiled models on emulated CPUs: the bits of the exact reference at every level, however the work is cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import smc
from benchmarks.models import smollm2
from smc.ir import Module
from smc.passes import load_recipe
from smc.reference import ExactReference
from smc.runtime.interface import WANT_ARGMAX, WANT_HIDDEN, WANT_LOGITS
from tests.arm64.conftest import Built
from tests.codegen.test_experts import LISTED, mixture
from tests.emulation import CPUS, EmulatedModel, batch, link_driver

ROOT = Path(__file__).parents[2]
Build = Callable[[str, str], Built]
MakeCheckpoint = Callable[..., tuple[Path, Any]]

ARM64 = pytest.mark.arm64
RECIPES = ["int4", *(pytest.param(recipe, marks=ARM64) for recipe in ("f32", "f16", "int8", "int4-plain"))]
LEVELS = ["i8mm", "dotprod", "neon"]

TOKENS = [(7 * i * i + 3) % 257 for i in range(90)]


def exact_logits(module: Module, tokens: list[int], kv_dtype: str = "f16") -> np.ndarray:
    return ExactReference(module, kv_dtype=kv_dtype).logits(torch.tensor(tokens)).numpy()


# ---------------------------------------------------------------- 64-bit ARM


@pytest.mark.parametrize("recipe", RECIPES)
def test_bits_are_those_of_the_exact_reference(build: Build, recipe: str) -> None:
    """The CPU has just the level's features: picked by itself, and nothing else is used."""
    module, driver = build(recipe, "arm64")
    expected = exact_logits(module, TOKENS)
    for level in LEVELS:
        with EmulatedModel(driver, "arm64", CPUS[level]) as model:
            assert model.level == level
            np.testing.assert_array_equal(model.logits(TOKENS), expected)


@pytest.mark.arm64
def test_bits_with_an_f32_cache(build: Build) -> None:
    module, driver = build("f32", "arm64")
    expected = exact_logits(module, TOKENS, "f32")
    for level in LEVELS:
        with EmulatedModel(driver, "arm64", CPUS[level], kv_dtype="f32") as model:
            np.testing.assert_array_equal(model.logits(TOKENS), expected)


@pytest.mark.arm64
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("recipe", ["f16", "int4"])
def test_bits_do_not_depend_on_threads_chunks_or_batches(build: Build, recipe: str, level: str) -> None:
    _, driver = build(recipe, "arm64")
    texts = [TOKENS, TOKENS[::-1][:50]]
    with EmulatedModel(driver, "arm64", CPUS[level], sequences=2) as model:
        whole = [model.logits(text, sequence) for sequence, text in enumerate(texts)]
    for threads in (1, 2, 5):
        with EmulatedModel(driver, "arm64", CPUS[level], sequences=2, threads=threads) as model:
            assert model.threads == threads
            first = model.step(np.concatenate([batch(texts[0][:33]), batch(texts[1][:49], 0, 1)]))
            second = model.step(np.concatenate([batch(texts[1][49:], 49, 1), batch(texts[0][33:34], 33)]))
            rest = [model.step(batch(texts[0][i : i + 7], i)) for i in range(34, len(TOKENS), 7)]
        assert np.array_equal(np.concatenate([first[:33], second[1:], *rest]), whole[0])
        assert np.array_equal(np.concatenate([first[33:], second[:1]]), whole[1])


@pytest.mark.arm64
@pytest.mark.parametrize("recipe", ["f16", "int4"])
def test_bits_do_not_depend_on_pieces(make_checkpoint: MakeCheckpoint, tmp_path: Path, recipe: str) -> None:
    """Two threads cut a prompt of 130 tokens into pieces of 72 and 58; three cut 200 into two of 72 and one of 56."""
    folder, _ = make_checkpoint(intermediate_size=200)
    module = smc.apply(smc.load_checkpoint(folder), load_recipe(recipe).passes)
    driver = link_driver(module, "arm64", tmp_path)
    prompts = [[(7 * i * i + start) % 96 for i in range(length)] for start, length in ((3, 130), (5, 200))]
    expected = [exact_logits(module, prompt) for prompt in prompts]
    for level in LEVELS:
        for threads in (1, 2, 3):
            with EmulatedModel(driver, "arm64", CPUS[level], sequences=2, threads=threads) as model:
                for sequence, prompt in enumerate(prompts):
                    logits = model.logits(prompt, sequence)
                    np.testing.assert_array_equal(logits, expected[sequence], err_msg=f"{level}, {threads} threads")


@pytest.mark.arm64
@pytest.mark.parametrize("level", LEVELS)
def test_bits_do_not_depend_on_what_else_is_wanted(build: Build, level: str) -> None:
    """Of 180 tokens of two texts, which two and three threads cut into pieces, the last layer ends for some only."""
    _, driver = build("int4", "arm64")
    texts, rng = [TOKENS, TOKENS[::-1]], np.random.default_rng(3)
    flags = (WANT_LOGITS | WANT_HIDDEN, WANT_LOGITS, WANT_HIDDEN, WANT_ARGMAX, 0)

    def run(choice: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tokens = np.concatenate([batch(text, sequence=sequence) for sequence, text in enumerate(texts)])
        tokens["flags"] = choice
        with EmulatedModel(driver, "arm64", CPUS[level], sequences=2, threads=threads) as model:
            return model.run(tokens)

    everything, hidden, _ = run(np.full(2 * len(TOKENS), flags[0]), 1)
    assert len(set(everything.argmax(1).tolist())) > 5
    for share in (0.01, 0.5, 0.95):  # of tokens that want nothing
        choice = rng.choice(flags, 2 * len(TOKENS), p=[(1 - share) / 4] * 4 + [share])
        for threads in (1, 2, 3):
            logits, states, argmax = run(choice, threads)
            np.testing.assert_array_equal(logits, everything[(choice & WANT_LOGITS) > 0])
            np.testing.assert_array_equal(states, hidden[(choice & WANT_HIDDEN) > 0])
            np.testing.assert_array_equal(argmax, everything[choice == WANT_ARGMAX].argmax(1))


def heads(heads: int, kv_heads: int, head_dim: int) -> dict[str, int]:
    return {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}


ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "biases, tied": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "one KV head, head_dim 80": ("Llama", {"hidden_size": 192, **heads(3, 1, 80)}),
    "odd widths": ("Llama", {"hidden_size": 45, **heads(3, 3, 10), "intermediate_size": 341, "vocab_size": 101}),
    "a window": ("Mistral", {"sliding_window": 70}),
}


@pytest.mark.arm64
@pytest.mark.parametrize("recipe", ["f16", "int8", "int4"])
@pytest.mark.parametrize("family", ODD)
def test_odd_sizes(make_checkpoint: MakeCheckpoint, tmp_path: Path, family: str, recipe: str) -> None:
    kind, changes = ODD[family]
    module = smc.apply(smc.load_checkpoint(make_checkpoint(kind, **changes)[0]), load_recipe(recipe).passes)
    check_all_levels(module, tmp_path)


@pytest.mark.arm64
@pytest.mark.parametrize("first", range(0, len(LISTED), 5))
def test_experts_in_every_listed_encoding(tmp_path: Path, first: int) -> None:
    module = mixture(LISTED[first : first + 5], "Qwen3Moe", part="")
    tokens = [token % 90 for token in TOKENS[:40]]
    with EmulatedModel(link_driver(module, "arm64", tmp_path), "arm64", CPUS["dotprod"]) as model:
        np.testing.assert_array_equal(model.logits(tokens), exact_logits(module, tokens))


@pytest.mark.arm64
def test_a_codebook_of_a_users_own(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    module = smc.load_checkpoint(make_checkpoint(intermediate_size=91)[0])
    check_all_levels(smc.apply(module, [f"{ROOT / 'examples' / 'log_levels.py'}:log-levels"]), tmp_path)


def check_all_levels(module: Module, folder: Path) -> None:
    tokens = [token % 96 for token in TOKENS]
    expected = exact_logits(module, tokens)
    driver = link_driver(module, "arm64", folder)
    for level in LEVELS:
        with EmulatedModel(driver, "arm64", CPUS[level], threads=2) as model:
            np.testing.assert_array_equal(model.logits(tokens, sizes=[70, 1, 19]), expected)


def test_a_level_that_the_cpu_lacks_is_refused(build: Build) -> None:
    _, driver = build("int4", "arm64")
    with pytest.raises(RuntimeError, match=r"^this CPU can't run level i8mm: it lacks dotprod, i8mm\n$"):
        EmulatedModel(driver, "arm64", "cortex-a53", level="i8mm")
    with EmulatedModel(driver, "arm64", "max", level="neon") as model:
        assert model.level == "neon"


@pytest.mark.arm64
def test_a_device_brings_its_level_only(build: Build) -> None:
    _, driver = build("int4", "raspberry-pi-5")
    with EmulatedModel(driver, "raspberry-pi-5", "cortex-a76") as model:
        assert model.level == "dotprod"
    sentence = r"^this CPU has none of the artifact's levels \(dotprod\): it lacks dotprod\n$"
    with pytest.raises(RuntimeError, match=sentence):
        EmulatedModel(driver, "raspberry-pi-5", "cortex-a72")


@pytest.mark.arm64
@pytest.mark.slow
def test_smollm2_generates_the_same_text_everywhere(tmp_path: Path) -> None:
    """A model of 30 layers, in 4 bits: a prompt and 24 greedy tokens, against the exact reference of the whole."""
    smollm2(tmp_path / "smollm2")
    module = smc.apply(smc.load_checkpoint(tmp_path / "smollm2"), load_recipe("int4").passes)
    driver = link_driver(module, "arm64", tmp_path)
    prompt = Tokenizer.from_file(str(tmp_path / "smollm2" / "tokenizer.json")).encode("Once upon a time, there").ids
    expected = None
    for level in LEVELS:
        with EmulatedModel(driver, "arm64", CPUS[level], threads=2) as model:
            tokens, rows = list(prompt), [model.logits(prompt)]
            for _ in range(24):
                tokens.append(int(rows[-1][-1].argmax()))
                rows.append(model.step(batch(tokens[-1:], len(tokens) - 1)))
        logits = np.concatenate(rows)
        if expected is None:
            expected = exact_logits(module, tokens)
        np.testing.assert_array_equal(logits, expected, err_msg=level)


# ---------------------------------------------------------------- x86-64 without AVX-512


@pytest.mark.slow
def test_x86_without_avx512(build: Build) -> None:
    module, driver = build("int4", "x86-64")
    with EmulatedModel(driver, "x86-64", "Haswell", threads=2) as model:
        assert model.level == "avx2"
        np.testing.assert_array_equal(model.logits(TOKENS), exact_logits(module, TOKENS))
    with pytest.raises(RuntimeError, match=r"this CPU can't run level avx512vnni: it lacks avx512f, "):
        EmulatedModel(driver, "x86-64", "Haswell", level="avx512vnni")
    with pytest.raises(RuntimeError, match=r"this CPU has none of the artifact's levels .*: it lacks avx, avx2, "):
        EmulatedModel(driver, "x86-64", "Nehalem")
