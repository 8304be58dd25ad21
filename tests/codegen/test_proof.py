"""An artifact proves itself: its program's logits are compared with the reference's before the file gets its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import smc
from smc.cli import main
from smc.codegen import WrongProgramError, weights
from smc.codegen.packing import pack_matrix
from smc.ir import EncodedTensor
from smc.passes import FUSIONS
from smc.passes import apply as apply_passes
from smc.reference import ExactReference, passing_weights
from smc.reference.passing_weights import PassingWeights
from smc.runtime.artifact import read_manifest
from smc.runtime.manifest import ProofFacts

MakeCheckpoint = Callable[..., tuple[Path, Any]]


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "vocab_size": 5000}], ids=["untied", "tied"])
def test_logits_while_weights_pass_are_those_of_the_exact_reference(
    make_checkpoint: MakeCheckpoint, changes: dict[str, Any]
) -> None:
    folder, _ = make_checkpoint("Qwen2", **changes)
    module = apply_passes(smc.apply(smc.load_checkpoint(folder), ["quantize-rtn:bits=4"]), FUSIONS)
    passing = PassingWeights(module)
    for name, parameter in module.parameters.items():
        if len(parameter.shape) > 1:
            passing.take(name, parameter.load())
            passing.advance()
    expected = ExactReference(module, "f16").logits(torch.tensor(passing.tokens)).numpy()
    assert len(set(passing.rows)) == min(changes.get("vocab_size", 96), 2048)
    assert {0, expected.shape[1] - 1} <= {*passing.rows.tolist()}
    assert passing.exact and passing.rounds
    np.testing.assert_array_equal(passing.logits(), expected[:, passing.rows])


@pytest.mark.parametrize("passes", [["quantize-rtn:bits=8"], []], ids=["int8", "f32"])
def test_the_manifest_says_that_bits_are_equal(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, passes: list[str]
) -> None:
    folder, _ = make_checkpoint("Gemma2")
    module = smc.apply(smc.load_checkpoint(folder), passes)
    report = smc.compile(module, out=tmp_path / "proved.smc", verify=True)
    proof = read_manifest(tmp_path / "proved.smc").proof
    assert proof == ProofFacts(verified=True, tokens=6, difference=0.0)  # and nothing of where it was run
    assert report.proof is not None and report.proof.on_any_machine() == proof
    with smc.load(tmp_path / "proved.smc") as model:
        assert model.level == report.proof.level
    smc.compile(module, out=tmp_path / "unproved.smc")
    assert read_manifest(tmp_path / "unproved.smc").proof is None


def test_large_float_models_are_close(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float products column by column would take too long: the reference sums them in another order.

    The program rounds keys and values to f16, the reference does not: each is off by at most 2⁻¹¹.
    """
    monkeypatch.setattr(passing_weights, "MOST_COLUMNS", 0)
    folder, _ = make_checkpoint(hidden_size=256, intermediate_size=700)
    proof = smc.compile(smc.load_checkpoint(folder), out=tmp_path / "f32.smc", verify=True).proof
    assert proof is not None and proof.verified and proof.difference is not None
    assert 0 < proof.difference < 2**-11
    assert read_manifest(tmp_path / "f32.smc").proof == ProofFacts(verified=True, tokens=6)


@pytest.mark.parametrize("passes", [["quantize-rtn:bits=4"], []], ids=["int4", "f32"])
def test_a_wrong_program_gets_no_name(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[str]
) -> None:
    """One matrix is packed with the codes of other rows, as a fault in the packer might."""

    def pack_wrongly(tensor: EncodedTensor, family: str) -> np.ndarray:
        packed = pack_matrix(tensor, family)
        return np.roll(packed, 64) if tensor.shape == (48, 80) else packed

    monkeypatch.setattr(weights, "pack_matrix", pack_wrongly)
    folder, _ = make_checkpoint()
    module = smc.apply(smc.load_checkpoint(folder), passes)
    with pytest.raises(WrongProgramError, match=r"than the reference|where the reference does not"):
        smc.compile(module, out=tmp_path / "wrong.smc", verify=True)
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_a_program_that_finds_no_finite_numbers(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key beyond f16: also for the reference, then the file says so; for the program alone, then it is wrong."""
    folder, model = make_checkpoint()
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight *= 1e6
    model.save_pretrained(folder)
    module = smc.load_checkpoint(folder)
    proof = smc.compile(module, out=tmp_path / "beyond.smc", verify=True).proof
    assert proof is not None and not proof.verified and proof.reason is not None
    assert "kv" in proof.reason.lower()


def test_another_machine_without_an_emulator(
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    folder, _ = make_checkpoint()
    out = str(tmp_path / "arm64.smc")
    assert main.run(["compile", str(folder), "--quant", "f32", "--target", "arm64", "-o", out]) == 0
    sentence = "no: the program is for another machine, and no emulator is installed"
    assert f"verified   {sentence}" in capsys.readouterr().out
    assert main.run(["inspect", out]) == 0
    assert sentence in capsys.readouterr().out


@pytest.mark.arm64
def test_another_machine_under_an_emulator(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    if shutil.which("qemu-aarch64-static") is None:
        pytest.skip("qemu-aarch64-static is not installed (Debian: qemu-user-static)")
    folder, _ = make_checkpoint()
    module = smc.apply(smc.load_checkpoint(folder), ["quantize-rtn:bits=4"])
    proof = smc.compile(module, "arm64", tmp_path / "arm64.smc", verify=True).proof
    assert proof is not None and proof.verified and proof.difference == 0
    assert (proof.level, proof.emulator) == ("i8mm", "qemu-aarch64-static")


def test_no_proof_is_wanted(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = make_checkpoint()
    out = str(tmp_path / "out.smc")
    assert main.run(["compile", str(folder), "--quant", "f32", "--no-verify", "--json", "-q", "-o", out]) == 0
    assert json.loads(capsys.readouterr().out)["proof"] is None
    assert main.run(["compile", str(folder), "--quant", "f32", "--json", "-q", "-o", out]) == 0
    assert json.loads(capsys.readouterr().out)["proof"]["verified"] is True
