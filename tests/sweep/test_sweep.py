"""`smc sweep`: results that other commands agree with, goes on where it was ended, one page with all of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import smc
from smc.cli import main
from smc.frontend import load_checkpoint
from smc.pages.sweep import pareto, sweep_page
from smc.sweep import Cell, Setting
from smc.sweep.cell import errors
from tests.pages.test_model_page import Page
from tests.runtime.conftest import byte_tokenizer

Make = Callable[..., tuple[Path, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture
def checkpoint(make_checkpoint: Make) -> Path:
    model, _ = make_checkpoint(vocab_size=259)
    byte_tokenizer().save(str(model / "tokenizer.json"))
    return model


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("A cat, a dog and a bird went for a walk. " * 8)
    return path


def sweep(checkpoint: Path, text: Path, out: Path, *arguments: str) -> list[str]:
    return [
        "sweep",
        str(checkpoint),
        "--text",
        str(text),
        "--window",
        "32",
        "--windows",
        "3",
        "-o",
        str(out),
        *arguments,
    ]


def test_results(checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["--quant", "int8", "-p", "quantize-rtn:bits=3,group=16", "--quant", "f32", "--json"]
    assert main.run(sweep(checkpoint, text, out, *arguments)) == 0
    results = json.loads(capsys.readouterr().out)
    assert [result["setting"] for result in results] == ["int8", "f32", "pass quantize-rtn:bits=3,group=16"]
    int8, f32, int3 = results
    assert f32["quality"]["kl_divergence"] < 1e-6 < int8["quality"]["kl_divergence"] < int3["quality"]["kl_divergence"]
    assert f32["bits_per_weight"] == 32 and set(f32["errors"].values()) == {0.0}
    assert all(result["speed"]["decode_tokens_per_s"] > 0 for result in results)
    judged = ["eval", str(checkpoint), "-p", "quantize-rtn:bits=3,group=16", "--against", str(checkpoint), "--json"]
    assert main.run([*judged, "--text", str(text), "--window", "32", "--windows", "3"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert int3["quality"]["kl_divergence"] == pytest.approx(figures["kl_divergence"]["mean"], rel=1e-2)
    assert int3["bits_per_weight"] == pytest.approx(figures["bits_per_weight"])

    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert page.words.count("f32") == 3  # in the table and in both plots
    assert not [value for name, value in page.attributes if name in ("src", "href")]

    # Started again: what a killed process left half-written is made anew, the others are read.
    times = {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    half, *whole = times
    half.write_text('{"half": ')
    assert main.run(sweep(checkpoint, text, out, *arguments[:-1], "--no-speed")) == 0
    assert "int8" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in whole} == {path: times[path] for path in whole}
    assert json.loads(half.read_text())["quality"]


def test_errors_are_those_of_the_values(checkpoint: Path) -> None:
    module = load_checkpoint(checkpoint)
    changed = smc.apply(module, ["quantize-rtn:bits=2,group=16,include=down_proj"])
    found = errors(module, changed)
    for name, error in found.items():
        values, right = changed.parameters[name].values(), module.parameters[name].values()
        assert error == pytest.approx(((values - right).square().sum() / right.square().sum()).sqrt().item(), rel=1e-5)
        assert (error > 0.1) == ("down_proj" in name)
    assert len(found) == 16


def test_what_fails_is_said_and_the_others_go_on(
    checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quant", "int8", "-p", "quantize-rtn:bits=4,include=q_prj", "--no-speed"]
    assert main.run(sweep(checkpoint, text, tmp_path / "out", *arguments)) == 0
    assert "matches no matrix of the model" in capsys.readouterr().out
    assert "matches no matrix" in (tmp_path / "out" / "report.html").read_text()
    assert main.run(sweep(checkpoint, text, tmp_path / "out", *arguments[2:])) == 2
    assert "no setting could be evaluated" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "there is no setting"),
        (["--quant", "int9"], "there is no recipe 'int9'"),
        (["-p", "quantise-rtn"], "quantize-rtn"),
        (["--quant", "int8", "--text", "{missing}"], "there is no text file"),
        (["--quant", "int8", "-o", "{text}"], "can't write to the folder"),
    ],
)
def test_bad_input(
    checkpoint: Path, text: Path, tmp_path: Path, arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(missing=tmp_path / "missing", text=text) for word in arguments]
    assert main.run(sweep(checkpoint, text, tmp_path / "out", *words)) == 2
    assert part in capsys.readouterr().err


def test_a_key_changes_with_what_it_depends_on(checkpoint: Path, text: Path) -> None:
    def key(**changes: Any) -> str:
        facts = {"model": str(checkpoint), "reference": str(checkpoint), "text": str(text), "windows": 3, "window": 32}
        return Cell(**{**facts, "setting": Setting("quant", "int8"), **changes}).key

    keys = {key(), key(windows=4), key(setting=Setting("quant", "int4")), key(calib=str(text))}
    text.write_text("Another text")
    assert len({*keys, key()}) == 5


@pytest.mark.slow
def test_on_a_dask_cluster(checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        arguments = ["--quant", "int8", "--scheduler", cluster.scheduler_address, "--json"]
        assert main.run(sweep(checkpoint, text, tmp_path / "out", *arguments)) == 0
    [result] = json.loads(capsys.readouterr().out)
    assert result["quality"]["kl_divergence"] < 0.01 and result["speed"]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_pareto(points: list[tuple[float, float]]) -> None:
    best = {points[index] for index in pareto(points)}
    for x, y in points:
        beaten = any((a <= x and b <= y) and (a, b) != (x, y) for a, b in points)
        assert ((x, y) in best) == (not beaten)


def test_a_page_of_one_result() -> None:
    quality = {"perplexity": 1.0, "kl_divergence": 0.0, "same_top": 1.0, "kl_error": None}
    result = {"model": "a<b", "setting": "f32", "bits_per_weight": 32.0, "bytes": 1, "quality": quality}
    Page(sweep_page([{**result, "errors": {}, "encodings": {}}]))
