"""Folders in the Hugging Face layout: config.json, safetensors, tokenizer, chat template, generation defaults."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from smc.errors import InputError
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.config import Config, read_json
from smc.frontend.safetensors_files import folder_tensors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def open_folder(folder: Path, name: str | None = None) -> Checkpoint:
    """The checkpoint in `folder`; its weights are read later. `name` is the folder's where none is given.

    Remote code that a config points at (auto_map) is never run. InputError where a part is missing, broken, or
    quantized in a way that is not supported.
    """
    if not (folder / "config.json").is_file():
        raise InputError(_why_no_config(folder))
    config = Config(read_json(folder / "config.json"), str(folder / "config.json"))
    _refuse_quantized(config)
    tokenizer_config = _read_optional(folder / "tokenizer_config.json")
    special_tokens = _special_tokens(folder, tokenizer_config)
    text, tokenizer = _tokenizer(folder, tokenizer_config)
    eos = tokenizer.token_to_id(special_tokens["eos_token"]) if tokenizer and "eos_token" in special_tokens else None
    return Checkpoint(
        name=name or folder.resolve().name,
        format="safetensors",
        config=config,
        tensors=folder_tensors(folder),
        tokenizer=text,
        chat_template=_chat_template(folder, tokenizer_config),
        special_tokens=special_tokens,
        generation=_generation(folder, config, eos),
    )


def _why_no_config(folder: Path) -> str:
    if (folder / "adapter_config.json").exists():
        return f"{folder} is a LoRA adapter, not a model: merge it into its base model first"
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        return f"{folder} has no config.json: to load a GGUF file, name the file itself ({ggufs[0]})"
    return f"{folder} has no config.json, so it is no checkpoint in the Hugging Face layout"


def _refuse_quantized(config: Config) -> None:
    for key in ("quantization_config", "compression_config"):
        if config.values.get(key) is not None:
            method = config.section(key).text("quant_method", "an unnamed method")
            raise InputError(
                f"{config.origin}: weights quantized with {method} are not supported: give the float model"
            )


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None


def _tokenizer(folder: Path, tokenizer_config: dict[str, Any]) -> tuple[str, Tokenizer] | tuple[None, None]:
    """The text of tokenizer.json, or of one built from SentencePiece's tokenizer.model, and what it describes."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.exists():
        built = _from_sentencepiece(folder, tokenizer_config)
        return (str(built.to_str()), built) if built else (None, None)
    text = _read_text(path)
    try:
        return text, Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises plain Exceptions
        raise InputError(f"{path} is no tokenizer file that can be read: {error}") from None


def _from_sentencepiece(folder: Path, tokenizer_config: dict[str, Any]) -> Tokenizer | None:
    from tokenizers import AddedToken, Tokenizer

    from smc.frontend.sentencepiece import read_model

    path = folder / "tokenizer.model"
    if not path.exists():
        return None
    settings = Config(tokenizer_config, str(folder / "tokenizer_config.json"))
    tokenizer = Tokenizer.from_str(
        read_model(path, settings.flag("add_bos_token", True), settings.flag("add_eos_token", False))
    )
    for place, token, special in sorted(_added_tokens(folder, settings)):
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=special)])
        if tokenizer.token_to_id(token) != place:
            raise InputError(
                f"{folder}: the added token {token!r} should have id {place}, which does not fit {path.name}"
            )
    return tokenizer


def _added_tokens(folder: Path, settings: Config) -> list[tuple[int, str, bool]]:
    """Tokens beside those of tokenizer.model, as (id, text, special), in the old and in the new spelling."""
    special = set(_special_tokens(folder, dict(settings.values)).values())
    old = _read_optional(folder / "added_tokens.json")
    added = {place: (token, token in special) for token, place in old.items() if isinstance(place, int)}
    for place, token in settings.section("added_tokens_decoder").values.items():
        if place.isdecimal() and isinstance(token, dict) and isinstance(token.get("content"), str):
            added[int(place)] = token["content"], bool(token.get("special"))
    return [(place, token, is_special) for place, (token, is_special) in added.items()]


def _special_tokens(folder: Path, tokenizer_config: dict[str, Any]) -> dict[str, str]:
    """bos_token and the like as text; they are stored as strings or as objects with a "content"."""
    stored = {**_read_optional(folder / "special_tokens_map.json"), **tokenizer_config}
    found = {}
    for name in SPECIAL_TOKENS:
        token = stored.get(name)
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            found[name] = token
    return found


def _chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """The jinja source: its own file, else a string or the one called "default" in the tokenizer's config."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return _read_text(path)
    stored = tokenizer_config.get("chat_template")
    if isinstance(stored, list):
        stored = {t.get("name"): t.get("template") for t in stored if isinstance(t, dict)}.get("default")
    return stored if isinstance(stored, str) else None


def _generation(folder: Path, config: Config, eos: int | None) -> dict[str, Any]:
    """Sampling defaults and token ids; eos_token_id lists every id that ends a text, wherever it is declared.

    eos: the id of the tokenizer's eos_token.
    """
    stored = Config(_read_optional(folder / "generation_config.json"), str(folder / "generation_config.json"))
    found = {key: stored.values[key] for key in SAMPLING if isinstance(stored.values.get(key), (bool, int, float))}
    for key in ("bos_token_id", "pad_token_id"):
        ids = token_ids(stored, key) or token_ids(config, key)
        if ids:
            found[key] = ids[0]
    ends = token_ids(stored, "eos_token_id") + token_ids(config, "eos_token_id")
    ends += [] if eos is None else [eos]
    if ends:
        found["eos_token_id"] = list(dict.fromkeys(ends))
    return found


def token_ids(config: Config, name: str) -> list[int]:
    """Token ids of a config: one, several or none."""
    value = config.values.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise config.fault(name, "a token id or a list of them")
    return [i for i in ids if i >= 0]
