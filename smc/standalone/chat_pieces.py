"""A chat template in pieces: what an executable without jinja needs to write the template's prompts.

Templates are programs, but nearly all of them write a fixed text around each message, which depends on the role and on
whether the message is the first or the last of its role. `ChatPieces` holds these texts; chat_split.py
finds them, and c/chat_template.c puts them together again, as `ChatPieces.render` does here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum

from smc.errors import InputError

MAGIC = b"smcchat1"


class Strip(IntEnum):
    """What is stripped from an end of a message; WHITESPACE is Python's str.strip()."""

    NOTHING = 0
    NEWLINES = 1
    WHITESPACE = 2

    @property
    def characters(self) -> str | None:
        """The argument for str.strip(), str.lstrip() and str.rstrip()."""
        return ("", "\n", None)[self]


class Kind(IntEnum):
    """The kinds of pieces."""

    TEXT = 0
    CONTENT = 1  # the message's own content, or the system message's
    DATE = 2  # now, `text` being strftime's format
    REFUSAL = 3  # such a conversation is refused; `text` is the sentence
    GUARD = 4  # the conversation is refused if the content has `text` or, for an empty `text`, if it is blank


@dataclass(frozen=True)
class Piece:
    """A part of the prompt. What the fields mean depends on `kind`; unused ones keep their defaults.

    system: the content is the system message's. left, right: how the ends of a content are stripped. text: the text of
    the piece. For a content: everything up to the last occurrence of this text is dropped, and `left_after_cut` strips
    what follows it.
    """

    kind: Kind
    text: str = ""
    system: bool = False
    left: Strip = Strip.NOTHING
    right: Strip = Strip.NOTHING
    left_after_cut: Strip = Strip.NOTHING

    def flags(self) -> int:
        """The fields but `kind` and `text` as one number."""
        return self.system | self.left << 1 | self.right << 3 | self.left_after_cut << 5


class Role(IntEnum):
    """What pieces belong to: a message, up to the end of its content, or the end of the conversation."""

    USER = 0
    ASSISTANT = 1
    END = 2


class Place(IntEnum):
    """The place of a message among those of its role; END has that of the last user message."""

    MIDDLE = 0
    FIRST = 1
    LAST = 2
    ONLY = 3


def place(index: int, count: int) -> Place:
    """The place of message `index` of `count` of its role."""
    return Place((index == 0) + 2 * (index == count - 1))


class EmptySystem(IntEnum):
    """What an empty system message means."""

    MESSAGE = 0  # a message like any other
    NONE_IF_EMPTY = 1  # no system message
    NONE_IF_BLANK = 2  # no system message, even when it is white space


Key = tuple[bool, Role, Place]  # whether there is a system message, role, place


@dataclass
class ChatPieces:
    """The pieces for every kind of message; what follows the last message is under Role.END."""

    lists: dict[Key, tuple[Piece, ...]] = field(default_factory=dict)
    empty_system: EmptySystem = EmptySystem.MESSAGE

    def render(self, messages: Sequence[Mapping[str, str]], now: datetime | None = None) -> str:
        """The prompt for a conversation: at most one system message, then user and assistant alternating, a user last.

        now: for templates that write the date. Raises InputError if the template refuses the conversation.
        """
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        turns = [message["content"] for message in messages if message["role"] != "system"]
        if system is not None and self._is_none(system):
            system = None
        now = now or datetime.now()
        return "".join(
            self._write(piece, content, system or "", now)
            for key, content in zip(turn_keys(len(turns), system is not None), [*turns, ""], strict=True)
            for piece in self.lists.get(key, ())
        )

    def _is_none(self, system: str) -> bool:
        if self.empty_system is EmptySystem.NONE_IF_BLANK:
            return not system.strip()
        return self.empty_system is EmptySystem.NONE_IF_EMPTY and not system

    def _write(self, piece: Piece, content: str, system: str, now: datetime) -> str:
        content = system if piece.system else content
        if piece.kind is Kind.TEXT:
            return piece.text
        if piece.kind is Kind.DATE:
            return now.strftime(piece.text)
        if piece.kind is Kind.REFUSAL:
            raise InputError(piece.text)
        if piece.kind is Kind.GUARD:
            if not piece.text and not content.strip():
                raise InputError("the model's chat template allows no empty message here: write something")
            if piece.text and piece.text in content:
                raise InputError(
                    f"the model's chat template treats '{piece.text}' in a message specially: remove it"
                )
            return ""
        if piece.text and piece.text in content:
            content = content.rpartition(piece.text)[2].lstrip(piece.left_after_cut.characters)
        return content.lstrip(piece.left.characters).rstrip(piece.right.characters)

    def to_bytes(self) -> bytes:
        """The ZIP member `chat_template.pieces`, all numbers little-endian 32-bit.

        `MAGIC`; how many pieces, how many bytes of text, `empty_system`, 0; (first piece, how many) for every key,
        places counting up fastest, then roles; (kind, offset in the text, bytes of it, flags) for every piece; the
        text, UTF-8.
        """
        ranges, pieces, text = b"", b"", b""
        offsets: dict[bytes, int] = {}
        seen: dict[tuple[Piece, ...], tuple[int, int]] = {}
        for key in all_keys():
            listed = self.lists.get(key, ())
            if listed not in seen:
                seen[listed] = len(pieces) // 16, len(listed)
                for piece in listed:
                    encoded = piece.text.encode()
                    offset = offsets.setdefault(encoded, len(text))
                    text += encoded if offset == len(text) else b""
                    pieces += struct.pack("<4I", piece.kind, offset, len(encoded), piece.flags())
            ranges += struct.pack("<2I", *seen[listed])
        return MAGIC + struct.pack("<4I", len(pieces) // 16, len(text), self.empty_system, 0) + ranges + pieces + text


def all_keys() -> Iterator[Key]:
    """Every kind of message, in the order of the member."""
    return ((system, role, where) for system in (False, True) for role in Role for where in Place)


def turn_keys(turns: int, system: bool) -> list[Key]:
    """The keys of a conversation's turns (users' and answers, a user's first and last) and of its end."""
    users = (turns + 1) // 2
    roles = (Role.USER, Role.ASSISTANT)
    keys = [(system, roles[i % 2], place(i // 2, users - i % 2)) for i in range(turns)]
    return [*keys, (system, Role.END, place(users - 1, users))]
