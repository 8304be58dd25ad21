"""The tokenizer that a GGUF file describes, as `tokenizers` JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from smc.errors import InputError, blamed_on
from smc.frontend.config import Config
from smc.frontend.sentencepiece import Kind, Vocabulary, frame
from smc.generation import END_TEXTS

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Radford et al., "Language Models are Unsupervised Multitask Learners" (2019)."""


def cl100k(digits: str) -> str:
    """The pattern of GPT-4's tokenizer that most later ones share; they differ in how long a run of digits may be."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Splitting:
    """How a text is cut into words before byte-level BPE.

    patterns: regular expressions that cut one after another; what each matches, and what lies between, stays whole.
    nfc: the text is first composed (Unicode NFC). ignore_merges: a word that is a token is never taken apart.
    bos: texts begin with the bos token unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    bos: bool = False


_WORDS = Splitting((GPT2,))
_DIGITS = Splitting((r"\p{N}", GPT2))
_LLAMA3 = Splitting((cl100k(r"\p{N}{1,3}"),), ignore_merges=True, bos=True)
_QWEN2 = Splitting((cl100k(r"\p{N}"),), nfc=True)
SPLITTINGS = {
    "default": Splitting((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": _WORDS,
    "mpt": _WORDS,
    "olmo": _WORDS,
    "phi-2": _WORDS,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "codeshell": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "dbrx": Splitting((cl100k(r"\p{N}{1,3}"),)),
    "smaug-bpe": Splitting((cl100k(r"\p{N}{1,3}"),)),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": Splitting((TEKKEN,), ignore_merges=True, bos=True),
}
"""`tokenizer.ggml.pre`: the families that the values name, as their own tokenizers split."""


def build_tokenizer(metadata: Config) -> str | None:
    """The text of a `tokenizers` JSON file with the ids of the original tokenizer; None if the file has none.

    InputError if the kind of tokenizer is not supported or its parts do not fit together.
    """
    model = metadata.text("tokenizer.ggml.model", "none")
    if model in ("none", "no_vocab"):
        return None
    if model not in ("gpt2", "llama"):
        raise InputError(f"{metadata.origin}: tokenizers of the kind {model} are not supported, only gpt2 and llama")
    tokens = _list(metadata, "tokens", str)
    kinds = _list(metadata, "token_type", int, [Kind.NORMAL] * len(tokens))
    if len(kinds) != len(tokens):
        raise InputError(f"{metadata.origin}: {len(tokens)} tokens, but {len(kinds)} token types")
    kinds = _with_ends(metadata, tokens, kinds)
    return _byte_level(metadata, tokens, kinds) if model == "gpt2" else _sentencepiece(metadata, tokens, kinds)


def _with_ends(metadata: Config, tokens: list[str], kinds: list[int]) -> list[int]:
    """The token types, where tokens that begin or end texts are control tokens whatever the file calls them."""
    names = ("bos", "eos", "eot", "eom")
    ids = {number for name in names for number in metadata.token_ids(f"tokenizer.ggml.{name}_token_id")}
    return [
        Kind.CONTROL if (place in ids or token in END_TEXTS) and kind in (Kind.NORMAL, Kind.USER_DEFINED) else kind
        for place, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
    ]


def special_tokens(metadata: Config) -> dict[str, str]:
    """bos_token, eos_token, … as text."""
    tokens = metadata.values.get("tokenizer.ggml.tokens") or []
    found = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        place = metadata.values.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(place, int) and 0 <= place < len(tokens):
            found[f"{name}_token"] = tokens[place]
    return found


def _byte_level(metadata: Config, tokens: list[str], kinds: list[int]) -> str:
    """GPT-2's kind: byte-level BPE after a splitting."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name = metadata.text("tokenizer.ggml.pre", "default")
    if name not in SPLITTINGS:
        known = ", ".join(sorted(SPLITTINGS))
        raise InputError(f"{metadata.origin}: the pre-tokenizer {name} is not supported; supported are {known}")
    splitting = SPLITTINGS[name]
    merges = [tuple(merge.split(" ", 1)) for merge in _list(metadata, "merges", str)]
    with blamed_on(f"{metadata.origin}: the tokenizer's merges do not fit its tokens"):
        bpe = models.BPE({t: i for i, t in enumerate(tokens)}, merges, ignore_merges=splitting.ignore_merges)
    tokenizer = Tokenizer(bpe)
    if splitting.nfc:
        tokenizer.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in splitting.patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind == Kind.CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == Kind.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    frame(tokenizer, *_frame(metadata, splitting.bos))
    return str(tokenizer.to_str())


def _sentencepiece(metadata: Config, tokens: list[str], kinds: list[int]) -> str:
    """Llama's kind: SentencePiece BPE with scores."""
    scores = _list(metadata, "scores", float)
    if len(scores) != len(tokens):
        raise InputError(f"{metadata.origin}: {len(tokens)} tokens, but {len(scores)} scores")
    prefix, suffix = _frame(metadata, True)
    prefix_space = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    return Vocabulary(tokens, scores, kinds, prefix_space=prefix_space, prefix=prefix, suffix=suffix).tokenizer()


def _frame(metadata: Config, bos: bool) -> tuple[str | None, str | None]:
    """The tokens that begin and end every text, or None."""
    special = special_tokens(metadata)
    prefix = special.get("bos_token") if metadata.flag("tokenizer.ggml.add_bos_token", bos) else None
    return prefix, special.get("eos_token") if metadata.flag("tokenizer.ggml.add_eos_token", False) else None


def _list(metadata: Config, name: str, kind: type, default: list[Any] | None = None) -> list[Any]:
    """A list of the tokenizer's metadata."""
    value = metadata.values.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, list) or not all(isinstance(v, kind) for v in value):
        raise InputError(f"{metadata.origin}: tokenizer.ggml.{name} must be a list of {kind.__name__}")
    return value
