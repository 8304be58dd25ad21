"""Guidance beside what it says in formulas, with inputs and gradients that autograd finds in a transformers model."""

from __future__ import annotations

import pytest
import torch

from smc.frontend import load_checkpoint
from smc.passes.guidance import Guidance
from smc.reference import CalibrationText
from tests.passes.test_calibration import read_inputs, windows
from tests.reference.test_gradients import all_gradients

LAYER = "model.layers.1."


def weights_of(gradients, firsts):
    """Tokens' weights [windows, tokens] from lists of gradients, one list per reader of the same inputs."""
    readers = [torch.stack([g.square().sum(1) for g in reader]) for reader in gradients]
    weights = torch.stack([own / own.mean() for own in readers]).mean(0)
    first = weights[:, 0].mean().clamp(max=40)
    weights = weights.clamp(max=4)
    weights[:, 0] = first
    return weights / weights[:, 1:].mean()


@pytest.fixture
def gathered(make_checkpoint, tmp_path):
    folder, model = make_checkpoint()
    module, text = load_checkpoint(folder), CalibrationText(windows(count=6))
    names = [p.name for p in module.parameters.values() if len(p.shape) == 2]
    work = tmp_path / "work"
    work.mkdir()
    guidance = Guidance(module, names, text, work, seed=2)
    guidance.gather(lambda fraction: None)
    return guidance, model, text, work


def test_moments_and_rows(gathered):
    guidance, model, text, _ = gathered
    gradients = [all_gradients(model, window, 2 + index) for index, window in enumerate(text.gradient_windows)]
    guided = [read_inputs(model, [window]) for window in text.gradient_windows]
    others = [read_inputs(model, [window]) for index, window in enumerate(text.windows) if index % 3]
    q, k, v = (f"{LAYER}self_attn.{name}_proj.weight" for name in "qkv")
    for names in ((q, k, v), (f"{LAYER}mlp.down_proj.weight",), ("lm_head.weight",)):
        weights = weights_of([[g[name] for g in gradients] for name in names], True)
        total = 0
        for x, weight in zip(guided, weights, strict=True):
            total = total + (x[names[0]] * weight[:, None]).T @ x[names[0]]
        for x in others:
            weight = torch.ones(50)
            weight[0] = weights[0, 0]
            total = total + (x[names[0]] * weight[:, None]).T @ x[names[0]]
        for name in names:
            found = guidance.of(name)
            torch.testing.assert_close(found.moments, total / 300, atol=1e-5, rtol=1e-3)
            rows = torch.cat([g[name] for g in gradients]).square().mean(0)
            torch.testing.assert_close(found.rows, rows, atol=1e-7, rtol=1e-3)


def test_an_embedding_of_its_own_counts_its_rows(gathered):
    guidance, _, text, _ = gathered
    found = guidance.of("model.embed_tokens.weight")
    counts = torch.bincount(torch.cat(text.gradient_windows), minlength=96) / 100
    torch.testing.assert_close(found.rows, counts)
    assert found.moments.shape == (48, 48)
    assert (found.moments.diagonal() > 0).all()


def test_what_is_there_is_not_gathered_again(gathered, monkeypatch):
    guidance, _, text, work = gathered
    assert sorted(path.name for path in work.iterdir() if path.suffix == ".safetensors") == [
        f"guidance-{index}.safetensors" for index in range(4)
    ]
    monkeypatch.setattr(text, "gradient_runner", None)
    guidance.gather(lambda fraction: None)


def test_predicted_damage_is_near_what_is_measured(make_checkpoint, tmp_path):
    """A small error of a matrix costs about the KL divergence that the guidance predicts."""
    from smc.reference import Reference, kl_divergence

    folder, _ = make_checkpoint()
    module, text = load_checkpoint(folder), CalibrationText(windows(count=30))
    name = f"{LAYER}mlp.up_proj.weight"
    guidance = Guidance(module, [name], text, tmp_path)
    guidance.gather(lambda fraction: None)
    found, weights = guidance.of(name), module.parameters[name].values()
    error = 0.01 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(1))
    predicted = 0.5 * (found.rows * ((error @ found.moments) * error).sum(1)).sum().item()
    exact, changed = Reference(module), Reference(module)
    changed._weights[name] = type(exact._weight(name))(weights + error, module.parameters[name].encoding)
    measured = torch.cat([kl_divergence(exact.logits(w), changed.logits(w)) for w in text.windows]).mean().item()
    assert predicted == pytest.approx(measured, rel=0.35)
