"""The parts of a tokenizer.json for the native tokenizer: normalizer, pre-tokenizer, decoder, tokens around a text.

The native tokenizer has only the patterns and normalizers of common language models. A tokenizer with any other part is
refused, never approximated; the error names the part.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from smc.errors import InputError

# Masks and numbers of standalone/c/tokenizer_internal.h.
DECODE_BYTE_LEVEL, DECODE_REPLACE, DECODE_DROP_FIRST, DECODE_BYTE_FALLBACK = 1, 2, 4, 8
NFC, REPLACE, PREPEND = 1, 2, 3
PREPEND_SPACE, METASPACE = 16, 17
SPLIT_TEXT, SPLIT_CLASS, SPLIT_LINES, SPLIT_GPT2, SPLIT_CL100K, SPLIT_O200K = 32, 33, 34, 35, 36, 37
PREPEND_SCHEMES = {"never": 0, "always": 1, "first": 2}
CUTS = {"Isolated": 0, "MergedWithPrevious": 1, "MergedWithNext": 2, "Contiguous": 3}
WITH_MARKS, CONTRACTIONS, SLASHES = 1, 2, 4
NUMBER, PUNCTUATION, DIGIT, NUMERIC = 1 << 1, 1 << 5, 1 << 6, 1 << 7  # places in unicode_tables.CLASSES


class Step(NamedTuple):
    """The steps of the normalizer or the pre-tokenizer."""

    kind: int
    number: int = 0
    least: int = 0
    most: int = 0
    first: str = ""
    second: str = ""


def _patterns() -> dict[str, Step]:
    """The regular expressions of language models' pre-tokenizers, in all the ways in which they are written."""
    space = (r"\s+(?!\S)|\s+",)
    line = (r"\s*[\r\n]+", r"\s*[\r\n]")  # the same: no line break follows the last one
    contractions = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"'(?i:[sdmt]|ll|ve|re)")
    prefix = (r"[^\r\n\p{L}\p{N}]?", r"[^\r\n\p{L}\p{N}]?+")
    digits = {r"\p{N}": 1, r"\p{N}{1,2}": 2, r"\p{N}{1,3}": 3, r"\p{N}+": 0}
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    found = {}
    for start in (r"'s|'t|'re|'ve|'m|'ll|'d", r"'(?:[sdmt]|ll|ve|re)"):
        found[start + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"] = Step(SPLIT_GPT2)
    for digit, (letters, others, number) in itertools.product(
        digits, ((r"\p{L}", r"\p{L}\p{N}", 0), (r"[\p{L}\p{M}]", r"\p{L}\p{M}\p{N}", WITH_MARKS))
    ):
        step = Step(SPLIT_CL100K, number, most=digits[digit])
        for parts in itertools.product(
            contractions,
            [f"{start}{letters}+" for start in prefix],
            [digit],
            [rf" ?[^\s{others}]{repeat}[\r\n]*" for repeat in ("+", "++")],
            line,
            space,
        ):
            found["|".join(parts)] = step
    for digit, slash, contraction in itertools.product(digits, ("", "/"), ("", *contractions)):
        step = Step(SPLIT_O200K, (CONTRACTIONS if contraction else 0) | (SLASHES if slash else 0), most=digits[digit])
        after = contraction if contraction.startswith("(") or not contraction else f"(?:{contraction})"
        after = f"{after}?" if after else ""
        for start, ending in itertools.product(prefix, line):
            words = f"{start}{upper}*{lower}+{after}|{start}{upper}+{lower}*{after}"
            found[rf"{words}|{digit}| ?[^\s\p{{L}}\p{{N}}]+[\r\n{slash}]*|{ending}|{space[0]}"] = step
    found |= {digit: Step(SPLIT_CLASS, NUMBER, 1, most) for digit, most in digits.items()}
    found[r"[\p{P}\$\+<=>\^~\|]+"] = Step(SPLIT_CLASS, PUNCTUATION, 1)
    found[r"[0-9][0-9][0-9]"] = Step(SPLIT_CLASS, DIGIT, 3, 3)
    return found


PATTERNS = _patterns()
_LINES = re.compile(r"\\n\|(.)\*\[\^\1\\n\]\+\|\1\+", re.DOTALL)
_WHOLE = (SPLIT_GPT2, SPLIT_CL100K, SPLIT_O200K, SPLIT_LINES)  # patterns that match the whole text


@dataclass(frozen=True)
class Decoder:
    """How texts of tokens are decoded: bits DECODE_…, a replacement, and how many spaces are stripped from the
    start."""

    flags: int
    replace_from: str = ""
    replace_to: str = ""
    strip: int = 0


def refusal(what: str) -> InputError:
    """The error for a tokenizer that can't have tables."""
    return InputError(
        f"the native tokenizer does not support {what}, and a model needs texts split as in training: leave out "
        "--standalone"
    )


def _flatten(part: Mapping[str, Any] | None, members: str) -> list[Mapping[str, Any]]:
    """A part, or the parts of a Sequence of them."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [step for member in part[members] for step in _flatten(member, members)]


def _literal(pattern: Mapping[str, str], where: str) -> str:
    """The text of a pattern that is a fixed text."""
    if not pattern.get("String"):
        raise refusal(f"{where} of the pattern {next(iter(pattern.values()))!r}")
    return pattern["String"]


def read_normalizer(part: Mapping[str, Any] | None) -> list[Step]:
    """The steps of a normalizer."""
    steps = []
    for member in _flatten(part, "normalizers"):
        match member["type"]:
            case "NFC":
                steps.append(Step(NFC))
            case "Replace":
                steps.append(Step(REPLACE, first=_literal(member["pattern"], "Replace"), second=member["content"]))
            case "Prepend":
                steps.append(Step(PREPEND, first=member["prepend"]))
            case other:
                raise refusal(f"the normalizer {other}")
    return steps


def read_pre_tokenizer(part: Mapping[str, Any] | None) -> tuple[list[Step], bool]:
    """The steps of a pre-tokenizer, and whether it makes bytes of the text."""
    steps: list[Step] = []
    members = _flatten(part, "pretokenizers")
    for place, member in enumerate(members):
        match member["type"]:
            case "ByteLevel":
                if place + 1 < len(members):
                    raise refusal(f"the pre-tokenizer {members[place + 1]['type']} after ByteLevel")
                if member["add_prefix_space"]:
                    steps.append(Step(PREPEND_SPACE))
                if member["use_regex"]:
                    steps.append(Step(SPLIT_GPT2))
                return steps, True
            case "Digits":
                steps.append(Step(SPLIT_CLASS, NUMERIC, 1, 1 if member["individual_digits"] else 0))
            case "Metaspace":
                steps.append(Step(METASPACE, PREPEND_SCHEMES[member["prepend_scheme"]], first=member["replacement"]))
                if member["split"]:
                    steps.append(Step(SPLIT_TEXT, CUTS["MergedWithNext"], first=member["replacement"]))
            case "Split":
                steps.append(_split(member))
            case other:
                raise refusal(f"the pre-tokenizer {other}")
    return steps, False


def _split(member: Mapping[str, Any]) -> Step:
    behavior, invert = member["behavior"], member["invert"]
    if "String" in member["pattern"]:
        if invert or behavior not in CUTS:
            raise refusal(f"a Split that is {behavior}{' and inverted' if invert else ''}")
        return Step(SPLIT_TEXT, CUTS[behavior], first=_literal(member["pattern"], "a Split"))
    pattern = member["pattern"]["Regex"]
    lines = _LINES.fullmatch(pattern)
    step = Step(SPLIT_LINES, first=lines[1]) if lines else PATTERNS.get(pattern)
    if step is None or (lines and lines[1] in r"\[](){}*+?.^$|&-"):
        raise refusal(f"the regular expression {pattern!r}")
    # If everything is matched, keeping the matches and dropping the rest is the same as Isolated.
    if (behavior, invert) != ("Isolated", False) and not (
        (behavior, invert) == ("Removed", True) and step.kind in _WHOLE
    ):
        raise refusal(f"a Split that is {behavior}{' and inverted' if invert else ''}")
    return step


def check_metaspace(normalizer: Sequence[Step], splitter: Sequence[Step]) -> None:
    """Metaspace needs the place of a part in the original text, which is known for the first part only."""
    for place, step in enumerate(splitter):
        changed = place > 0 or any(step.kind not in (NFC, REPLACE) for step in normalizer)
        if step.kind == METASPACE and step.number == PREPEND_SCHEMES["first"] and changed:
            raise refusal("Metaspace with the prepend scheme first behind other steps")


def read_decoder(part: Mapping[str, Any] | None) -> Decoder:
    """ByteLevel, Metaspace, or any of Replace, ByteFallback, Fuse and Strip, in this order."""
    members = _flatten(part, "decoders")
    kinds = [member["type"] for member in members]
    if kinds == ["ByteLevel"]:
        return Decoder(DECODE_BYTE_LEVEL)
    if kinds == ["Metaspace"]:
        drop = DECODE_DROP_FIRST if members[0]["prepend_scheme"] != "never" else 0
        return Decoder(DECODE_REPLACE | drop, members[0]["replacement"], " ")
    order = ["Replace", "ByteFallback", "Fuse", "Strip"]
    if not kinds or [kind for kind in order if kind in kinds] != kinds or ("Strip" in kinds and "Fuse" not in kinds):
        raise refusal(f"the decoder {' + '.join(kinds) or 'None'}")
    flags, replace, strip = 0, ("", ""), 0
    for member in members:
        match member["type"]:
            case "Replace":
                flags |= DECODE_REPLACE
                replace = (_literal(member["pattern"], "a decoder's Replace"), member["content"])
            case "ByteFallback":
                flags |= DECODE_BYTE_FALLBACK
            case "Strip":
                if member["content"] != " " or member["stop"]:
                    raise refusal("a Strip of anything but spaces at the start")
                strip = member["start"]
    return Decoder(flags, *replace, strip)


def read_post_processor(part: Mapping[str, Any] | None) -> tuple[list[int], list[int]]:
    """The tokens that the post-processor puts before and after a text."""
    before: list[int] = []
    after: list[int] = []
    for member in _flatten(part, "processors"):
        match member["type"]:
            case "ByteLevel":
                continue
            case "BertProcessing" | "RobertaProcessing":
                before, after = [member["cls"][1], *before], [*after, member["sep"][1]]
            case "TemplateProcessing":
                ids = {name: token["ids"] for name, token in member["special_tokens"].items()}
                kinds = ["Sequence" in item for item in member["single"]]
                if kinds.count(True) != 1:
                    raise refusal("a post-processor that takes a text other than once")
                tokens = [
                    [] if kind else ids[item["SpecialToken"]["id"]]
                    for kind, item in zip(kinds, member["single"], strict=True)
                ]
                place = kinds.index(True)
                before = [*itertools.chain.from_iterable(tokens[:place]), *before]
                after = [*after, *itertools.chain.from_iterable(tokens[place:])]
            case other:
                raise refusal(f"the post-processor {other}")
    return before, after
