"""The page of `--report`: what every pass of a chain made of a model, measured once, and again only what is new."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import smc
from smc import steps as measuring
from smc.cli.main import run
from smc.frontend import load_checkpoint
from smc.reference import Reference
from tests.pages.test_model_page import Page
from tests.passes.test_reshape import byte_tokenizer

TEXT = "".join(f"The number {i} follows the number {i - 1}, and {i * i} is its square.\n" for i in range(1, 300))
ROOT = Path(__file__).parents[2]
CHAIN = [
    {"convert": {"dtype": "f32"}},
    {"drop-layers": {"layers": ["1-2"]}},
    {"distill": {"data": ["text.txt"], "steps": 6, "window": 32, "batch": 2, "precision": "f32", "save": 2}},
    {"quantize-rtn": {"bits": 8, "include": ["value"]}},
    {"quantize-rtn": {"bits": 4}},
]
NAMES = ["convert", "drop-layers", "distill", "quantize-rtn", "quantize-rtn"]


@pytest.fixture
def folder(make_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("SMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    path, _ = make_checkpoint(vocab_size=256, num_hidden_layers=4)
    byte_tokenizer().save(str(path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "other.txt").write_text(TEXT[::2])
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump({"passes": CHAIN}))
    return path


def rows(page):
    """The table's cells by rows, the head left out."""
    found = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    return [row for row in found if row]


def perplexity(module):
    """All tokens of the text's whole windows but the first of each, by torch's own cross-entropy."""
    tokens = torch.tensor(byte_tokenizer().encode(TEXT[::2]).ids)
    windows = tokens[: len(tokens) // 256 * 256].view(-1, 256)[: measuring.WINDOWS]
    losses = [torch.nn.functional.cross_entropy(Reference(module).logits(w)[:-1], w[1:]) for w in windows]
    return torch.stack(losses).mean().exp().item()


def test_every_step_has_its_size_and_quality(folder, tmp_path, capsys, monkeypatch):
    command = ["optimize", str(folder), "--recipe", "chain.yaml", "--text", "other.txt", "--report", "page.html", "-o"]
    assert run([*command, "out"]) == 0
    said = capsys.readouterr().err
    assert "wrote page.html" in said and re.search(r"^drop-layers +2 ", said, re.MULTILINE)
    text = (tmp_path / "page.html").read_text()
    page, table = Page(text), rows(text)
    assert not [value for name, value in page.attributes if name in ("src", "href")] and "@import" not in text
    assert [row[1] for row in table] == [folder.name, *NAMES]
    assert [row[3] for row in table] == ["4", "4", "2", "2", "2", "2"]
    assert "dropped 1-2 of 4 layers" in table[2][2] and table[3][2].startswith("6 steps, ")
    module = load_checkpoint(folder)
    pruned = smc.apply(module, ["drop-layers:layers=1-2"])
    for row, made in ((table[0], module), (table[2], pruned)):
        assert float(row[7]) == pytest.approx(perplexity(made), rel=1e-3)
        assert row[5] == f"{made.stored_bits() / 8e6:,.2f}"
    assert [float(row[8]) for row in table[:2]] == [0, 0] and table[1][9] == "100.0 %"
    assert float(table[3][8]) < float(table[2][8])  # what was healed predicts more as before
    assert float(table[5][6]) < float(table[4][6]) < 32
    assert text.count("<circle") == 6 and text.count("<details>") == 1 and "loss</text>" in text
    # again: what was measured is read, and the page is the same
    monkeypatch.setattr(measuring, "score", None)
    assert run([*command, "again"]) == 0
    assert (tmp_path / "page.html").read_text() == text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_shows_it(tmp_path):
    from smc.pages.steps import steps_page
    from smc.reference.evaluation import Evaluation
    from smc.steps import Step

    steps = [
        Step(f"pass <{n}>", "did & said", 4, 10**6, 10**6 // (n + 1), 8.0, Evaluation(90, 20.0 + n, n / 9, 0.5))
        for n in range(3)
    ]
    steps.append(Step("compile", "for arm64", 4, 10**6, 10**5, 0.8, None))
    path = tmp_path / "page.html"
    path.write_text(steps_page("a model", steps, "other.txt"))
    show = "document.title = [...document.querySelectorAll('circle, td')].filter(e => e.getClientRects().length).length"
    path.write_text(path.read_text().replace("</body>", f"<script>{show}</script></body>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=60)
    assert "<title>43</title>" in done.stdout, done.stderr[-2000:]  # 4 rows of 10 cells, and 3 points


@pytest.mark.slow
def test_an_artifact_that_runs_here_is_measured(folder, tmp_path):
    command = ["compile", str(folder), "-p", "quantize-rtn:bits=4", "--text", "other.txt", "--report", "page.html"]
    assert run([*command, "-o", "small.smc"]) == 0
    *_, quantized, compiled = rows((tmp_path / "page.html").read_text())
    assert compiled[1] == "compile" and compiled[5] == f"{(tmp_path / 'small.smc').stat().st_size / 1e6:,.2f}"
    assert float(compiled[7]) == pytest.approx(float(quantized[7]), rel=1e-2)
    assert "verified: " in compiled[2]


@pytest.mark.slow
def test_a_chain_goes_on_after_a_kill_at_any_stage(folder, tmp_path):
    """The artifact has the bytes of an uninterrupted run, wherever the process was killed."""
    chain = [sys.executable, "-m", "smc", "compile", str(folder), "--recipe", "chain.yaml", "--target", "arm64"]
    chain += ["--text", "other.txt", "--report", "page.html", "-v", "-o", "small.smc"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}

    def start(cache):
        return subprocess.Popen(
            chain, env={**environment, "SMC_CACHE": cache}, cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )

    whole = start(str(tmp_path / "whole"))
    said_whole = whole.communicate()[1]
    assert whole.returncode == 0, said_whole
    expected, page = (tmp_path / "small.smc").read_bytes(), (tmp_path / "page.html").read_text()
    assert "not run here" in page
    for path in (tmp_path / "small.smc", tmp_path / "page.html"):
        path.unlink()
    # killed after a line of every stage, again and again, in one cache
    for line in ("convert: ", "drop-layers: ", "distill: step", "quantize-rtn: ", "run passes: ", "target: "):
        process = start(str(tmp_path / "cut"))
        assert process.stderr is not None
        for said in process.stderr:
            if said.startswith(line):
                break
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL, line
        assert not (tmp_path / "small.smc").exists() and not (tmp_path / "page.html").exists()
    last = start(str(tmp_path / "cut"))
    said_last = last.communicate()[1]
    assert last.returncode == 0, said_last
    assert (tmp_path / "small.smc").read_bytes() == expected
    plain = re.compile(r"in \d+:\d\d min|<polyline.*?/>")
    assert plain.sub("", (tmp_path / "page.html").read_text()) == plain.sub("", page)
