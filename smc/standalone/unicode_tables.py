"""Generates the native tokenizer's Unicode tables (standalone/c/tokenizer_unicode.h) from the behaviour of
`tokenizers`.

    python -m smc.standalone.unicode_tables          rewrite the header

`tokenizers` uses several libraries, each with its own version of Unicode, so nothing is taken from the standard: every
code point is tried for every property, with the parts of `tokenizers` that the C code imitates.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
"""Every code point that UTF-8 can write, assigned or not."""

PATTERNS = {
    "LETTER": r"\p{L}",
    "NUMBER": r"\p{N}",
    "SPACE": r"\s",
    "UPPER": r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]",
    "LOWER": r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]",
    "PUNCTUATION": r"[\p{P}\$\+<=>\^~\|]",
    "DIGIT": r"[0-9]",
}
"""Classes that regular expressions of pre-tokenizers are made of. A mark, \\p{M}, is an UPPER that is no LETTER."""

CLASSES = (*PATTERNS, "NUMERIC", "WHITE", "WORD")
"""NUMERIC: characters that the pre-tokenizer Digits cuts off. WHITE: those that added tokens strip. WORD: those of
words, for single_word. The place of a class is its bit."""

LOW = 0x800
"""Code points below this, which UTF-8 writes in one or two bytes, have their classes in a table by code point."""

HANGUL = range(0xAC00, 0xAC00 + 11172)
"""Hangul syllables are composed by arithmetic (Unicode standard, section 3.12)."""

_CHUNK = 4096


def members() -> dict[str, set[str]]:
    """The characters of every class."""
    everything = "".join(CHARACTERS)
    found = {}
    for name, pattern in PATTERNS.items():
        others = normalizers.Replace(Regex(pattern), "").normalize_str(everything)
        found[name] = set(CHARACTERS) - set(others)
    found["NUMERIC"] = set(_chosen(_numeric))
    found["WHITE"] = set(_chosen(_stripped))
    found["WORD"] = set(_chosen(_joins_words))
    return found


def _chosen(choose: Callable[[str], Iterable[str]]) -> Iterator[str]:
    for start in range(0, len(CHARACTERS), _CHUNK):
        yield from choose("".join(CHARACTERS[start : start + _CHUNK]))


def _numeric(characters: str) -> Iterator[str]:
    """The characters that Digits cuts off from letters on both sides."""
    pieces = pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str("a" + "aa".join(characters) + "a")
    return (piece for piece, _ in pieces if len(piece) == 1 and piece != "a")


def _marker(**options: bool) -> Tokenizer:
    """A tokenizer with one token, U+0001."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_tokens([AddedToken("\x01", normalized=False, **options)])
    return tokenizer


def _stripped(characters: str) -> Iterator[str]:
    """The characters that a token with lstrip takes with it: its text then begins one character earlier."""
    encoding = _marker(lstrip=True).encode("".join(f"a{c}\x01" for c in characters))
    return (characters[start // 3] for start, end in encoding.offsets if end - start == 2)


def _joins_words(characters: str) -> Iterator[str]:
    """The characters after which a token that must be a single word is not found."""
    encoding = _marker(single_word=True).encode("".join(f"{c}\x01 " for c in characters))
    alone = {start // 3 for start, _ in encoding.offsets}
    return (c for place, c in enumerate(characters) if place not in alone and c != "\x01")


class Composition:
    """Canonical decomposition and composition, by the normalizers NFD and NFC (UAX #15)."""

    def __init__(self) -> None:
        nfd, nfc = normalizers.NFD().normalize_str, normalizers.NFC().normalize_str
        plain = [c for c in CHARACTERS if ord(c) not in HANGUL]
        self.decompositions = {c: nfd(c) for c in plain if nfd(c) != c}
        self.pairs = {}  # (first, second) → what they compose to
        for character, parts in self.decompositions.items():
            first = nfc(parts[:-1])
            if len(parts) > 1 and len(first) == 1 and nfc(first + parts[-1]) == character:
                self.pairs[first, parts[-1]] = character
        self.orders = self._orders(nfd)

    def _orders(self, nfd: Callable[[str], str]) -> dict[str, int]:
        """Character → the rank, from 1, of its combining class; starters are left out.

        Two neighbours swap if the first has the higher class, so swaps show the order of the classes.
        """
        # U+0334 has the lowest class, 1, and U+0345 the highest, 240: every other swaps with one of them.
        low, high = "\u0334", "\u0345"
        marks = [
            c
            for c in CHARACTERS
            if c not in self.decompositions
            and (nfd("a" + c + low) != "a" + c + low or nfd("a" + high + c) != "a" + high + c)
        ]
        classes: list[list[str]] = []
        for mark in marks:
            for known in classes:
                if not self._swap(nfd, mark, known[0]) and not self._swap(nfd, known[0], mark):
                    known.append(mark)
                    break
            else:
                classes.append([mark])
        ranked = sorted(classes, key=lambda known: sum(self._swap(nfd, known[0], other[0]) for other in classes))
        return {mark: rank for rank, known in enumerate(ranked, 1) for mark in known}

    @staticmethod
    def _swap(nfd: Callable[[str], str], first: str, second: str) -> bool:
        return nfd("a" + first + second) == "a" + second + first != "a" + first + second


def _ranges(values: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(code point, value) pairs in rising order → where each run of one value begins."""
    return [next(run) for _, run in itertools.groupby(values, key=lambda pair: pair[1])]


def _array(kind: str, name: str, numbers: Sequence[int], form: str = "0x{:x}") -> str:
    """A C array, wrapped at 120 columns."""
    lines, line = [], ""
    for number in numbers:
        item = form.format(number) + ","
        if len(line) + len(item) > 120:
            lines.append(line)
            line = ""
        line += item
    return f"static const {kind} {name}[{len(numbers)}] = {{\n" + "\n".join([*lines, line.rstrip(",")]) + "};\n"


def header() -> str:
    """The text of tokenizer_unicode.h."""
    classes = members()
    bits = [0] * 0x110000
    for bit, name in enumerate(CLASSES):
        for character in classes[name]:
            bits[ord(character)] |= 1 << bit
    composition = Composition()
    parts = sorted(composition.decompositions.items())
    starts = list(itertools.accumulate((len(text) for _, text in parts), initial=0))
    pairs = sorted((ord(a), ord(b), ord(c)) for (a, b), c in composition.pairs.items())
    orders = [composition.orders.get(chr(code), 0) for code in range(0x110000)]
    high = _ranges((code, bits[code]) for code in range(LOW, 0x110000))
    ordered = _ranges(enumerate(orders))
    return "\n".join(
        [
            "/* Generated by smc/standalone/unicode_tables.py from how `tokenizers` behaves: change that, not this. */",
            "/* clang-format off */",
            "enum {",
            *(f"  SMC_{name} = {1 << bit}," for bit, name in enumerate(CLASSES)),
            f"  SMC_LOW = 0x{LOW:x}, /* classes of lower code points are in smc_low_classes */",
            f"  SMC_CLASS_BITS = {len(CLASSES)},",
            f"  SMC_ORDERS = {max(orders)}, /* combining classes other than 0, by rank */",
            f"  SMC_FIRST_MARK = 0x{next(code for code, order in enumerate(orders) if order):x},",
            "};",
            _array("uint16_t", "smc_low_classes", bits[:LOW]),
            "/* Where the classes change: code point << SMC_CLASS_BITS | classes. */",
            _array("uint32_t", "smc_high_classes", [code << len(CLASSES) | value for code, value in high]),
            "/* Where the combining class changes: code point << 8 | rank of the class. */",
            _array("uint32_t", "smc_orders", [code << 8 | order for code, order in ordered]),
            "/* Code points that decompose, in order; where their parts begin in smc_parts, and where the last end. */",
            _array("uint32_t", "smc_decomposed", [ord(character) for character, _ in parts]),
            _array("uint16_t", "smc_part_starts", starts),
            _array("uint32_t", "smc_parts", [ord(c) for _, text in parts for c in text]),
            "/* First, second and composed code points, in order. */",
            _array("uint32_t", "smc_pairs", [number for pair in pairs for number in pair]),
        ]
    )


def path() -> Path:
    """The path of the header."""
    return Path(__file__).parent / "c" / "tokenizer_unicode.h"


if __name__ == "__main__":
    path().write_text(header())
