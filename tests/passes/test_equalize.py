"""SmoothQuant and AWQ: the model stays the same, and the factors are those of the papers, read plainly in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smc.errors import InputError
from smc.frontend import load_checkpoint
from smc.passes import AWQ, QuantizeRTN, Smooth, apply, parse_pass
from smc.reference import Reference
from tests.passes.test_calibration import context, read_inputs, windows

LAYER = "model.layers.1."
ATTENTION = [f"{LAYER}self_attn.{name}_proj.weight" for name in "qkv"]
GATED = [f"{LAYER}mlp.{name}_proj.weight" for name in ("gate", "up")]
NORMS = {"input_layernorm": ATTENTION, "post_attention_layernorm": GATED}


def different(one, other):
    """The names of parameters whose values differ."""
    return {n for n, p in one.parameters.items() if not torch.equal(p.values(), other.parameters[n].values())}


def smooth_factors(matrices, inputs):
    """Equation 4 of arXiv 2211.10438 with alpha = 0.5, matrices that share inputs together."""
    weights = np.abs(np.concatenate(matrices)).max(0)
    return np.abs(inputs).max(0) ** 0.5 / weights**0.5


def awq_factors(matrices, inputs):
    """Equations 4 and 5 of arXiv 2306.00978: the power of the mean magnitude with which the products change least."""
    sizes, tried = np.abs(inputs).mean(0), []
    for step in range(20):
        factors = sizes ** (step / 20)
        factors /= np.sqrt(factors.max() * factors.min())
        lost = 0.0
        for matrix in matrices:
            scaled = torch.from_numpy(matrix * factors).float()
            rounded = QuantizeRTN(bits=3, group=16, search=0).encode(scaled).decode()
            lost += np.square((rounded.numpy() / factors - matrix) @ inputs.T).sum()
        tried.append((lost, step, factors))
    return min(tried)[2]


@pytest.mark.parametrize(
    ("method", "plain"), [(Smooth(), smooth_factors), (AWQ(bits=3, group=16), awq_factors)], ids=["smooth", "awq"]
)
@pytest.mark.parametrize("kind", ["Llama", "Olmo2"])
def test_factors_are_those_of_the_paper_and_nothing_changes(make_checkpoint, method, plain, kind):
    folder, model = make_checkpoint(kind)
    module = load_checkpoint(folder)
    result = apply(module, [method], context())
    tokens = windows()[0]
    torch.testing.assert_close(Reference(result).logits(tokens), Reference(module).logits(tokens), atol=2e-4, rtol=2e-3)
    changed = different(result, module)
    if kind == "Olmo2":  # norms stand behind the layers' parts, only the head reads one
        assert changed == {"model.norm.weight", "lm_head.weight"}
        return
    assert not any("down" in name or "o_proj" in name or "embed" in name for name in changed)
    inputs = read_inputs(model, windows())
    for norm, names in NORMS.items():
        x = inputs[names[0]].double().numpy()
        factors = plain([module.parameters[name].values().double().numpy() for name in names], x)
        for name in names:
            expected = module.parameters[name].values() * torch.from_numpy(factors)
            torch.testing.assert_close(result.parameters[name].values(), expected.float(), atol=1e-4, rtol=2e-3)
        name = f"{LAYER}{norm}.weight"
        expected = module.parameters[name].values() / torch.from_numpy(factors)
        torch.testing.assert_close(result.parameters[name].values(), expected.float(), atol=1e-4, rtol=2e-3)


def test_awq_loses_less_than_rounding_alone(make_checkpoint):
    """With inputs of very different sizes: of products, not of weights."""
    folder, model = make_checkpoint()
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight.copy_(torch.logspace(-1.5, 1.5, 48))
    model.save_pretrained(folder)
    module = load_checkpoint(folder)
    rounding = QuantizeRTN(bits=3, group=16)
    x = read_inputs(model, windows())[GATED[0]]
    losses = []
    for chain in ([rounding], [AWQ(bits=3, group=16), rounding]):
        result = apply(module, chain, context())
        norm = f"{LAYER}post_attention_layernorm.weight"
        scale = module.parameters[norm].values() / result.parameters[norm].values()
        error = result.parameters[GATED[0]].values() / scale - module.parameters[GATED[0]].values()
        losses.append((error @ x.T).square().sum().item())
    assert losses[1] < 0.9 * losses[0]


def test_what_is_quantized_or_tied_stays(make_checkpoint):
    module = load_checkpoint(make_checkpoint(tie_word_embeddings=True)[0])
    result = apply(module, ["quantize-rtn:include=value", Smooth()], context())
    before = apply(module, ["quantize-rtn:include=value"])
    changed = different(result, before)
    assert {name.split(".")[-2] for name in changed} == {"post_attention_layernorm", "gate_proj", "up_proj"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smooth:alpha=1.5", "alpha of smooth must be from 0 to 1, not 1.5"),
        ("awq:bits=1", "awq takes 2 to 8 bits, not 1"),
        ("awq:group=7", "awq takes groups of"),
    ],
)
def test_options_that_make_no_sense(text, message):
    with pytest.raises(InputError, match=message):
        parse_pass(text)
