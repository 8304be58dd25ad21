"""From a checkpoint to logits: compiled models against transformers and against the reference, and the promise that
threads, chunks and batches change no bit (docs/numerics.md)."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import smc
from benchmarks.models import glassllm, smollm2
from smc.cli import main
from smc.codegen import compile_module
from smc.ir import EncodedTensor, Encoding, Module, Parameter, rotate
from smc.passes import QuantizeRTN, load_recipe, parse_pass
from smc.reference import ExactReference, Reference, kl_divergence
from smc.runtime import Model
from smc.runtime.artifact import read_manifest
from smc.runtime.interface import TOKEN, WANT_ARGMAX, WANT_HIDDEN, WANT_LOGITS
from tests.levels import usable_levels

RECIPES = ("f32", "f16", "int8", "int4", "int4-plain")
QUANTIZED = RECIPES[2:]

PROMPTS = (
    "Alice was beginning to get very tired",
    "The Queen of Hearts",
    '"Who are you?" said the Caterpillar',
    "There was a table set out under a tree",
    "Once upon a time",
)

TEXT = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once or "
    "twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it, and "
    "what is the use of a book, thought Alice, without pictures or conversations? So she was considering in her own "
    "mind, as well as she could, for the hot day made her feel very sleepy and stupid, whether the pleasure of making"
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint: trained, 4 layers, FFN width 341, context 128."""
    path = tmp_path_factory.mktemp("glassllm") / "glassllm"
    glassllm(path)
    return path


@pytest.fixture(scope="session")
def transformers_model(folder: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def compiled(folder: Path) -> Callable[[str], tuple[Module, Path]]:
    """Recipe → the module as compiled, and the artifact; every recipe is compiled once."""

    @functools.cache
    def compile_recipe(recipe: str) -> tuple[Module, Path]:
        module = smc.apply(smc.load_checkpoint(folder), load_recipe(recipe).passes)
        path = folder.parent / f"{recipe}.smc"
        smc.compile(module, out=path)
        return module, path

    return compile_recipe


@pytest.fixture(scope="session")
def tokens(folder: Path) -> list[int]:
    """A text of 120 tokens."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids
    assert len(ids) >= 120
    return list(ids[:120])


def transformers_logits(model: Any, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


# ---------------------------------------------------------------- against transformers


@pytest.mark.parametrize("level", usable_levels())
@pytest.mark.parametrize(("recipe", "kv_dtype", "tolerance"), [("f32", "f32", 1e-4), ("f16", "f16", 2e-2)])
def test_float_logits_equal_transformers(
    compiled: Any, transformers_model: Any, tokens: list[int], recipe: str, kv_dtype: str, tolerance: float, level: str
) -> None:
    with smc.load(compiled(recipe)[1], kv_dtype=kv_dtype, level=level) as model:
        assert model.level == level
        logits = model.logits(tokens)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, transformers_logits(transformers_model, tokens), atol=tolerance, rtol=0)


def test_greedy_text_in_f16_equals_transformers(compiled: Any, transformers_model: Any) -> None:
    with smc.load(compiled("f16")[1]) as model:
        for prompt in PROMPTS:
            ids = model.encode(prompt)
            generated = model.generate(ids, max_tokens=64, temperature=0).tokens
            with torch.no_grad():
                expected = transformers_model.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False)
            assert generated == expected[0, len(ids) :].tolist(), prompt


def test_the_command_line_goes_all_the_way(
    folder: Path, transformers_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "glass.smc"
    assert main.run(["compile", str(folder), "--quant", "f16", "-o", str(out)]) == 0
    capsys.readouterr()
    assert main.run(["run", str(out), PROMPTS[0], "-n", "20", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    with torch.no_grad():
        expected = transformers_model.generate(torch.tensor([result["prompt_tokens"]]), max_new_tokens=20)
    assert result["tokens"] == expected[0, len(result["prompt_tokens"]) :].tolist()


# ---------------------------------------------------------------- against the reference


@pytest.mark.parametrize("recipe", QUANTIZED)
def test_quantized_models_equal_the_reference(compiled: Any, tokens: list[int], recipe: str) -> None:
    module, path = compiled(recipe)
    expected = Reference(module, kv_dtype="f16").logits(torch.tensor(tokens))
    with smc.load(path) as model:
        logits = torch.from_numpy(model.logits(tokens).copy())
    assert kl_divergence(expected, logits).mean() <= 1e-4


@pytest.mark.parametrize("recipe", RECIPES)
def test_bits_are_those_of_the_exact_reference(compiled: Any, tokens: list[int], recipe: str) -> None:
    module, path = compiled(recipe)
    expected = ExactReference(module, kv_dtype="f16").logits(torch.tensor(tokens[:80])).numpy()
    for level in usable_levels():
        with smc.load(path, level=level) as model:
            np.testing.assert_array_equal(model.logits(tokens[:80]), expected)


@pytest.mark.parametrize("recipe", ["f16", "int8"])
def test_bits_of_an_i8_cache_are_those_of_the_exact_reference(compiled: Any, tokens: list[int], recipe: str) -> None:
    module, path = compiled(recipe)
    expected = ExactReference(module, kv_dtype="i8").logits(torch.tensor(tokens[:80])).numpy()
    for level in usable_levels():
        with smc.load(path, level=level, kv_dtype="i8") as model:
            assert np.array_equal(model.logits(tokens[:80]), expected)
            assert model.engine.facts.kv_dtype == 2


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct out of a package."""
    path = tmp_path_factory.mktemp("smollm2") / "smollm2"
    smollm2(path)
    return path


MIXED = (
    "quantize-ternary:storage=base3,include=model.layers.0.*",
    "quantize-rtn:super_group=8,group=16,include=model.layers.1.*",
    "quantize-rtn:group=64,activation_group=128,symmetric=no,include=model.layers.2.*",
    "quantize-nf4:exclude=model.layers.3.*",
)


def transformed(parameter: Parameter, seed: int) -> Parameter:
    """8 bits, the columns in a random order, rotated, or both."""
    columns = parameter.shape[1]
    rotation = 64 if seed % 3 and columns % 64 == 0 else None
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(seed)).int()
    encoding = Encoding.of(bits=8, permuted=not rotation or seed % 2 == 0, rotation=rotation)

    def load() -> EncodedTensor:
        values = parameter.values()[:, order.long()] if encoding.transform.permuted else parameter.values()
        tensor = QuantizeRTN(bits=8).encode(values if rotation is None else rotate(values, rotation))
        return replace(tensor, encoding=encoding, order=order if encoding.transform.permuted else None)

    return replace(parameter, encoding=encoding, load=load)


def test_a_layer_of_every_kind_has_the_bits_of_the_exact_reference(
    folder: Path, tokens: list[int], tmp_path: Path
) -> None:
    module = smc.apply(smc.load_checkpoint(folder), [parse_pass(text) for text in MIXED]).copy()
    for number, parameter in enumerate(list(module.parameters.values())):
        if ".layers.3." in parameter.name and len(parameter.shape) == 2:
            module.parameters[parameter.name] = transformed(parameter, number)
    smc.compile(module, out=tmp_path / "mixed.smc")
    expected = ExactReference(module, kv_dtype="f16").logits(torch.tensor(tokens[:40])).numpy()
    for level in usable_levels():
        with smc.load(tmp_path / "mixed.smc", level=level) as model:
            np.testing.assert_array_equal(model.logits(tokens[:40]), expected)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES[1:])
def test_smollm2_has_the_bits_of_the_exact_reference(smollm2_folder: Path, tmp_path: Path, recipe: str) -> None:
    """A model of 30 layers, in which every code that is rounded the other way is seen in the logits."""
    module = smc.apply(smc.load_checkpoint(smollm2_folder), load_recipe(recipe).passes)
    smc.compile(module, out=tmp_path / "model.smc")
    with smc.load(tmp_path / "model.smc") as model:
        ids = model.encode(TEXT)[:70]
        expected = ExactReference(module, kv_dtype="f16").logits(torch.tensor(ids)).numpy()
    for level in usable_levels():
        with smc.load(tmp_path / "model.smc", level=level) as model:
            np.testing.assert_array_equal(model.logits(ids), expected)


@pytest.mark.parametrize(("recipe", "limit"), [("int8", 5e-4), ("int4", 0.01), ("int4-plain", 0.03)])
def test_quantized_models_are_still_the_model(
    compiled: Any, transformers_model: Any, tokens: list[int], recipe: str, limit: float
) -> None:
    """Quantizing loses little, in nats; a tiny model loses more than a large one."""
    expected = torch.from_numpy(transformers_logits(transformers_model, tokens))
    with smc.load(compiled(recipe)[1]) as model:
        logits = torch.from_numpy(model.logits(tokens).copy())
    assert kl_divergence(expected, logits).mean() <= limit


# ---------------------------------------------------------------- the same bits


@pytest.fixture(params=[(recipe, level) for recipe in RECIPES for level in usable_levels()], ids="-".join)
def models(request: pytest.FixtureRequest, compiled: Any) -> Iterator[tuple[Model, Model]]:
    """One model with one thread and one with two, of every recipe at every level."""
    recipe, level = request.param
    path = compiled(recipe)[1]
    with (
        smc.load(path, threads=1, sequences=4, level=level) as one,
        smc.load(path, threads=2, sequences=4, level=level) as two,
    ):
        assert (one.threads, two.threads) == (1, 2)
        yield one, two


def test_bits_do_not_depend_on_threads_or_chunks(models: tuple[Model, Model], tokens: list[int]) -> None:
    one, two = models
    whole = one.logits(tokens)
    assert np.array_equal(two.logits(tokens), whole)
    for sizes in ([1] * len(tokens), [7] * 18, [40, 1, 63, 16], [119, 1]):
        with two.new_sequence() as sequence:
            rows, start = [], 0
            for size in sizes:
                rows.append(sequence.extend(tokens[start : start + size], logits="all"))
                start += size
        assert np.array_equal(np.concatenate(rows), whole), sizes


def test_bits_do_not_depend_on_the_batch(models: tuple[Model, Model], tokens: list[int]) -> None:
    """Three texts in the same steps: prefilled together, then one token of each in every step."""
    texts = [tokens, tokens[50:] + tokens[:20], tokens[::-1][:77]]
    expected = [models[0].logits(text) for text in texts]
    for model in models:
        slots = [model.engine.sequence_create() for _ in texts]
        results: list[list[np.ndarray]] = [[] for _ in texts]
        starts = [0, 0, 0]
        for sizes in ([33, 5, 64], *[[1, 1, 1]] * 6, [0, 30, 1], [50, 1, 0]):
            parts = []
            for slot, text, start, size in zip(slots, texts, starts, sizes, strict=True):
                part = np.zeros(size, TOKEN)
                part["token"], part["sequence"] = text[start : start + size], slot
                part["index"] = part["position"] = np.arange(start, start + size)
                part["flags"] = WANT_LOGITS
                parts.append(part)
            rows = model.step(np.concatenate(parts))
            for result, block in zip(results, np.split(rows, np.cumsum(sizes)[:-1]), strict=True):
                result.append(block)
            starts = [start + size for start, size in zip(starts, sizes, strict=True)]
        for slot, result, whole in zip(slots, results, expected, strict=True):
            logits = np.concatenate(result)
            assert np.array_equal(logits, whole[: len(logits)])
            model.engine.sequence_drop(slot)


def test_bits_do_not_depend_on_which_logits_are_wanted(models: tuple[Model, Model], tokens: list[int]) -> None:
    one, two = models
    whole = one.logits(tokens)
    with two.new_sequence() as sequence:
        assert sequence.extend(tokens[:60], logits="none").shape == (0, two.vocab_size)
        assert np.array_equal(sequence.extend(tokens[60:], logits="last"), whole[-1:])


def test_bits_do_not_depend_on_what_else_is_wanted(models: tuple[Model, Model], tokens: list[int]) -> None:
    """Two texts in one batch: the last layer ends with the wanted tokens' rows, however many of how many these are."""
    one, two = models
    texts, rng = [tokens, tokens[::-1]], np.random.default_rng(3)
    flags = (WANT_LOGITS | WANT_HIDDEN, WANT_LOGITS, WANT_HIDDEN, WANT_ARGMAX, 0)

    def run(model: Model, choice: np.ndarray) -> list[np.ndarray]:
        slots = [model.engine.sequence_create() for _ in texts]
        batch = np.zeros(2 * len(tokens), TOKEN)
        batch["token"], batch["sequence"] = np.concatenate(texts), np.repeat(slots, len(tokens))
        batch["index"] = batch["position"] = np.tile(np.arange(len(tokens)), 2)
        batch["flags"] = choice
        logits = model.logits_buffer(int(np.count_nonzero(choice & WANT_LOGITS)))
        hidden = np.empty((int(np.count_nonzero(choice & WANT_HIDDEN)), model.engine.facts.hidden_size), np.float32)
        argmax = model.engine.step(batch, logits=logits, hidden=hidden)
        for slot in slots:
            model.engine.sequence_drop(slot)
        return [logits[:, : model.vocab_size], hidden, argmax]

    everything, hidden, _ = run(one, np.full(2 * len(tokens), flags[0]))
    for share in (0.01, 0.05, 0.5, 0.95):  # of tokens that want nothing
        choice = rng.choice(flags, 2 * len(tokens), p=[(1 - share) / 4] * 4 + [share])
        for model in models:
            results = run(model, choice)
            assert np.array_equal(results[0], everything[(choice & WANT_LOGITS) > 0])
            assert np.array_equal(results[1], hidden[(choice & WANT_HIDDEN) > 0])
            assert np.array_equal(results[2], everything[choice == WANT_ARGMAX].argmax(1))
    nothing = np.zeros(2 * len(tokens), np.uint32)
    assert [len(result) for result in run(two, nothing)[:2]] == [0, 0]


def test_who_decodes_beside_others_may_want_nothing(models: tuple[Model, Model], tokens: list[int]) -> None:
    """Attention of one token per sequence writes the cache itself, also that of tokens without logits."""
    for model in models:
        expected = model.logits(tokens)
        slots = [model.engine.sequence_create() for _ in range(3)]
        for index, token in enumerate(tokens[:12]):
            batch = np.zeros(3, TOKEN)
            batch["token"], batch["sequence"], batch["index"], batch["position"] = token, slots, index, index
            batch["flags"][index % 4 : index % 4 + 1] = WANT_LOGITS  # in every fourth step of none
            assert np.array_equal(model.step(batch), expected[[index] * (index % 4 < 3)])
        for slot in slots:
            model.engine.sequence_drop(slot)


def test_the_last_layer_of_blocks_that_are_not_fused(folder: Path, tokens: list[int], tmp_path: Path) -> None:
    """Their results lie elsewhere than their inputs."""
    compile_module(smc.load_checkpoint(folder), out=tmp_path / "plain.smc")
    with smc.load(tmp_path / "plain.smc", threads=2) as model:
        whole = model.logits(tokens)
        with model.new_sequence() as sequence:
            assert np.array_equal(sequence.extend(tokens[:60], logits="last"), whole[59:60])
            assert sequence.extend(tokens[60:100], logits="none").shape == (0, model.vocab_size)
            assert np.array_equal(sequence.extend(tokens[100:], logits="all"), whole[100:])


def test_the_largest_logit_is_found_without_the_others(models: tuple[Model, Model], tokens: list[int]) -> None:
    largest = models[0].logits(tokens).argmax(1)
    assert len(set(largest.tolist())) > 5
    for model in models:
        batch = np.zeros(len(tokens), TOKEN)
        batch["token"], batch["index"] = tokens, np.arange(len(tokens))
        batch["position"], batch["sequence"] = batch["index"], model.engine.sequence_create()
        for mixed in (False, True):
            flags = np.where(np.arange(len(tokens)) % 3 < mixed, WANT_LOGITS, WANT_ARGMAX)
            batch["flags"] = flags
            logits = model.logits_buffer(int((flags == WANT_LOGITS).sum()))
            argmax = model.engine.step(batch, logits=logits)
            assert np.array_equal(argmax, largest[flags == WANT_ARGMAX])
            assert np.array_equal(logits[:, : model.vocab_size].argmax(1), largest[flags == WANT_LOGITS])
            model.engine.sequence_truncate(int(batch["sequence"][0]), 0)
        model.engine.sequence_drop(int(batch["sequence"][0]))
        with model.new_sequence() as sequence:
            assert sequence.next_token(tokens[:50]) == largest[49]
            assert sequence.next_token(tokens[50:51]) == largest[50]
            assert sequence.length == 51


def test_forked_and_truncated_sequences_equal_new_ones(models: tuple[Model, Model], tokens: list[int]) -> None:
    _, model = models
    other = tokens[::-1]
    with model.new_sequence() as first:
        first.extend(tokens[:70])
        with first.fork() as second:
            of_first = first.extend(tokens[70:100])
            of_second = second.extend(other[:30])
            assert np.array_equal(of_first, model.logits(tokens[:100])[-1:])
            assert np.array_equal(of_second, model.logits(tokens[:70] + other[:30])[-1:])
        first.truncate(65)
        assert first.tokens == tokens[:65]
        assert np.array_equal(first.extend(other[:40]), model.logits(tokens[:65] + other[:40])[-1:])
        first.truncate(0)
        assert np.array_equal(first.extend(tokens), model.logits(tokens)[-1:])


@pytest.mark.skipif(len(usable_levels()) < 2, reason="this CPU has one level only")
@pytest.mark.parametrize("recipe", RECIPES)
def test_levels_agree(compiled: Any, tokens: list[int], recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for level in usable_levels():
        monkeypatch.setenv("SMC_LEVEL", level)
        with smc.load(compiled(recipe)[1], kv_dtype="f32") as model:
            assert model.level == level
            results.append(model.logits(tokens))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_eval_judges_an_artifact_beside_its_checkpoint(
    compiled: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine's logits against those of the checkpoint, and the same of the module in torch."""
    from smc.reference import evaluate, text_windows

    module, artifact = compiled("int4")
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 2, encoding="utf-8")
    assert main.run(["eval", str(artifact), "--text", str(text), "--against", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    with smc.load(artifact) as model:
        windows = text_windows(model.encode(TEXT * 2), 128)
    checkpoint = Reference(smc.load_checkpoint(folder))
    expected = evaluate(Reference(module, "f16").logits, windows, checkpoint.logits, "second-half")
    assert found["windows"] == len(windows) == 2
    assert found["perplexity"]["second_half"] == pytest.approx(expected.perplexity, rel=0.01)
    assert found["kl_divergence"]["mean"] == pytest.approx(expected.kl_divergence, rel=0.05)
    assert found["bits_per_weight"] == read_manifest(artifact).bits_per_weight
    assert main.run(["eval", str(artifact), "--text", str(text), "--quant", "int4"]) == 2
    assert "is an artifact, which passes can't change" in capsys.readouterr().err
