"""Small tokenizers that are set up exactly as those of language models' families, trained on what lies around."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = Path(__file__).parents[2]

LANGUAGES = """
Zażółć gęślą jaźń. Příliš žluťoučký kůň úpěl ďábelské ódy. Falsches Üben von Xylophonmusik quält jeden größeren Zwerg.
Le cœur déçu mais l'âme plutôt naïve, Louÿs rêva de crapaüter en canoë. Съешь ещё этих мягких французских булок.
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. いろはにほへと ちりぬるを。吾輩は猫である。名前はまだ無い。 中文字符很多,例如这些。
키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다. สวัสดีชาวโลก ข้าวผัดกุ้ง. नमस्ते दुनिया, यह हिन्दी है।
نص حكيم له سر قاطع وذو شأن عظيم. דג סקרן שט בים מאוכזב. 👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 👍🏽 thumbs; ½ ² Ⅷ ٣ ३ ①
1st 22 333 4444.
IT'S, it's, We'LL, they'd, I'M, you've, HE'RE, 'tis, d'accord, ſ'ſ, ʼn, "quotes" — dashes – and… ellipses; $5,000 ^~|=<>
\tdef f(x):\r\n\t\treturn x**2 + 3.14159  # a comment\n\n\n    if (a && b) { c[0] = 0xff; } // 100% /* of it */\n\r\n
café Ünïcödé Å Å ﬁ ﬃ ẛ̣ q̣̇ q̣̇ 각 각 각 ộ ộ
"""
"""Scripts, marks in both orders, composed and decomposed, digits of all kinds, white space of all kinds."""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
QWEN3_5 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENDING}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = O200K.replace(ENDING, "").replace("{1,3}", "")
SPACE = "\u2581"
SEPARATOR = "<|separator|>"
"""Every family has it as a special token: it makes many short texts one long one."""


@cache
def corpus() -> str:
    """Prose and code of this project, and other languages."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "smc" / "ir").glob("*.py"))]
    return "".join(path.read_text(encoding="utf-8") for path in files) + LANGUAGES * 4


def _split(pattern: str, behavior: str = "isolated", invert: bool = False) -> Any:
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def _bytes(**options: bool) -> Any:
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": False, **options})


def _byte_level(
    steps: list[Any], normalizer: Any = None, special: tuple[str, ...] = ("<|endoftext|>",), ignore_merges: bool = False
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[*special, SEPARATOR],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus().splitlines(keepends=True), trainer)
    return tokenizer


def _llama3() -> Tokenizer:
    tokenizer = _byte_level(
        [_split(LLAMA3), _bytes()], special=("<|begin_of_text|>", "<|eot_id|>", "<|e"), ignore_merges=True
    )
    template = processors.TemplateProcessing("<|begin_of_text|>:0 $A:0", None, [("<|begin_of_text|>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def _qwen2() -> Tokenizer:
    tokenizer = _byte_level([_split(QWEN2), _bytes()], normalizers.NFC(), ("<|im_start|>", "<|im_end|>"))
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False)])
    return tokenizer


def _added() -> Tokenizer:
    """Added tokens of every kind, overlapping ones among them."""
    tokenizer = _byte_level([_bytes(use_regex=True, add_prefix_space=True)], normalizers.NFC())
    tokenizer.add_tokens(
        [
            AddedToken("<mask>", lstrip=True, normalized=False, special=True),
            AddedToken("<right>", rstrip=True, normalized=False),
            AddedToken("<both>", lstrip=True, rstrip=True, normalized=False),
            AddedToken("word", single_word=True, normalized=False),
            AddedToken("e\u0301te\u0301", single_word=True, normalized=True),
            AddedToken("  two", normalized=False),
            AddedToken("ab", normalized=False),
            AddedToken("abcd", normalized=False, special=True),
            AddedToken("bc", normalized=True),
            AddedToken("\n\n", normalized=False),
            AddedToken("été suit", normalized=True, lstrip=True, rstrip=True),
        ]
    )
    return tokenizer


def _sentencepiece(
    normalizer: Any,
    pre_tokenizer: Any,
    decoder: Any,
    bytes_too: bool = True,
    fuse_unk: bool = True,
    bos: bool = True,
    added: tuple[AddedToken, ...] = (),
) -> Tokenizer:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=1500, limit_alphabet=150, show_progress=False)
    trained.train_from_iterator(corpus().splitlines(), trainer)
    model = json.loads(trained.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", SEPARATOR, *([f"<0x{byte:02X}>" for byte in range(256)] if bytes_too else [])]
    tokens = [*first, *(t for t in model["vocab"] if t not in first)]
    tokenizer = Tokenizer(
        models.BPE(
            {token: number for number, token in enumerate(tokens)},
            [tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            fuse_unk=fuse_unk,
            byte_fallback=bytes_too,
        )
    )
    for part, value in (("normalizer", normalizer), ("pre_tokenizer", pre_tokenizer), ("decoder", decoder)):
        if value is not None:
            setattr(tokenizer, part, value)
    kinds = [AddedToken(t, normalized=False, special=True) for t in first[:4]]
    tokenizer.add_special_tokens([token for token in kinds if token.content not in {a.content for a in added}])
    tokenizer.add_tokens(list(added))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s>:0 $A:0", "<s>:0 $A:0 <s>:1 $B:1", [("<s>", 1)])
    return tokenizer


def _undo(strip: bool = True) -> Any:
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)


def _legacy() -> Any:
    return normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])


def _gemma() -> Tokenizer:
    runs = tuple(AddedToken(text * count, normalized=False) for text in ("\n", SPACE, "\t") for count in (2, 3, 4))
    pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    unused = tuple(AddedToken(f"<unused{number}>", normalized=False) for number in range(99))
    return _sentencepiece(normalizers.Replace(" ", SPACE), pre_tokenizer, _undo(False), added=(*runs, *unused))


def _glass() -> Tokenizer:
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", SPACE)])
    pieces = _split(rf"\n|{SPACE}*[^{SPACE}\n]+|{SPACE}+")
    decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse()])
    return _sentencepiece(normalizer, pieces, decoder, bytes_too=False, fuse_unk=False, bos=False)


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": lambda: _byte_level([_bytes(use_regex=True)]),
    "gpt-2-prefix-space": lambda: _byte_level([_bytes(use_regex=True, add_prefix_space=True)]),
    "smollm": lambda: _byte_level([pre_tokenizers.Digits(individual_digits=True), _bytes(use_regex=True)]),
    "smollm-gguf": lambda: _byte_level([_split(r"\p{N}"), _split(GPT2, "removed", True), _bytes()]),
    "digits": lambda: _byte_level([pre_tokenizers.Digits(), _bytes(use_regex=True, add_prefix_space=True)]),
    "falcon-gguf": lambda: _byte_level(
        [_split(r"[\p{P}\$\+<=>\^~\|]+"), _split(GPT2), _split(r"\p{N}+"), _split("[0-9][0-9][0-9]"), _bytes()]
    ),
    "llama-3": _llama3,
    "qwen2": _qwen2,
    "qwen3.5": lambda: _byte_level([_split(QWEN3_5), _bytes()], normalizers.NFC()),
    "o200k": lambda: _byte_level([_split(O200K), _bytes()]),
    "tekken": lambda: _byte_level([_split(TEKKEN), _bytes()], ignore_merges=True),
    "added": _added,
    "llama-2": lambda: _sentencepiece(_legacy(), None, _undo()),
    "llama-2-normalized": lambda: _sentencepiece(
        _legacy(),
        None,
        _undo(),
        added=tuple(AddedToken(t, normalized=True, special=True) for t in ("<unk>", "<s>", "</s>")),
    ),
    "llama-2-new": lambda: _sentencepiece(None, pre_tokenizers.Metaspace(SPACE, "first", False), _undo()),
    "mistral": lambda: _sentencepiece(None, pre_tokenizers.Metaspace(SPACE, "always", False), _undo()),
    "metaspace": lambda: _sentencepiece(
        None, pre_tokenizers.Metaspace(), decoders.Metaspace(), bytes_too=False, fuse_unk=False
    ),
    "metaspace-fused": lambda: _sentencepiece(
        normalizers.NFC(), pre_tokenizers.Metaspace(SPACE, "never"), decoders.Metaspace(SPACE, "never"), bytes_too=False
    ),
    "gemma": _gemma,
    "glass": _glass,
    "runs": lambda: _sentencepiece(None, pre_tokenizers.Split("ab", "contiguous"), _undo(False)),
    "isolated": lambda: _sentencepiece(None, pre_tokenizers.Split(" ", "isolated"), _undo(False)),
}
