"""Splits a chat template into pieces, by rendering conversations whose contents are random marks.

What stands between two marks is the template's own text. How a content is changed (stripped, cut after "</think>") is
found by contents with something around the mark. All of it is then compared with what jinja renders: conversations of
one to seven questions, with and without a system message, with difficult contents, and with the texts that the template
itself looks for in messages. If only such a text or an empty message is written differently, a guard refuses it at run
time; if anything else is, the template is `Unsplittable`.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from tokenizers import Tokenizer

from smc.errors import InputError
from smc.runtime.chat import ChatTemplate
from smc.runtime.template_language import template_texts
from smc.standalone.chat_pieces import ChatPieces, EmptySystem, Key, Kind, Piece, Place, Role, Strip, turn_keys

Messages = list[dict[str, str]]

_DATES = (datetime(2026, 3, 9, 4, 5, 6), datetime(2031, 11, 28, 17, 44, 59))
_DATE_FORMAT = re.compile(r"([^%\0]|%[aAbBdHIjmMpSyY%])+")  # conversions that every C library writes alike
_MAX_DATE_BYTES = 63
_MAX_LITERALS = 100
_QUESTIONS = range(1, 8)

_CONTENTS = (
    "hello",
    "  a b\n",
    "\n\n x\u3000",
    "\u00a0 y \u2028\n",
    "é € 漢 🙂 <b>&\"'\\",
    "{{ x }} {% y %} {# z #}",
    "one\n\ntwo\r\n\tthree ",
    "[INST] <<SYS>> <|im_end|> </s>\n### Response:\n",
)
_BLANK = ("", " ", "\n", " \u3000\n")

_MARK = re.compile("[\ue000-\uf8ff]{16}")

# Stands beside a mark, to see what is stripped: each way to strip leaves another part of it.
_SPACE = "\n \n"


@dataclass(frozen=True)
class Unsplittable:
    """A template that can't be written as pieces; `reason` ends a sentence that begins with "the chat template"."""

    reason: str

    def __str__(self) -> str:
        return self.reason


class _CannotSplitError(Exception):
    """Carries the reason out of this module's functions."""


def chat_pieces(source: str, tokenizer: str, special_tokens: Mapping[str, str]) -> bytes | Unsplittable:
    """The ZIP member for a template, or the reason why there is none.

    source: jinja text. tokenizer: the text of a `tokenizers` JSON file. special_tokens: as in `smc.ir.ModelFacts`.
    """
    try:
        pieces = split_chat_template(ChatTemplate(source, Tokenizer.from_str(tokenizer), special_tokens))
    except InputError as error:
        return Unsplittable(f"has a mistake: {error}")
    return pieces if isinstance(pieces, Unsplittable) else pieces.to_bytes()


def split_chat_template(template: ChatTemplate) -> ChatPieces | Unsplittable:
    """The pieces of a template, checked, or the reason why there are none."""
    literals, pairs = _tested_texts(template)
    if len(literals) > _MAX_LITERALS:
        return Unsplittable(f"looks for {len(literals)} different texts in messages")
    try:
        pieces = _find_pieces(template, literals)
        _check_plain(template, pieces)
    except _CannotSplitError as error:
        return Unsplittable(str(error))
    _settle_blank(template, pieces)
    _settle_literals(template, pieces, literals, pairs)
    return pieces


# ---- finding the pieces

# Numbers of questions (2: two or more) of the conversations in which a place occurs.
_REFUSED = {1: (Role.USER, Place.ONLY), 2: (Role.ASSISTANT, Place.ONLY), 4: (Role.ASSISTANT, Place.FIRST)}


def _find_pieces(template: ChatTemplate, literals: Sequence[str]) -> ChatPieces:
    """The pieces, from conversations of 1, 2 and 4 questions: every key occurs in one of these."""
    pieces = ChatPieces()
    for system, questions in itertools.product((False, True), _REFUSED):
        try:
            found = _Probe(template, questions, system).pieces(literals)
        except InputError as error:
            if not system and questions == 1:
                raise _CannotSplitError("refuses a single question") from None
            role, where = _REFUSED[questions]
            pieces.lists[system, role, where] = (Piece(Kind.REFUSAL, _MARK.sub("…", str(error))),)
            continue
        for key, listed in found:
            if pieces.lists.setdefault(key, listed) != listed:
                raise _CannotSplitError("writes what depends on the length of the conversation")
    return pieces


class _Probe:
    """A conversation whose contents are marks. Raises InputError if the template refuses it."""

    def __init__(self, template: ChatTemplate, questions: int, system: bool) -> None:
        self._template = template
        self._system = system
        self._marks = [_mark() for _ in range(2 * questions - 1 + system)]
        self._dates: dict[str, str] = {}  # strftime format → its mark
        self._text = self._render(self._marks)

    def pieces(self, literals: Sequence[str]) -> list[tuple[Key, tuple[Piece, ...]]]:
        """The pieces of every message; literals: texts after which a content may be cut."""
        known = {mark: self._slot(i, literals) for i, mark in enumerate(self._marks) if mark in self._text}
        for form, mark in self._dates.items():
            if not _DATE_FORMAT.fullmatch(form) or len(form.encode()) > _MAX_DATE_BYTES:
                raise _CannotSplitError(f"writes the date as {form!r}")
            known[mark] = Piece(Kind.DATE, form)
        turns = self._marks[self._system :]
        parts = re.split(f"({'|'.join([*self._marks, *self._dates.values()])})", self._text)
        if [part for part in parts if part in turns] != turns:
            raise _CannotSplitError("repeats, drops or rearranges messages")
        listed: list[list[Piece]] = [[]]
        for part in filter(None, parts):
            listed[-1].append(known.get(part) or Piece(Kind.TEXT, part))
            if part in turns:
                listed.append([])
        return list(zip(turn_keys(len(turns), self._system), map(tuple, listed), strict=True))

    def _slot(self, i: int, literals: Sequence[str]) -> Piece:
        """How content `i` is written; the checks find what is wrong here."""
        slot = Piece(Kind.CONTENT, system=self._system and i == 0)
        if (kept := self._kept(i, _SPACE, _SPACE)) is None:
            return slot
        slot = replace(slot, left=_strip(kept[0], left=True), right=_strip(kept[1], left=False))
        for literal in literals:
            kept = self._kept(i, f"x{literal}{_SPACE}", "")
            if kept is not None and "x" not in kept[0]:
                return replace(slot, text=literal, left_after_cut=_strip(kept[0], left=True))
        return slot

    def _kept(self, i: int, left: str, right: str) -> tuple[str, str] | None:
        """What the template leaves of two texts around mark `i`; None if it changes anything else."""
        mark = self._marks[i]
        changed = self._render([*self._marks[:i], left + mark + right, *self._marks[i + 1 :]])
        if self._text.count(mark) != 1 or changed.count(mark) != 1:
            return None
        (before, after), (new_before, new_after) = self._text.split(mark), changed.split(mark)
        if not new_before.startswith(before) or not new_after.endswith(after):
            return None
        return new_before.removeprefix(before), new_after.removesuffix(after)

    def _render(self, contents: Sequence[str]) -> str:
        def date(form: str) -> str:
            return self._dates.setdefault(form, _mark())

        return self._template.render(_conversation(contents, self._system), strftime_now=date)


def _strip(kept: str, left: bool) -> Strip:
    """The way to strip that leaves `kept` of `_SPACE`."""
    strip = str.lstrip if left else str.rstrip
    return next((way for way in Strip if strip(_SPACE, way.characters) == kept), Strip.NOTHING)


def _mark() -> str:
    """16 random private-use characters: about 200 bits."""
    return "".join(chr(0xE000 + secrets.randbelow(0x1900)) for _ in range(16))


def _conversation(contents: Sequence[str], system: bool) -> Messages:
    """Messages of a system message, if any, and of users and assistants alternating."""
    roles = [*(["system"] if system else []), *itertools.islice(itertools.cycle(["user", "assistant"]), len(contents))]
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


# ---- checking them


def _equal(template: ChatTemplate, pieces: ChatPieces, contents: Sequence[str], system: bool) -> bool:
    """Whether the pieces give jinja's text, or both refuse the conversation."""
    messages = _conversation(contents, system)
    for date in _DATES:
        wanted: str | None
        try:
            wanted = template.render(messages, strftime_now=date.strftime)
        except InputError:
            wanted = None
        got: str | None
        try:
            got = pieces.render(messages, date)
        except InputError:
            got = None
        if wanted != got:
            return False
        if not any(piece.kind is Kind.DATE for listed in pieces.lists.values() for piece in listed):
            break
    return True


def _check_plain(template: ChatTemplate, pieces: ChatPieces) -> None:
    """Conversations of every length, every content at every place."""
    for system, questions, shift in itertools.product((False, True), _QUESTIONS, range(len(_CONTENTS))):
        contents = [_CONTENTS[(i * 3 + shift) % len(_CONTENTS)] for i in range(2 * questions - 1 + system)]
        if not _equal(template, pieces, contents, system):
            raise _CannotSplitError("changes messages, not only what stands around them")


def _placed(text: str, system: bool, other: str = "hello") -> Iterator[tuple[int, list[str]]]:
    """Conversations of three questions and of one, each with `text` at one place, which comes first."""
    for questions in (3, 1):
        plain = [other] * (2 * questions - 1 + system)
        yield from ((i, [*plain[:i], text, *plain[i + 1 :]]) for i in range(len(plain)))


def _guard(pieces: ChatPieces, text: str, system: bool, i: int) -> None:
    """Refuse `text` in all messages of the role that has place `i` in conversations with or without system message."""
    of_system = system and i == 0
    role = Role.USER if of_system or (i - system) % 2 == 0 else Role.ASSISTANT
    guard = Piece(Kind.GUARD, text, system=of_system)
    for where in Place:
        listed = pieces.lists.get((system, role, where), ())
        if guard not in listed and (not of_system or where in (Place.FIRST, Place.ONLY)):
            pieces.lists[system, role, where] = (guard, *listed)


def _settle_blank(template: ChatTemplate, pieces: ChatPieces) -> None:
    """Find out what an empty system message means, and refuse other empty messages that are written differently."""
    for meaning in EmptySystem:
        pieces.empty_system = meaning
        if all(_equal(template, pieces, [blank, *["hello"] * n], True) for blank in _BLANK for n in (1, 3, 5)):
            break
    else:
        pieces.empty_system = EmptySystem.MESSAGE
    for system, blank in itertools.product((False, True), _BLANK):
        for i, contents in _placed(blank, system):
            if not _equal(template, pieces, contents, system):
                _guard(pieces, "", system, i)


def _settle_literals(template: ChatTemplate, pieces: ChatPieces, literals: Sequence[str], pairs: Sequence[str]) -> None:
    """Try the texts that the template looks for everywhere in a message, and two of them around one.

    The other messages are plain, or have a text after which they are cut: thoughts, which may stay in some answers.
    """
    listed = itertools.chain.from_iterable(pieces.lists.values())
    others = ["hello", *sorted({f"x{piece.text}y" for piece in listed if piece.kind is Kind.CONTENT and piece.text})]
    cases = [(text, f"{a}{text}{b}") for text in literals for a, b in itertools.product(("", "x "), ("", " y"))]
    cases += [(first, f"{first}{text}{last}") for first in pairs for last in pairs for text in ("", "x")]
    for system, other, (text, content) in itertools.product((False, True), others, cases):
        for i, contents in _placed(content, system, other):
            if not _equal(template, pieces, contents, system):
                _guard(pieces, text, system, i)


def _tested_texts(template: ChatTemplate) -> tuple[list[str], list[str]]:
    """The texts that the template compares something with, and those among them that may be a part of a message.

    Texts of control tokens are none of these: no message shows them to the template.
    """
    source = template_texts(template.source)
    parts = source.searched | source.assigned
    return (
        sorted(text for text in source.compared | parts if not template.hides(text)),
        sorted(text for text in parts if not template.hides(text)),
    )
