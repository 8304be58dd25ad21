"""The pass `rotate`: the model stays the same in another basis, whatever its family, and becomes easier to round."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from smc.frontend import load_checkpoint
from smc.ir import rotate
from smc.ir.encoding import Transform
from smc.passes import Context, QuantizeRTN, Rotate, apply
from smc.reference import ExactReference, Reference
from tests.frontend.families import FAMILIES
from tests.passes.test_calibration import windows

LAYER = "model.layers.1."
TURNED = ("Qwen2", "Qwen3", "Gemma", "Phi3", "SmolLM3", "Granite")
"""Families whose streams are read by RMS norms and written by matrices alone."""
STAY = ("Gemma2", "Olmo2", "StableLm", "GPT2", "GPTNeoX")
"""Those with layer norms, or with norms behind the layers' parts."""


def rotated(module, *arguments):
    said = []
    result = apply(module, [Rotate(*arguments)], Context(report=said.append))
    tokens = windows()[0]
    torch.testing.assert_close(Reference(result).logits(tokens), Reference(module).logits(tokens), atol=2e-4, rtol=2e-3)
    return result, said[0]


def hadamard(size):
    """By Sylvester's construction, orthogonal."""
    result = np.ones((1, 1))
    while len(result) < size:
        result = np.block([[result, result], [result, -result]])
    return result / np.sqrt(size)


@pytest.mark.parametrize("kind", TURNED)
def test_a_turned_model_computes_the_same(make_checkpoint, kind):
    module = load_checkpoint(make_checkpoint(kind, **{**FAMILIES[kind][0], "head_dim": 16})[0])
    result, said = rotated(module)
    assert f"the residual stream rotated; the values of {len(module.layer_calls())} layers rotated" in said
    changed = {n for n, p in result.parameters.items() if not torch.equal(p.values(), module.parameters[n].values())}
    assert changed >= {n for n, p in module.parameters.items() if len(p.shape) == 2 and "layers" in n}


@pytest.mark.parametrize("kind", STAY)
def test_streams_that_cannot_be_turned_stay(make_checkpoint, kind):
    module = load_checkpoint(make_checkpoint(kind, **FAMILIES[kind][0])[0])
    result, said = rotated(module)
    assert "the residual stream stays as it is: " in said
    for name in module.parameters_of("embedding"):
        assert result.parameters[name] is module.parameters[name]


def test_beside_a_plain_reading(make_checkpoint):
    """E·Q, W·diag(norm)·Q, Qᵀ·W and the values' own Hadamard matrix, by numpy; 48 columns have blocks of 16."""
    module = load_checkpoint(make_checkpoint("Qwen2", num_attention_heads=3, num_key_value_heads=1, hidden_size=48)[0])
    result, _ = rotated(module)

    def pair(name):
        return (m.parameters[name].values().double().numpy() for m in (module, result))

    plain, turned = pair("model.embed_tokens.weight")
    basis = np.linalg.lstsq(plain, turned, rcond=None)[0]
    np.testing.assert_allclose(basis @ basis.T, np.eye(48), atol=1e-5)
    blocks = np.abs(basis).reshape(3, 16, 3, 16)
    np.testing.assert_allclose(blocks[np.arange(3), :, np.arange(3)], 0.25, atol=1e-5)
    signs = np.sign(basis[:, ::16].sum(1))
    assert len(set(signs)) == 2
    np.testing.assert_allclose(basis, signs[:, None] * np.kron(np.eye(3), hadamard(16)), atol=1e-5)

    norm = module.parameters[f"{LAYER}input_layernorm.weight"].values().double().numpy()
    values = hadamard(16)
    for name, left in (("q", np.eye(48)), ("k", np.eye(16)), ("v", values)):
        plain, turned = pair(f"{LAYER}self_attn.{name}_proj.weight")
        np.testing.assert_allclose(turned, left @ (plain * norm) @ basis, atol=1e-5)
    plain, turned = pair(f"{LAYER}self_attn.v_proj.bias")
    np.testing.assert_allclose(turned, values @ plain, atol=1e-5)
    plain, turned = pair(f"{LAYER}self_attn.o_proj.weight")
    np.testing.assert_allclose(turned, basis.T @ plain @ np.kron(np.eye(3), values), atol=1e-5)
    plain, turned = pair(f"{LAYER}mlp.down_proj.weight")
    np.testing.assert_allclose(turned, basis.T @ plain, atol=1e-5)
    assert torch.equal(result.parameters[f"{LAYER}input_layernorm.weight"].values(), torch.ones(48))


def test_parts_of_it(make_checkpoint):
    module = load_checkpoint(make_checkpoint(head_dim=16)[0])
    for arguments, changed in (((True, False), 2 * 9 + 3), ((False, True), 2 * 2), ((False, False), 0)):
        result, _ = rotated(module, *arguments)
        same = [p is module.parameters[name] for name, p in result.parameters.items()]
        assert same.count(False) == changed


def test_a_tied_head_is_turned_back_and_forth(make_checkpoint, tmp_path):
    """Through the engine, to the bit; and so are inputs that are turned in tiles of 32, as they are rounded."""
    import smc

    shape = {"tie_word_embeddings": True, "head_dim": 16, "hidden_size": 64, "intermediate_size": 96}
    module = load_checkpoint(make_checkpoint(**shape)[0])
    result, _ = rotated(module)
    assert [node.op for node in result.functions["head"].nodes()].count("hadamard") == 2
    assert result.functions["block"].graph.nodes == module.functions["block"].graph.nodes
    small = apply(result, [QuantizeRTN()])
    for name in [name for name in small.parameters if "down" in name or "q_proj" in name or "up_proj" in name]:
        codes = QuantizeRTN().encode(rotate(result.parameters[name].values(), 32))
        encoding = replace(codes.encoding, transform=Transform(rotation=32))
        parameter = replace(small.parameters[name], encoding=encoding)
        small.parameters[name] = replace(parameter, load=functools.partial(replace, codes, encoding=encoding))
    smc.compile(small, out=tmp_path / "rotated.smc")
    tokens = windows()[0]
    with smc.load(tmp_path / "rotated.smc") as model:
        expected = ExactReference(small, kv_dtype="f16").logits(tokens).numpy()
        np.testing.assert_array_equal(model.logits(tokens.tolist()), expected)


def test_outliers_are_spread(make_checkpoint):
    """A column of large weights, whose groups then lose more: less so in the other basis."""
    folder, model = make_checkpoint()
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 7] *= 30
        for layer in model.model.layers:
            for matrix in (layer.self_attn.q_proj, layer.mlp.up_proj):
                matrix.weight[:, 7] *= 30
    model.save_pretrained(folder)
    module = load_checkpoint(folder)
    plain, turned = (apply(m, [QuantizeRTN(bits=3)]) for m in (module, rotated(module)[0]))
    name = f"{LAYER}mlp.up_proj.weight"
    assert turned.parameters[name].error() < 0.8 * plain.parameters[name].error()


def test_copies_and_quantized_models(make_checkpoint):
    """Of a model with a layer twice all are turned; a quantized model stays as it is."""
    module = load_checkpoint(make_checkpoint(head_dim=16)[0])
    twice = apply(module, ["map-layers:layers=0+1+1"])
    _, said = rotated(twice)
    assert "the residual stream rotated; the values of 3 layers rotated" in said
    small = apply(module, [QuantizeRTN()])
    result, said = rotated(small)
    assert "is quantized; the values of 0 layers rotated" in said
    assert all(p is small.parameters[name] for name, p in result.parameters.items())


def test_blocks_are_powers_of_two():
    from smc.ir import Function, TensorType
    from smc.ir.ops import TypeFault

    function = Function("f")
    x = function.input("x", TensorType(("n", 48)))
    assert function.node(function.add("hadamard", x, block=16)).tensor.shape == ("n", 48)
    for block in (1, 12, 32):
        with pytest.raises(TypeFault, match="hadamard"):
            function.add("hadamard", x, block=block)
