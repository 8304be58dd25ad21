"""Wikitext becomes prose."""

from __future__ import annotations

import pytest

from benchmarks.text import prose

LONG = "a sentence that is long enough to be taken for prose and not for an entry of a list"


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        (f"{LONG}", LONG),
        (f"'''Bold''' and ''italic'': {LONG}", f"Bold and italic: {LONG}"),
        (f"[[target|label]] [[plain]]s {LONG}", f"label plains {LONG}"),
        (f"{LONG}<ref name=a>{{{{cite|x}}}} gone</ref>, and<ref name=a/> on", f"{LONG}, and on"),
        (f"[[File:a.jpg|thumb|a [[b|c]] [sic] d]]{LONG}", LONG),
        (f"{{{{Infobox|a={{{{b}}}}|c}}}}{LONG}", LONG),
        (f"{{| class=x\n| {{| inner |}}\n|}}\n{LONG}", LONG),
        (f"{{{{convert|5|km|mi}}}} of {{{{lang|de|Weg}}}}: {LONG}", f"5 km of Weg: {LONG}"),
        (f"Name ({{{{IPAc-en|x}}}}; born 1900), {LONG}", f"Name (born 1900), {LONG}"),
        (f"[http://a.b text] and 5&nbsp;&lt; 6 {LONG}", f"text and 5 < 6 {LONG}"),
        (f"* short\n* {LONG}", LONG),
        (f"<!-- {LONG} -->{LONG}", LONG),
    ],
)
def test_markup_is_dropped(wikitext: str, expected: str) -> None:
    assert prose("T", wikitext) == f"= T =\n\n{expected}\n\n"


def test_headings_stay_where_prose_follows() -> None:
    wikitext = (
        f"==Empty==\n* x\n==Full==\n{LONG}\n===Deep===\n{LONG}\n==See also==\n{LONG}\n===In it===\n{LONG}\n==Last==\n"
    )
    assert prose("T", wikitext).split("\n\n")[:-1] == ["= T =", "== Full ==", LONG, "=== Deep ===", LONG]
