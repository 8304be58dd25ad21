"""SentencePiece BPE vocabularies as `tokenizers` JSON: from tokenizer.model, or from what a GGUF file keeps of it.

Kudo and Richardson, "SentencePiece" (2018). The pieces' scores become an ordered list of merges: SentencePiece merges
the adjacent pair whose union has the best score, which is what a BPE with merges in the order of the scores does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from smc.errors import InputError

SPACE = "\u2581"
"""The character that stands for a space in pieces: "▁"."""


class Kind(IntEnum):
    """What a piece is; the numbers are those of sentencepiece_model.proto and of GGUF's token_type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """A SentencePiece BPE vocabulary; the id of a piece is its place.

    charsmap: compiled normalization rules, empty for none. prefix_space: a text is read as if a space came first.
    strip: runs of spaces count as one and those at the ends not at all. prefix, suffix: tokens that frame every text.
    """

    pieces: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    charsmap: bytes = b""
    prefix_space: bool = True
    strip: bool = False
    prefix: str | None = None
    suffix: str | None = None

    def tokenizer(self) -> str:
        """The text of a `tokenizers` JSON file that gives the same ids."""
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

        ids = {piece: place for place, piece in enumerate(self.pieces)}
        unknown = next((p for p, kind in zip(self.pieces, self.kinds, strict=True) if kind == Kind.UNKNOWN), None)
        bpe = models.BPE(ids, self._merges(), unk_token=unknown, fuse_unk=True, byte_fallback=Kind.BYTE in self.kinds)
        tokenizer = Tokenizer(bpe)
        steps: list[normalizers.Normalizer] = []
        if self.charsmap:
            charsmap = normalizers.Precompiled(self.charsmap)
            apart = charsmap.normalize_str("\r") + charsmap.normalize_str("\n")
            if charsmap.normalize_str("\r\n") != apart:
                # `tokenizers` maps what a reader sees as one character at once, and drops half of this one.
                steps.append(normalizers.Replace("\r\n", apart))
            steps.append(charsmap)
        if self.strip:
            steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
        if self.prefix_space:
            steps.append(normalizers.Prepend(SPACE))
        tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
        undo = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)] if self.prefix_space else undo)
        for piece, kind in zip(self.pieces, self.kinds, strict=True):
            if kind in (Kind.CONTROL, Kind.UNKNOWN):
                tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True)])
            elif kind == Kind.USER_DEFINED:
                tokenizer.add_tokens([AddedToken(piece, normalized=False)])
        frame(tokenizer, self.prefix, self.suffix)
        return str(tokenizer.to_str())

    def _merges(self) -> list[tuple[str, str]]:
        """All pairs of pieces whose union is a piece, best score first; ties in the order of the pieces."""
        normal = {p: i for i, (p, kind) in enumerate(zip(self.pieces, self.kinds, strict=True)) if kind == Kind.NORMAL}
        ranked = sorted(normal, key=lambda piece: (-self.scores[normal[piece]], normal[piece]))
        return [
            (piece[:cut], piece[cut:])
            for piece in ranked
            for cut in range(1, len(piece))
            if piece[:cut] in normal and piece[cut:] in normal
        ]


def frame(tokenizer: object, prefix: str | None, suffix: str | None) -> None:
    """Let a `tokenizers.Tokenizer` put a token before and one after every text (where special tokens are requested)."""
    from tokenizers import Tokenizer, processors

    assert isinstance(tokenizer, Tokenizer)
    around = [token for token in (prefix, suffix) if token is not None]
    if around:
        single = " ".join([*([f"{prefix}:0"] if prefix else []), "$A:0", *([f"{suffix}:0"] if suffix else [])])
        ids = [(token, tokenizer.token_to_id(token)) for token in around]
        tokenizer.post_processor = processors.TemplateProcessing(single, f"{single} $B:1", ids)


def read_model(path: Path, add_bos: bool = True, add_eos: bool = False) -> str:
    """The text of a `tokenizers` JSON file for a SentencePiece tokenizer.model.

    InputError if the file is damaged or holds another kind of model than BPE.
    """
    try:
        pieces, scores, kinds = [], [], []
        trainer: dict[int, int | bytes] = {}
        normalizer: dict[int, int | bytes] = {}
        for number, value in _fields(path.read_bytes()):
            if number == 1 and isinstance(value, bytes):
                piece = dict(_fields(value))
                pieces.append(_bytes(piece, 1).decode("utf-8"))
                scores.append(struct.unpack("<f", _bytes(piece, 2, b"\0\0\0\0"))[0])
                kinds.append(_int(piece, 3, Kind.NORMAL))
            elif number == 2 and isinstance(value, bytes):
                trainer = dict(_fields(value))
            elif number == 3 and isinstance(value, bytes):
                normalizer = dict(_fields(value))
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from None
    except (ValueError, IndexError, struct.error):
        raise InputError(f"{path} is no SentencePiece model, or it is damaged") from None
    if _int(trainer, 3, 1) != 2:
        raise InputError(f"{path} is no BPE model; only SentencePiece BPE can be read without a tokenizer.json")
    bos, eos = _int(trainer, 41, 1), _int(trainer, 42, 2)
    return Vocabulary(
        pieces,
        scores,
        kinds,
        charsmap=_bytes(normalizer, 2, b""),
        prefix_space=bool(_int(normalizer, 3, 1)),
        strip=bool(_int(normalizer, 4, 1)),
        prefix=pieces[bos] if add_bos and 0 <= bos < len(pieces) else None,
        suffix=pieces[eos] if add_eos and 0 <= eos < len(pieces) else None,
    ).tokenizer()


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol-buffer message: (number, integer or bytes). ValueError or IndexError where it is cut."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value - (1 << 64) if value >> 63 else value

    while place < len(message):
        tag = varint()
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            yield number, varint()
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire}")
        size = {1: 8, 5: 4}.get(wire) or varint()
        if size < 0 or place + size > len(message):
            raise ValueError("a field reaches beyond the message")
        yield number, message[place : place + size]
        place += size


def _int(fields: dict[int, int | bytes], number: int, default: int) -> int:
    value = fields.get(number, default)
    if not isinstance(value, int):
        raise ValueError(f"field {number} is not an integer")
    return value


def _bytes(fields: dict[int, int | bytes], number: int, default: bytes | None = None) -> bytes:
    value = fields.get(number, default)
    if not isinstance(value, bytes):
        raise ValueError(f"field {number} is missing or no byte string")
    return value
