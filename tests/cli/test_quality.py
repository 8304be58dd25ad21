"""What quantizing cost: measured by `smc compile`, kept in the artifact, shown by those that read it."""

from __future__ import annotations

import json
import math

import pytest
import torch

import smc
from benchmarks.models import glassllm
from smc.cli import quality
from smc.cli.main import run
from smc.errors import InputError
from smc.runtime.artifact import read_manifest
from smc.runtime.manifest import Manifest
from tests.runtime.conftest import manifest_for, write_artifact

TEXT = "In the year {} there was peace in the land, and the Queen was never beheading anybody that she had met. "
HIDDEN = "model.layers.{}.mlp.down_proj.weight"
QUALITY = {
    "text": "prose.txt",
    "windows": 6,
    "window": 512,
    "kl_divergence": 0.04321,
    "kl_error": 0.002,
    "perplexity": 18.9,
    "before": 18.18,
    "same_top": 0.894,
    "matrices": {
        HIDDEN.format(0): {"bits": 4, "error": 0.081, "costs": {"3": 0.004, "4": 0.001, "5": 0.0002}},
        HIDDEN.format(1): {"bits": 5, "error": 0.041, "costs": {"3": 0.02, "4": 0.005, "5": 0.001}},
    },
}


@pytest.fixture
def folder(tmp_path):
    glassllm(tmp_path / "glassllm")
    return tmp_path / "glassllm"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text("".join(TEXT.format(year) for year in range(1800, 2000)), encoding="utf-8")
    return path


def test_the_summary_of_a_compiled_model(folder, text, tmp_path, capsys):
    """Beside transformers, on the windows that calibration does not see."""
    from transformers import AutoModelForCausalLM

    from smc.reference import CalibrationText

    out = tmp_path / "small.smc"
    recipe = "quantize-rtn:bits=4,activation=none"
    arguments = ["compile", str(folder), "-p", recipe, "--measure", "--calib", str(text), "-o", str(out), "--json"]
    assert run(arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    found = read_manifest(out).quality
    assert found is not None
    assert summary["quality"]["kl_divergence"] == found.kl_divergence
    module = smc.load_checkpoint(folder)
    seen = CalibrationText.read(text, module.facts)
    assert found.windows == len(seen.held_out) >= 2
    assert not {tuple(w.tolist()) for w in seen.held_out} & {tuple(w.tolist()) for w in seen.windows}
    small = smc.apply(module, [recipe])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    state = own.state_dict()
    for name, parameter in small.parameters.items():
        state[name].copy_(parameter.values())
    tokens, middle = torch.stack(seen.held_out), found.window // 2
    with torch.no_grad():
        right, wrong = (torch.log_softmax(m(tokens).logits[:, middle:-1], -1) for m in (model, own))
    divergences = (right.exp() * (right - wrong)).sum(-1)
    assert found.kl_divergence == pytest.approx(divergences.mean().item(), rel=1e-2)
    losses = right.gather(-1, tokens[:, middle + 1 :, None])
    assert found.before == pytest.approx(math.exp(-losses.mean().item()), rel=1e-3)
    assert found.same_top == pytest.approx((right.argmax(-1) == wrong.argmax(-1)).float().mean().item(), abs=2e-3)
    name = HIDDEN.format(0)
    plain = module.parameters[name].values()
    expected = ((small.parameters[name].values() - plain).norm() / plain.norm()).item()
    assert found.matrices[name].error == pytest.approx(expected, rel=1e-3)
    assert found.matrices[name].bits == 4


def test_a_model_that_lost_much_is_told(folder, text, tmp_path, capsys):
    out = tmp_path / "ternary.smc"
    ending = ["--measure", "-o", str(out), "--calib"]
    assert run(["compile", str(folder), "-p", "quantize-ternary", *ending, str(text)]) == 0
    assert "warning: this model lost much: its KL divergence" in capsys.readouterr().err
    short = tmp_path / "short.txt"
    short.write_text(TEXT * 40)
    assert run(["compile", str(folder), "--quant", "int8", *ending, str(short)]) == 2
    assert "is too short to judge by: it has no window to hold out" in capsys.readouterr().err


def test_rotated_matrices_are_compared_in_their_basis(folder):
    module = smc.load_checkpoint(folder)
    turned = smc.apply(module, ["rotate:values=no", "quantize-rtn:bits=4"])
    errors = quality._matrices(turned)
    assert set(errors) == {name for name, p in module.parameters.items() if len(p.shape) == 2}
    assert all(0.02 < found.error < 0.2 for found in errors.values())


def test_manifests_carry_it():
    manifest = Manifest.parse(json.dumps(manifest_for(b"", quality=QUALITY)), "file")
    assert Manifest.parse(manifest.text(), "file") == manifest
    assert manifest.to_json()["quality"] == QUALITY
    first, second = manifest.quality.matrices.values()
    assert [first.cost(further) for further in (-1, 0, 1)] == [0.004, 0.001, 0.0002]
    assert (second.cost(-1), second.cost(1)) == (0.005, None)
    for broken in ({**QUALITY, "windows": "6"}, {**QUALITY, "same_top": 2}, {**QUALITY, "matrices": {"a": {}}}):
        with pytest.raises(InputError, match="quality"):
            Manifest.parse(json.dumps(manifest_for(b"", quality=broken)), "file")


def test_inspect_shows_what_was_chosen_and_why(tmp_path, program, capsys):
    names = QUALITY["matrices"]
    facts = {"encodings": dict.fromkeys(names, "int4.g32"), "shapes": {name: [64, 64] for name in names}}
    manifest = json.dumps(manifest_for(program, quality=QUALITY, **facts))
    members = {"weights": bytes(64), "manifest.json": manifest, "program.so": program}
    path = write_artifact(tmp_path / "model.smc", members)
    assert run(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (said,) = (line for line in lines if line.startswith("quality"))
    assert "KL divergence 0.0432 ± 0.002, perplexity 18.90 from 18.18, 89.4 % the same likeliest token" in said
    (row,) = (line.split() for line in lines if line.startswith("down_proj"))
    assert row == ["down_proj", "4,", "5", "0.061", "0.002", "0.009"]
    page = tmp_path / "page.html"
    assert run(["inspect", str(path), "--html", str(page)]) == 0
    shown = page.read_text(encoding="utf-8")
    assert f"{HIDDEN.format(1)}: 5 bits, error 0.0410. Expected loss: 3 bits 0.02; 4 bits 0.005; 5 bits 0.001" in shown
    assert "What quantizing cost" in shown
