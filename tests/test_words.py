"""The words: pages that can be read in one sitting, the glossary's words, and none of the house's old dialect."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HAND_WRITTEN = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES = [ROOT / "README.md", *HAND_WRITTEN]
SOURCES = [path for folder in ("smc", "benchmarks", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
LONG_PAGES = {"numerics.md"}
MOST_LINES = 150

DIALECT = re.compile(
    r"""\b(?:whoever|nobody|asked\ for|asks\ for|in\ turns|goals?|anew
    |meets\ (?:float|int8)|a\ group\ wants|the\ others\ about|satisfies\ what|had\ less\ luck|for\ want\ of)\b""",
    re.VERBOSE | re.IGNORECASE,
)
"""Words that readers stumbled over."""


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of a Python file: docstrings, messages, help; for patterns and code see the files themselves."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=lambda page: page.name)
def test_pages_are_short(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_LINES or page.name in LONG_PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_have_no_dialect(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [f"line {text.count(chr(10), 0, found.start()) + 1}: {found[0]}" for found in DIALECT.finditer(text)] == []


def test_texts_of_the_code_have_no_dialect() -> None:
    """Docstrings, help and messages; those of tests are for us alone."""
    assert [
        f"{path.relative_to(ROOT)}:{line}: {found[0]}"
        for path in SOURCES
        if "build" not in path.parts
        for line, text in strings(path)
        for found in DIALECT.finditer(text)
    ] == []


def test_the_glossary_has_each_word_once() -> None:
    rows = re.findall(r"^\| \*\*(.+?)\*\*", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    words = [word for row in rows for word in row.split(", ")]
    assert len(words) > 40 and sorted(words, key=str.lower) == sorted({*words}, key=str.lower)
    assert [row.split(", ")[0].lower() for row in rows] == sorted(row.split(", ")[0].lower() for row in rows)


def test_the_readme_answers_a_readers_four_questions() -> None:
    """What it does better, how to compile for a Raspberry Pi, how to add a quantization method, what it can't do."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for answer in (
        "| decode 64, tokens/s |",
        "--target raspberry-pi-4 --standalone",
        "## A quantization method of your own",
        "**Not there yet.**",
        "](docs/terminal.svg)",
    ):
        assert answer in readme
