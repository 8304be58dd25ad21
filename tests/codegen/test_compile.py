"""Compiled random models of every supported shape against transformers, and modules made by hand and by users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import smc
from smc.codegen import compile_module
from smc.errors import InputError
from smc.ir import Function, Module, print_function, verify
from smc.passes import FUSIONS, QuantizeRTN, apply
from smc.reference import Reference, kl_divergence
from tests.codegen.modules import block_with, linear, random_blocks, random_parameters
from tests.ir.models import tiny_module
from tests.levels import usable_levels

MakeCheckpoint = Callable[..., tuple[Path, Any]]


def heads(heads: int, kv_heads: int, head_dim: int) -> dict[str, int]:
    return {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

# Kernels of attention are generated for (heads, KV heads, head_dim): few of those, so that a cold cache costs little.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "grouped queries": ("Llama", {}),
    "tied head": ("Llama", {"tie_word_embeddings": True}),
    "biases, llama3 rope": ("Llama", {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3_ROPE}),
    "linear rope": ("Llama", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0}}),
    "one KV head, head_dim 80": ("Llama", {"hidden_size": 192, **heads(3, 1, 80)}),
    "odd widths": ("Llama", {"hidden_size": 45, **heads(3, 3, 10), "intermediate_size": 341, "vocab_size": 101}),
    "as SmolLM2": ("Llama", {"hidden_size": 576, **heads(9, 3, 64), "num_hidden_layers": 1}),
    "Mistral with a window": ("Mistral", {"sliding_window": 7}),
    "Mistral with a window of more than a page": ("Mistral", {"sliding_window": 70}),
    "Mistral without": ("Mistral", {"sliding_window": None}),
}


def random_tokens(count: int, vocab: int = 96, seed: int = 1) -> list[int]:
    return torch.randint(0, vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def reference_logits(module: Module, tokens: Sequence[int]) -> np.ndarray:
    return Reference(module).logits(torch.tensor(tokens)).numpy()


def logits_of(path: Path, tokens: Sequence[int], **options: Any) -> np.ndarray:
    with smc.load(path, **{"kv_dtype": "f32", **options}) as model:
        return model.logits(tokens).copy()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(make_checkpoint: MakeCheckpoint, tmp_path: Path, family: str) -> None:
    kind, changes = FAMILIES[family]
    folder, model = make_checkpoint(kind, **changes)
    tokens = random_tokens(150)
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    smc.compile(smc.load_checkpoint(folder), out=tmp_path / "out.smc")
    for level in usable_levels():
        logits = logits_of(tmp_path / "out.smc", tokens, level=level)
        np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=1e-4)


def test_long_prompts_are_run_in_steps(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """More tokens than the engine runs at once, over many pages of KV cache."""
    folder, transformers_model = make_checkpoint(max_position_embeddings=1400)
    tokens = random_tokens(1300)
    with torch.no_grad():
        expected = transformers_model(torch.tensor([tokens])).logits[0].numpy()
    smc.compile(smc.load_checkpoint(folder), out=tmp_path / "out.smc")
    with smc.load(tmp_path / "out.smc", kv_dtype="f32", threads=1) as model:
        assert model.engine.facts.max_step_tokens < len(tokens)
        logits = model.logits(tokens)
        np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=1e-4)
    with smc.load(tmp_path / "out.smc", kv_dtype="f32", threads=3) as model, model.new_sequence() as sequence:
        # Short steps far behind the beginning: attention is split among the threads and merged.
        ends = [433, 866, 1280, 1288, 1296, *range(1297, 1301)]
        rows = [sequence.extend(tokens[i:j], logits="all") for i, j in zip([0, *ends], ends, strict=False)]
    assert np.array_equal(np.concatenate(rows), logits)


@pytest.mark.parametrize("passes", ["convert:dtype=f32", "quantize-rtn:bits=8", "quantize-rtn:bits=4,symmetric=no"])
def test_unfused_modules_compute_the_same(make_checkpoint: MakeCheckpoint, tmp_path: Path, passes: str) -> None:
    folder, _ = make_checkpoint(attention_bias=True, mlp_bias=True)
    module = smc.apply(smc.load_checkpoint(folder), [passes])
    tokens = random_tokens(40)
    compile_module(module, out=tmp_path / "plain.smc")
    compile_module(apply(module, FUSIONS), out=tmp_path / "fused.smc")
    plain, fused = (logits_of(tmp_path / f"{name}.smc", tokens) for name in ("plain", "fused"))
    np.testing.assert_allclose(plain, fused, atol=1e-5 * np.abs(fused).max(), rtol=0)


def test_precision_may_differ_from_layer_to_layer(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """Integers with different groups, levels of activations, floats and weight-only codes, all in one function."""
    folder, _ = make_checkpoint(num_hidden_layers=6, intermediate_size=91)
    chain = [
        "quantize-rtn:bits=8,include=model.layers.0.*",
        "quantize-rtn:bits=4,group=16,include=model.layers.1.*",
        "quantize-rtn:bits=3,group=64,activation=none,include=model.layers.2.*",
        "convert:dtype=bf16,include=model.layers.3.*",
        "quantize-rtn:bits=6,group=row,symmetric=no,include=model.layers.4.mlp.*",
        "quantize-rtn:bits=5,include=embed_tokens",
    ]
    module = smc.apply(smc.load_checkpoint(folder), chain)
    assert len({str(p.encoding) for p in module.parameters.values()}) == 7
    smc.compile(module, out=tmp_path / "out.smc")
    tokens = random_tokens(60)
    expected = torch.from_numpy(reference_logits(module, tokens))
    logits = torch.from_numpy(logits_of(tmp_path / "out.smc", tokens))
    assert kl_divergence(expected, logits).mean() <= 1e-4


def interleaved(modules: Sequence[Module]) -> Module:
    """The layers of several models, taken by turns; embedding and head are those of the first."""
    result = modules[0].copy()
    for index, call in enumerate(modules[0].layer_calls()):
        kind = index % len(modules)
        function = result.functions[f"block_{kind}"] = modules[kind].functions["block"].copy()
        function.name = f"block_{kind}"
        names = modules[kind].layer_calls()[index].attributes["parameters"]
        slots = {slot: f"{kind}.{name}" for slot, name in names.items()}
        for slot, name in slots.items():
            parameter = modules[kind].parameters[names[slot]]
            result.parameters[name] = replace(parameter, name=name)
        result.main.replace_node(call.name, attributes={"function": f"block_{kind}", "parameters": slots})
    used = {name for call, _ in result.calls() for name in call.attributes["parameters"].values()}
    result.parameters = {name: p for name, p in result.parameters.items() if name in used}
    del result.functions["block"]
    verify(result)
    return result


def test_attention_may_differ_from_layer_to_layer(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """KV heads, head_dim, window and rope: groups of pages of their own, exact after any truncation."""
    changes: list[tuple[str, dict[str, Any]]] = [
        ("Mistral", {"sliding_window": 70}),
        ("Llama", {**heads(3, 1, 80), "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        ("Mistral", {"sliding_window": 7}),
    ]
    made = [make_checkpoint(kind, num_hidden_layers=5, max_position_embeddings=900, **more) for kind, more in changes]
    module = interleaved([smc.load_checkpoint(folder) for folder, _ in made])
    tokens = random_tokens(800)
    expected = reference_logits(module, tokens)
    smc.compile(module, out=tmp_path / "out.smc")
    for level in usable_levels():
        np.testing.assert_allclose(logits_of(tmp_path / "out.smc", tokens, level=level), expected, atol=1e-3, rtol=1e-4)
    with smc.load(tmp_path / "out.smc", kv_dtype="f32") as model, model.new_sequence() as sequence:
        used = []
        for end in (300, 301, 799, 800):  # a window's pages come free at the next step
            sequence.extend(tokens[sequence.length : end])
            used.append(model.engine.info().kv_bytes_used)
        page = 2 * 64 * 80 * 2 * 4  # of both layers without a window
        assert used[3] - used[1] == (13 - 5) * page
        for length in (790, 700, 128, 1, 0):
            sequence.truncate(length)
            logits = sequence.extend(tokens[length : length + 10], logits="all")
            np.testing.assert_allclose(logits, expected[length : length + 10], atol=1e-3, rtol=1e-4)
    with smc.load(tmp_path / "out.smc", kv_dtype="f32") as model:
        whole = model.logits(tokens).copy()
        with model.new_sequence() as sequence:
            parts = [sequence.extend(tokens[i : i + 37], logits="all").copy() for i in range(0, 800, 37)]
    assert np.array_equal(np.concatenate(parts), whole)


# ---------------------------------------------------------------- modules made by hand


def test_a_model_without_attention(tmp_path: Path) -> None:
    module = random_parameters(tiny_module())
    compile_module(module, out=tmp_path / "out.smc")
    tokens = [0, 1, 2, 3, 4, 4, 0]
    np.testing.assert_allclose(logits_of(tmp_path / "out.smc", tokens), reference_logits(module, tokens), atol=1e-5)


BLOCKS: dict[str, Callable[[Function, str], str]] = {
    "residual read again later": lambda b, x: b.add("mul", linear(b, b.add("silu", x), x), x),
    "residual that is the input": lambda b, x: linear(b, x, x),
    "two linears on one residual": lambda b, x: b.add(
        "add", linear(b, b.add("silu", x), x), linear(b, b.add("mul", x, x), x)
    ),
    "a linear on a linear": lambda b, x: linear(b, linear(b, x)),
    "a linear on a sum made in place": lambda b, x: linear(b, linear(b, x, x)),
    "a value used twice by one op": lambda b, x: b.add("add", *[linear(b, x)] * 2),
    "the input unchanged": lambda b, x: b.add("add", x, b.add("mul", linear(b, x), linear(b, b.add("silu", x)))),
    "residual that a linear has read": lambda b, x: (lambda s: linear(b, linear(b, s), s))(b.add("silu", x)),
    "a result that nobody reads": lambda b, x: (lambda _: linear(b, x))(b.add("silu", linear(b, x))),
    "residual made in the block": lambda b, x: linear(b, x, b.add("silu", x)),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("quantized", [False, True], ids=["f32", "int8"])
def test_blocks_of_any_shape(tmp_path: Path, name: str, quantized: bool) -> None:
    """As it stands, and fused where there is something to fuse."""
    module = apply(block_with(BLOCKS[name]), [QuantizeRTN(bits=8, include=("square",))] if quantized else [])
    tokens = [0, 1, 2, 3, 4, 4, 0, 2]
    expected = reference_logits(module, tokens)
    fused = apply(module, FUSIONS)
    for changed in {print_function(m.functions["block"]): m for m in (fused, module)}.values():
        compile_module(changed, out=tmp_path / "out.smc")
        logits = logits_of(tmp_path / "out.smc", tokens)
        # A value may round to the neighbouring int8 code where activations are rounded.
        np.testing.assert_allclose(logits, expected, atol=0.02 if quantized else 1e-5, rtol=1e-5)


@pytest.mark.slow
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random_blocks(), st.booleans(), st.booleans())
def test_random_blocks(tmp_path: Path, build: Callable[[Function, str], str], quantized: bool, fused: bool) -> None:
    chain = [*([QuantizeRTN(bits=8, include=("square",))] if quantized else []), *(FUSIONS if fused else ())]
    module = apply(block_with(build), chain)
    compile_module(module, out=tmp_path / "out.smc")
    tokens = [0, 1, 2, 3, 4, 4, 0, 2]
    expected = reference_logits(module, tokens)
    logits = logits_of(tmp_path / "out.smc", tokens)
    np.testing.assert_allclose(logits, expected, atol=(0.02 if quantized else 1e-5) * max(1, np.abs(expected).max()))


# ---------------------------------------------------------------- a pass of a user's own

FOUR_LEVELS = """
from dataclasses import dataclass

import torch

from smc.ir import Encoding
from smc.passes import GroupStatistics, WeightQuantizer, register

LEVELS = (-1.0, -0.1, 0.37, 1.0)


@register("four-levels")
@dataclass(frozen=True)
class FourLevels(WeightQuantizer):
    '''Two bits that mean anything.'''

    group: int = 32
    grid: str = "f32"

    def levels(self) -> tuple[float, ...]:
        return LEVELS if self.grid == "f32" else tuple(round(100 * level) for level in LEVELS)

    def encoding(self) -> Encoding:
        return Encoding.of(bits=2, codebook=self.levels(), group=self.group)

    def quantize(self, groups: torch.Tensor, statistics: GroupStatistics) -> tuple[torch.Tensor, ...]:
        levels = torch.tensor(self.levels(), dtype=torch.float32)
        scales = self.round_scales(groups.abs().amax(-1) / levels.abs().max())
        return (groups / scales[..., None])[..., None].sub(levels).abs().argmin(-1), scales
"""


@pytest.fixture(scope="module")
def users_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("user") / "four_levels.py"
    path.write_text(FOUR_LEVELS)
    return path


@pytest.mark.parametrize("options", ["grid=f32", "grid=i8,group=128"])
def test_a_codebook_from_a_users_file_has_a_kernel(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, users_file: Path, options: str
) -> None:
    folder, _ = make_checkpoint(num_hidden_layers=1)
    module = smc.apply(smc.load_checkpoint(folder), [f"{users_file}:four-levels:{options}"])
    assert {str(p.encoding)[:8] for p in module.parameters.values() if len(p.shape) == 2} == {"levels4."}
    smc.compile(module, out=tmp_path / "out.smc")
    tokens = random_tokens(60)
    expected = torch.from_numpy(reference_logits(module, tokens))
    logits = torch.from_numpy(logits_of(tmp_path / "out.smc", tokens))
    assert kl_divergence(expected, logits).mean() <= 1e-4


# ---------------------------------------------------------------- what has no kernel


def test_what_has_no_kernel_is_told(tmp_path: Path) -> None:
    module = block_with(lambda b, x: b.add("softmax", x))
    with pytest.raises(InputError, match="there is no kernel for the op softmax yet"):
        compile_module(module, out=tmp_path / "out.smc")
    assert list(tmp_path.iterdir()) == []
