"""`quantize-guided`: what it chooses under a budget, that it goes on where it stopped, and that it is worth it."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

import smc
from smc.errors import InputError
from smc.frontend import load_checkpoint
from smc.passes import Context, QuantizeGuided, apply, guided
from smc.reference import CalibrationText
from tests.passes.test_calibration import read_inputs, windows

EVEN = {"hidden_size": 64, "intermediate_size": 96}
"""Whole groups: with padding, bits per weight say little."""


def context(work=None, **options):
    return Context(calibration=CalibrationText(windows(count=6)), work=work, **options)


def widths(module):
    return Counter(p.encoding.bits for p in module.parameters.values() if len(p.shape) == 2)


def test_a_budget_is_kept_and_used(make_checkpoint, tmp_path):
    module = load_checkpoint(make_checkpoint(**EVEN)[0])
    seen = []
    for bits in (3.7, 4.7, 5.7):
        result = apply(module, [QuantizeGuided(bits=bits, sweeps=1)], context(tmp_path))
        assert bits - 0.15 < result.bits_per_weight() <= bits
        for name, parameter in result.parameters.items():
            loaded = parameter.load()
            assert loaded.encoding == parameter.encoding
            assert loaded.decode().shape == module.parameters[name].shape
        seen.append(sum(bits * count for bits, count in widths(result).items()))
        assert len(widths(result)) > 1
    assert seen == sorted(seen)
    assert len(set(seen)) == 3


def test_one_width_makes_all_matrices_alike(make_checkpoint):
    module = load_checkpoint(make_checkpoint()[0])  # of 48 and 80 columns
    result = apply(module, [QuantizeGuided(bits=8, widths=(4,))], context())
    assert widths(result) == {4: 16}
    assert {str(p.encoding) for p in result.parameters.values() if len(p.shape) == 2} == {
        "levels16.i8.g32.super2.bf16",
        "levels16.i8.g32.super3.bf16",
    }


def test_it_is_deterministic_and_goes_on_where_it_stopped(make_checkpoint, tmp_path, monkeypatch):
    module = load_checkpoint(make_checkpoint(tie_word_embeddings=True, **EVEN)[0])
    method = QuantizeGuided(bits=5)
    whole = apply(module, [method], context())

    rounds = []
    really = guided.round_matrix

    def interrupted(*arguments, **options):
        rounds.append(arguments)
        if len(rounds) == 65:  # beyond the costs, which are 4 roundings for each of 15 matrices
            raise KeyboardInterrupt
        return really(*arguments, **options)

    work = tmp_path / "work"
    monkeypatch.setattr(guided, "round_matrix", interrupted)
    with pytest.raises(KeyboardInterrupt):
        apply(module, [method], context(work))
    (folder,) = work.iterdir()
    assert not list(folder.rglob("*.partial"))
    monkeypatch.undo()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert any(path.parent.name == "rounded" for path in before)
    result = apply(module, [method], context(work))
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing was done twice
    for name, parameter in whole.parameters.items():
        assert parameter.encoding == result.parameters[name].encoding
        assert torch.equal(parameter.values(), result.parameters[name].values())
    monkeypatch.setattr(guided, "round_matrix", None)  # all is there: nothing is rounded again
    apply(module, [method], context(work))


@pytest.mark.slow
def test_another_model_or_text_has_a_folder_of_its_own(make_checkpoint, tmp_path):
    folder, model = make_checkpoint(**EVEN)
    method = QuantizeGuided(bits=5, sweeps=0)
    apply(load_checkpoint(folder), [method], context(tmp_path))
    other_text = replace(context(tmp_path), calibration=CalibrationText(windows(count=4)))
    apply(load_checkpoint(folder), [method], other_text)
    with torch.no_grad():
        model.lm_head.weight[3, 5] += 1
    model.save_pretrained(folder)
    apply(load_checkpoint(folder), [method], context(tmp_path))
    assert len(list(tmp_path.iterdir())) == 1 + 3  # the checkpoint is there, too


def test_rotated_columns_decode_to_the_weights(make_checkpoint):
    module = load_checkpoint(make_checkpoint(**EVEN)[0])
    plain, rotated = (
        apply(module, [QuantizeGuided(bits=9, widths=(8,), rotate=rotate)], context()) for rotate in ((), ("down",))
    )
    name = "model.layers.0.mlp.down_proj.weight"
    assert rotated.parameters[name].encoding.transform.rotation == 32  # of 96 columns
    for result in (plain, rotated):
        torch.testing.assert_close(
            result.parameters[name].values(), module.parameters[name].values(), atol=0.01, rtol=0.01
        )


def test_targets_follow_the_drift_of_the_inputs(make_checkpoint, tmp_path):
    """Beside a plain reading: W + a·W·D·H⁻¹ is rounded in place of W, and the model is nearer to the float one."""
    from smc.reference import Batch, Hook, Reference, kl_divergence

    folder, model = make_checkpoint(**EVEN)
    module, text = load_checkpoint(folder), CalibrationText(windows(count=30))
    rounded = []
    really = guided.round_matrix

    def spy(target, *arguments):
        result = really(target, *arguments)
        rounded.append((target, result))
        return result

    method = QuantizeGuided(bits=3.8, widths=(3,), sequential=0.5, sweeps=1, rotate=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guided.GuidedWeights, "_costs", lambda self: {n: {"3": 0.0} for n in self._parameters})
        patch.setattr(guided, "round_matrix", spy)
        patch.setattr(guided, "coarse_products", nullcontext)  # the reading below is float32
        result = apply(module, [method], Context(calibration=text, work=tmp_path / "work"))
    down = "model.layers.0.mlp.down_proj.weight"
    exact = torch.cat([read_inputs(model, [w])[down] for w in text.gradient_windows])

    class Drifted(Hook):
        def reads(self, call, node, operands):
            if call.name == "layer_0" and "down_proj" in node.inputs:
                self.seen = operands[0].clone()
            return operands

    Reference(result).run(Batch.of(text.gradient_windows), hook := Drifted())
    drifted = hook.seen
    (state,) = (tmp_path / "work").iterdir()
    token_weights = guided.read_tensors(state / "guidance-1.safetensors")
    (key,) = (k for k in token_weights if k.startswith("weights.") and token_weights[f"moments.{k[8:]}"].shape[0] == 96)
    weight = token_weights[key].flatten()[:, None]
    moments = drifted.T @ (drifted * weight)
    moments += 0.1 * moments.diagonal().mean() * torch.eye(96)
    original = module.parameters[down].values()
    expected = original + 0.5 * original @ ((exact - drifted).T @ (drifted * weight)) @ torch.linalg.inv(moments)
    found = next(target for target, r in rounded if torch.equal(r.decode(), result.parameters[down].values()))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-3)
    assert not torch.allclose(found, original, atol=1e-3)

    plain = apply(module, [replace(method, sequential=0.0)], Context(calibration=text))
    logits = Reference(module).logits
    losses = [
        torch.cat([kl_divergence(logits(w), Reference(made).logits(w)) for w in text.windows]).mean().item()
        for made in (result, plain)
    ]
    assert losses[0] < losses[1]


def test_matrices_that_are_quantized_stay(make_checkpoint):
    module = load_checkpoint(make_checkpoint(**EVEN)[0])
    result = apply(module, ["quantize-rtn:bits=8,include=value", QuantizeGuided(bits=5)], context())
    assert {str(result.parameters[name].encoding) for name in result.parameters_of("value")} == {"int8.g32"}
    assert result.bits_per_weight() <= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1.9}, r"1.9 bits per weight are too few: with widths of 2, 3, 4, 5, 6, 8 bits give at least \d\.\d+"),
        ({"bits": 5, "widths": (6, 8)}, r"with widths of 6, 8 bits give at least"),
    ],
)
def test_a_budget_below_the_least(make_checkpoint, options, message):
    module = load_checkpoint(make_checkpoint(**EVEN)[0])
    with pytest.raises(InputError, match=message):
        apply(module, [QuantizeGuided(**options)], context())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantize-guided:bits=0.5", "1 to 32 bits per weight, not 0.5"),
        ("quantize-guided:bits=nan", "1 to 32 bits per weight, not nan"),
        ("quantize-guided:widths=7", "widths of quantize-guided must be of 2, 3, 4, 5, 6, 8, not 7"),
        ("quantize-guided:damping=0", "a damping above 0 and at most 1"),
        ("quantize-guided:block=24", "block of quantize-guided must be a power of two, not 24"),
        ("quantize-guided:bits=four", "option bits of pass quantize-guided takes a number, not 'four'"),
    ],
)
def test_options_that_make_no_sense(text, message):
    with pytest.raises(InputError, match=message):
        smc.passes.parse_pass(text)
