"""The page of `smc inspect --html`: complete, well-formed, and nothing but itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import smc
from smc.cli import main
from smc.frontend import load_checkpoint
from smc.ir import Encoding, integer
from smc.pages.graph import graph_svg
from smc.pages.model import stored_bits

Make = Callable[..., tuple[Path, Any]]
VOID = {"meta"}


class Page(HTMLParser):
    """Checks that tags are closed in their order, and keeps what they say."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def checkpoint(make_checkpoint: Make) -> Path:
    return make_checkpoint(tie_word_embeddings=True)[0]


def test_a_checkpoint(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert main.run(["inspect", str(checkpoint), "--html", str(out)]) == 0
    assert capsys.readouterr().out == ""
    text = out.read_text(encoding="utf-8")
    page, module = Page(text), load_checkpoint(checkpoint)
    assert not [value for name, value in page.attributes if name in ("src", "href")] and "@import" not in text
    titles = [value or "" for name, value in page.attributes if name == "title"]
    for name, parameter in module.parameters.items():
        if len(parameter.shape) > 1 and ".layers." in name:
            shape = " × ".join(map(str, parameter.shape))
            assert sum(title.startswith(f"{name}: {shape}, f32, ") for title in titles) == 1
    assert "model.embed_tokens.weight" in page.words
    total = sum(parameter.encoding.stored_bits(parameter.shape) for parameter in module.parameters.values())
    assert f"Decoding one token reads {total / 8e6:,.1f} MB" in text


def test_every_value_has_a_box_and_every_use_an_arrow(make_checkpoint: Make) -> None:
    for kind in ("Llama", "Gemma2"):
        for _, function in load_checkpoint(make_checkpoint(kind)[0]).calls():
            svg = graph_svg(function)
            shown = [n for n in function.nodes() if n.op != "parameter" and (n.op != "input" or function.users(n.name))]
            names = {node.name for node in shown}
            assert svg.count("<rect") == len(shown)
            assert svg.count("<path") == sum(len(names & set(node.inputs)) for node in shown)
            boxes = re.findall(r'<rect x="(\d+)" y="(\d+)"', svg)
            assert len(set(boxes)) == len(boxes)


def test_an_artifact(checkpoint: Path, tmp_path: Path) -> None:
    artifact, out = tmp_path / "tiny.smc", tmp_path / "page.html"
    passes = ["quantize-rtn:bits=4,group=16,include=*.mlp.*", "quantize-rtn:bits=8"]
    module = smc.apply(load_checkpoint(checkpoint), passes)
    smc.compile(module, target="native", out=artifact)
    assert main.run(["inspect", str(artifact), "--html", str(out)]) == 0
    page = Page(out.read_text(encoding="utf-8"))
    titles = [value or "" for name, value in page.attributes if name == "title"]
    assert sum("int4.g16" in title for title in titles) == 6 and sum("int8.g32" in title for title in titles) == 8
    assert "Kernels" in page.words


@pytest.mark.parametrize(
    "encoding",
    [
        integer(3, group=16),
        integer(5, symmetric=False),
        Encoding.of("base3", group="row"),
        Encoding.of(bits=4, minimum=True),
        Encoding.of(bits=4, codebook=[-3, -1, 0, 2, 9], super_group=8),
        Encoding.of(bits=2, codebook=[-0.5, 0.25, 1.5], group=64),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(7, 96), (3, 130)])
def test_bits_by_the_name_of_an_encoding(encoding: Encoding, shape: tuple[int, int]) -> None:
    """Of a codebook with fewer entries than its codes could tell apart as well."""
    codes = shape[0] * -(-shape[1] // encoding.group_size(shape[1])) * encoding.group_size(shape[1])
    spare = codes * (encoding.bits - (len(encoding.entries) - 1).bit_length()) if encoding.has_codebook else 0
    assert stored_bits(str(encoding), shape) == encoding.stored_bits(shape) - spare


@pytest.mark.parametrize(
    ("arguments", "part"),
    [(["--ir", "--html", "a.html"], "leave out --ir"), (["--html", "no/a.html"], "a folder that exists")],
)
def test_bad_input(
    checkpoint: Path,
    arguments: list[str],
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(["inspect", str(checkpoint), *arguments]) == 2
    assert part in capsys.readouterr().err


def test_other_files_are_kept(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").write_text("mine")
    assert main.run(["inspect", str(checkpoint), "--html", str(tmp_path / "notes")]) == 2
    assert "something else than the page" in capsys.readouterr().err and (tmp_path / "notes").read_text() == "mine"
