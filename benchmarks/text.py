"""Make the texts that calibration and evaluation use: English Wikipedia prose (2016, CC BY-SA 3.0).

    python -m benchmarks.text DIR          writes DIR/calibration.txt and DIR/evaluation.txt

The articles come from the extract that the PyPI package gensim carries for its own tests; gensim is not installed.
Every fourth article goes to calibration, the others to evaluation, so that nothing is judged on text it was fitted to.
Markup, tables, references and the sections behind them are dropped; headings, paragraphs and list entries that are
sentences stay. Articles of fewer than 2,000 characters (mostly lists of links) are left out.
"""

from __future__ import annotations

import bz2
import html
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import click

from benchmarks.packages import PackagedFile, fetch

WIKIPEDIA = PackagedFile(
    "gensim==4.4.0",
    "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
    "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
)

# Sections without prose.
APPENDICES = {
    "see also", "references", "notes", "footnotes", "citations", "sources", "bibliography", "further reading",
    "external links", "works cited", "notes and references", "references and notes", "gallery", "filmography",
    "discography", "works", "publications", "selected works",
}  # fmt: skip

# A template whose text stays: {{lang|de|Wort}}, {{convert|5|km|mi}} (number and unit), {{nowrap|…}}, {{IPA|…}}.
_TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}")
_LINK = re.compile(r"\[\[((?:(?!\[\[|\]\]).)*)\]\]", re.DOTALL)
_TABLE = re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.DOTALL)
_NOT_PROSE = re.compile(
    r"<(ref|math|gallery|timeline|code|source|syntaxhighlight|pre|table|imagemap|score|chem)\b[^>]*?(?:/>|>.*?</\1\s*>)",
    re.DOTALL | re.IGNORECASE,
)


def articles() -> Iterator[tuple[str, str]]:
    """Title and wikitext of each article; redirects and other name spaces are left out."""
    with bz2.open(fetch(WIKIPEDIA)) as file:
        for _, element in ElementTree.iterparse(file):
            if not element.tag.endswith("}page"):
                continue
            namespace = element.tag.removesuffix("page")
            text = element.findtext(f"{namespace}revision/{namespace}text") or ""
            is_redirect = element.find(f"{namespace}redirect") is not None
            if element.findtext(f"{namespace}ns") == "0" and not is_redirect:
                yield element.findtext(f"{namespace}title") or "", text
            element.clear()


def prose(title: str, wikitext: str) -> str:
    """An article's headings and paragraphs as plain text, a blank line between two of them."""
    text = _strip_markup(wikitext)
    blocks = [f"= {title} ="]
    skipped_level = 0  # level of the appendix that we are in, 0 outside
    for line in text.split("\n"):
        line = re.sub(r"[ \t]+", " ", line).lstrip("*#:; ").rstrip()
        heading = re.fullmatch(r"(={2,6})\s*(.*?)\s*\1", line)
        if heading:
            level = len(heading[1])
            if not skipped_level or level <= skipped_level:
                skipped_level = level if heading[2].lower() in APPENDICES else 0
            if not skipped_level:
                while re.match(r"=+ ", blocks[-1]) and blocks[-1].count("=") // 2 >= level:
                    blocks.pop()  # nothing was left of the section before
                blocks.append(f"{heading[1]} {heading[2]} {heading[1]}")
        elif not skipped_level and len(line) >= 60 and line[0] not in "|!{}<=":
            blocks.append(line)
    while len(blocks) > 1 and re.match(r"=+ ", blocks[-1]):
        blocks.pop()
    return "\n\n".join(blocks) + "\n\n"


def _strip_markup(text: str) -> str:
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = _NOT_PROSE.sub("", text)
    text = _until_stable(_TEMPLATE, _template_text, text)
    text = _until_stable(_TABLE, lambda match: "", text)
    text = _until_stable(_LINK, _link_text, text)
    text = re.sub(r"\[(?:https?:)?//[^\s\]]+\s*([^\]]*)\]", r"\1", text)
    text = re.sub(r"'{2,5}", "", text)
    text = re.sub(r"</?[a-zA-Z][^<>]*>", "", text)
    text = re.sub(r"__[A-Z]+__", "", text)
    text = html.unescape(text).replace("\xa0", " ")
    text = unicodedata.normalize("NFC", text)
    text = re.sub(r"\(\s*[,;:]\s*", "(", text)  # what a dropped template leaves at the start of a parenthesis
    text = re.sub(r"\s*\(\s*[,;.]?\s*\)", "", text)
    return re.sub(r" +([,.;:)])", r"\1", text).replace(",,", ",")


def _until_stable(pattern: re.Pattern[str], replacement: Callable[[re.Match[str]], str], text: str) -> str:
    """Replace innermost matches first, until none is left."""
    count = 1
    while count:
        text, count = pattern.subn(replacement, text)
    return text


def _template_text(match: re.Match[str]) -> str:
    name, *arguments = (part.strip() for part in match[1].split("|"))
    name = name.lower()
    values = [argument for argument in arguments if not re.match(r"[\w-]+\s*=", argument)]
    if name == "convert" and len(values) >= 2:
        return f"{values[0]} {values[1]}"
    if name == "lang" and len(values) >= 2:
        return values[1]
    if (name.startswith("lang-") or name in {"nowrap", "transl", "ipa", "script", "nihongo", "unicode"}) and values:
        return values[-1] if name == "transl" else values[0]
    if name in {"spaced ndash", "ndash", "snd", "–"}:
        return " – "
    return ""


def _link_text(match: re.Match[str]) -> str:
    target, _, label = match[1].partition("|")
    if re.match(r"\s*(file|image|category|media|[a-z]{2,3}(-[a-z]+)?)\s*:", target, re.IGNORECASE):
        return ""
    return label.rpartition("|")[2] if label else target.lstrip(":")


def write(folder: Path) -> None:
    """Write calibration.txt and evaluation.txt into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"calibration": "", "evaluation": ""}
    long_enough = (text for title, wikitext in articles() if len(text := prose(title, wikitext)) >= 2000)
    for index, text in enumerate(long_enough):
        texts["calibration" if index % 4 == 3 else "evaluation"] += text
    for name, text in texts.items():
        partial = folder / f"{name}.txt.partial"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, folder / f"{name}.txt")


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
def main(out: Path) -> None:
    """Write both texts."""
    write(out)


if __name__ == "__main__":
    main()
