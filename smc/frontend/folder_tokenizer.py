"""The tokenizer of a Hugging Face folder: from tokenizer.json, tokenizer.model or vocab.json with merges.txt.

Ids and decoded text are those of transformers 5. Where tokenizer_config.json names the class LlamaTokenizer, its
settings (`legacy`, `add_prefix_space`, …) say how spaces are treated, whatever a tokenizer.json of SentencePiece's kind
says. Other classes leave a tokenizer.json as it is: the pre-tokenizer in it is the one of the training, which a class
such as GPT2Tokenizer would take for its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from smc.errors import InputError, blamed_on
from smc.frontend.config import Config
from smc.frontend.files import check_is_no_pointer, read_json, read_optional_json, read_text
from smc.frontend.gguf_tokenizer import cl100k
from smc.frontend.sentencepiece import SPACE, frame, read_model
from smc.frontend.token_sources import TokenSources, add_tokens, read_sources

CONFIG, FILE, MODEL, VOCABULARY, MERGES = (
    "tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt",
)  # fmt: skip

DEFAULTS: dict[str, dict[str, str]] = {
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "GPT2Tokenizer": dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>"),
    "Qwen2Tokenizer": dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
}
"""Named tokens that a class has where the config names none."""

UNREADABLE = {
    "tekken.json": "Mistral's tekken.json",
    "tiktoken.model": "a tiktoken vocabulary",
    "*.tiktoken": "a tiktoken vocabulary",
    "vocab.txt": "a WordPiece vocabulary",
    "spiece.model": "a SentencePiece model of another name",
}
"""Files of tokenizers that are not read, and what they are."""


@dataclass(frozen=True)
class FolderTokenizer:
    """A folder's tokenizer. text: `tokenizers` JSON, None if there is none. named: "bos_token", … to their texts.

    eos: the id of the eos token.
    """

    text: str | None
    named: dict[str, str]
    eos: int | None


def folder_tokenizer(folder: Path, model_type: str) -> FolderTokenizer:
    """Read it. InputError if it is broken, or of a kind that can't be read."""
    path = folder / CONFIG
    settings = Config(read_optional_json(path), str(path))
    kind = _class_name(settings)
    text, tokenizer = _base(folder, settings, kind, model_type)
    listed = json.loads(tokenizer.to_str())["added_tokens"] if tokenizer and (folder / FILE).exists() else []
    sources = read_sources(folder, settings, listed)
    if tokenizer is None:
        return FolderTokenizer(None, sources.texts(), None)
    for name, token in DEFAULTS.get(kind, {}).items():
        if name not in settings.values and tokenizer.token_to_id(token) is not None:
            sources.named.setdefault(name, AddedToken(token, special=True))
    before = tokenizer.to_str()
    add_tokens(tokenizer, sources, str(folder))
    if not (folder / FILE).exists():
        _frame(tokenizer, settings, sources)
    after = str(tokenizer.to_str())
    eos = sources.named.get("eos_token")
    return FolderTokenizer(
        text if text is not None and after == before else after,
        sources.texts(),
        None if eos is None else tokenizer.token_to_id(eos.content),
    )


def _class_name(settings: Config) -> str:
    """`tokenizer_class`, without the "Fast" that once made a difference; empty if none is named."""
    return settings.text("tokenizer_class", "").removesuffix("Fast")


def _base(folder: Path, settings: Config, kind: str, model_type: str) -> tuple[str | None, Tokenizer | None]:
    """The tokenizer without what the config adds, and the text of tokenizer.json where this is it unchanged."""
    if (folder / FILE).exists():
        text = read_text(folder / FILE)
        tokenizer = _parsed(text, folder / FILE)
        # transformers reads Mistral's and byte-level ones as they are, whatever class is named.
        as_it_is = model_type == "mistral" or '"ByteLevel"' in text
        if kind != "LlamaTokenizer" or as_it_is or not isinstance(tokenizer.model, models.BPE):
            return text, tokenizer
        return None, _as_llama(tokenizer, settings)
    if (folder / MODEL).exists():
        check_is_no_pointer(folder / MODEL)
        if kind == "LlamaTokenizer" or settings.values.get("legacy") is not None:
            return None, _as_llama(Tokenizer.from_str(read_model(folder / MODEL, False, False)), settings)
        bos, eos = settings.flag("add_bos_token", True), settings.flag("add_eos_token", False)
        return None, Tokenizer.from_str(read_model(folder / MODEL, bos, eos))
    if (folder / VOCABULARY).exists() and (folder / MERGES).exists():
        return None, _from_vocabulary(folder, settings, kind)
    for pattern, what in UNREADABLE.items():
        if found := sorted(folder.glob(pattern)):
            raise InputError(
                f"{found[0]} is {what}, which can't be read: put the model's tokenizer.json into the folder "
                "(transformers converts: AutoTokenizer.from_pretrained(…).save_pretrained(…))"
            )
    return None, None


def _parsed(text: str, path: Path) -> Tokenizer:
    with blamed_on(f"{path} is not a tokenizer file that smc can read"):
        return Tokenizer.from_str(text)


def _as_llama(tokenizer: Tokenizer, settings: Config) -> Tokenizer:
    """The vocabulary as transformers' LlamaTokenizer uses it: spaces as the settings say, byte tokens for characters
    without a token.

    `legacy`: a space comes before every piece of a text between added tokens, else before the text's beginning only.
    """
    data: dict[str, Any] = json.loads(tokenizer.to_str())
    prefix = settings.flag("add_prefix_space", True)
    scheme = ("always" if settings.flag("legacy", False) else "first") if prefix else "never"
    undo = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    kept = {name: data["model"][name] for name in ("type", "vocab", "merges")}
    data["model"] = kept | {"fuse_unk": True, "byte_fallback": True}
    changed = Tokenizer.from_str(json.dumps(data))
    changed.normalizer = None
    changed.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, scheme, split=False)
    changed.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)] if prefix else undo)
    return changed


def _from_vocabulary(folder: Path, settings: Config, kind: str) -> Tokenizer:
    """Byte-level BPE from GPT-2's two files. They do not say how a text is split; the class does."""
    pipelines = {"": "GPT2Tokenizer", "PreTrainedTokenizer": "GPT2Tokenizer", "TokenizersBackend": "GPT2Tokenizer"}
    pipeline = pipelines.get(kind, kind)
    if pipeline not in ("GPT2Tokenizer", "Qwen2Tokenizer"):
        raise InputError(
            f"{folder} has {VOCABULARY} and {MERGES} for a {kind}, which can't be read without a tokenizer.json "
            "(GPT2Tokenizer and Qwen2Tokenizer can)"
        )
    vocabulary = read_json(folder / VOCABULARY)
    if not all(isinstance(number, int) and 0 <= number < 1 << 31 for number in vocabulary.values()):
        raise InputError(f"{folder / VOCABULARY} must give a token id for every token")
    merges = [
        line.partition(" ")[::2]
        for line in read_text(folder / MERGES).split("\n")
        if line.strip() and not line.startswith("#version")
    ]
    with blamed_on(f"{folder}: {MERGES} does not fit {VOCABULARY}"):
        tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    prefix = settings.flag("add_prefix_space", False)
    if pipeline == "GPT2Tokenizer":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    else:
        split = pre_tokenizers.Split(Regex(cl100k(r"\p{N}")), "isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _frame(tokenizer: Tokenizer, settings: Config, sources: TokenSources) -> None:
    """Tokens around every text, where no tokenizer.json says which."""
    if tokenizer.post_processor is not None:
        return
    around = [
        sources.named[name].content if name in sources.named and settings.flag(f"add_{name}", False) else None
        for name in ("bos_token", "eos_token")
    ]
    frame(tokenizer, *around)
