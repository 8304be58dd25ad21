"""Make the calibration text that comes with smc from packages with free licences: prose, code, chat, other languages.

    python -m benchmarks.calibration_text          writes smc/reference/texts/calibration.txt

Parts of about 2,000 characters in an order that mixes the kinds: Wikipedia articles that the evaluation does not use
(benchmarks/text.py), files of CPython's library, the messages of Django in other languages, and the dialogues in
smc/reference/texts/chat.txt, which were written for it. Sources and licences are in smc/reference/texts/README.md.
"""

from __future__ import annotations

import os
import random
import re
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from benchmarks import text
from benchmarks.packages import DOWNLOADS, PackagedFile, fetch

TEXTS = Path(__file__).parents[1] / "smc" / "reference" / "texts"
PIECE = 2000
"""Characters of a part: about a window of tokens."""

PIECES = {"prose": 66, "code": 30, "chat": 5, "languages": 11}
"""Most parts of each kind."""

MODULES = (
    *("heapq", "textwrap", "difflib", "statistics", "dataclasses", "csv", "json/decoder", "http/client", "fractions"),
    *("unittest/case", "queue", "shutil", "sched", "ipaddress", "calendar"),
)

DJANGO = "django==5.2.8"
LANGUAGES = {
    "de": "bee23320c466971b03e18d5ab9f5ce1d768adfab7c634d7096c871664fe51051",
    "fr": "c5d2472789be6b426437600e4de3f5b7ffc3b928929e9ebeecd744d335c2f57e",
    "es": "0e4ee0f5427feb88412cba281f076a8523d278ad47cae3ff9bf80a20b185061d",
    "it": "afe2c5b77e73b9c6a7b507bd80eeb696abc0d23d3939b0b34b356f0a214749a8",
    "ru": "ad551d54b5c623ffe5dc87acd7a158343be760d306a166af6aca276243173a0d",
    "zh_Hans": "85d45235fdbf08d61c6c88a5f4cbc3ed3b1a671bfdd2b649a2bea287900ce783",
}
SENTENCE = 40
"""Shorter messages are labels, not language."""


def prose() -> str:
    """The calibration half of the Wikipedia articles."""
    with tempfile.TemporaryDirectory() as folder:
        text.write(Path(folder))
        return (Path(folder) / "calibration.txt").read_text(encoding="utf-8")


def code() -> str:
    """Modules of this Python's library."""
    library = Path(sysconfig.get_path("stdlib"))
    return "\n\n".join((library / f"{name}.py").read_text(encoding="utf-8") for name in MODULES)


def languages() -> str:
    """The longer messages of Django in each language, a few from each in turn."""
    found = []
    for language, digest in LANGUAGES.items():
        member = f"django/conf/locale/{language}/LC_MESSAGES/django.po"
        catalogue = fetch(PackagedFile(DJANGO, member, digest), DOWNLOADS / f"django-{language}.po")
        sentences = _messages(catalogue.read_text(encoding="utf-8"))
        found.append("\n".join(s for s in sentences if len(s.encode()) >= SENTENCE)[: 2 * PIECE])
    return "\n\n".join(found)


def _messages(catalogue: str) -> Iterator[str]:
    """The translations in a gettext catalogue."""
    for match in re.finditer(r'^msgstr(?:\[\d\])? ((?:".*"\n)+)', catalogue, re.MULTILINE):
        parts = re.findall(r'"(.*)"', match[1])
        yield "".join(parts).replace('\\"', '"').replace("\\n", "\n").strip()


def pieces(whole: str, count: int) -> list[str]:
    """Up to `count` parts that begin at a paragraph, spread evenly over a text."""
    step = max(PIECE, len(whole) // count)
    starts = [0, *(whole.find("\n\n", start) for start in range(step, len(whole) - PIECE, step))]
    return [whole[start : start + PIECE].strip() for start in starts if start >= 0][:count]


@click.command(help=__doc__)
def main() -> None:
    """Write the text."""
    chat = (TEXTS / "chat.txt").read_text(encoding="utf-8")
    texts = {"prose": prose(), "code": code(), "chat": chat, "languages": languages()}
    chosen = [piece for kind, whole in texts.items() for piece in pieces(whole, PIECES[kind])]
    random.Random(0).shuffle(chosen)
    partial = TEXTS / "calibration.txt.partial"
    partial.write_text("\n\n".join(chosen) + "\n", encoding="utf-8")
    os.replace(partial, TEXTS / "calibration.txt")


if __name__ == "__main__":
    main()
