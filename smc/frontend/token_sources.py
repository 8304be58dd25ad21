"""The tokens that a Hugging Face folder names beside its vocabulary, from all files that may name them.

Precedence is that of transformers 5: where tokenizer_config.json has `added_tokens_decoder`, it says which tokens were
added and how they are found (`special`, `lstrip`, …), also where tokenizer.json says otherwise. Else
special_tokens_map.json, added_tokens.json and the `added_tokens` of tokenizer.json do, and the later ones win.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from smc.errors import InputError
from smc.frontend.config import Config
from smc.frontend.files import read_optional_json

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class TokenSources:
    """The tokens of a folder's files.

    by_id: added tokens with the ids that they must have. named: "bos_token" and the like, those of the model's own
    ("image_token") too. extra: more special tokens.
    """

    by_id: dict[int, AddedToken] = field(default_factory=dict)
    named: dict[str, AddedToken] = field(default_factory=dict)
    extra: list[AddedToken] = field(default_factory=list)

    def texts(self) -> dict[str, str]:
        """Name → text of the named tokens."""
        return {name: token.content for name, token in self.named.items()}


def read_sources(folder: Path, settings: Config, in_tokenizer_file: Iterable[Mapping[str, Any]]) -> TokenSources:
    """All that the folder's files say.

    settings: tokenizer_config.json. in_tokenizer_file: the `added_tokens` of tokenizer.json. InputError, which names
    file and key, where a token is not what it should be.
    """
    named, extra = _named(settings), _extra(settings)
    declared = settings.section("added_tokens_decoder")
    if not declared.values:
        special_map = _optional(folder / "special_tokens_map.json")
        named |= _named(special_map)
        extra += _extra(special_map)
    special = {token.content for token in (*named.values(), *extra)}
    by_id = {}
    added = _optional(folder / "added_tokens.json")
    for text, number in added.values.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise added.fault(text, "a token id")
        if text in special or not declared.values:
            by_id[number] = AddedToken(text, normalized=text not in special, special=text in special)
    if declared.values:
        by_id |= _declared(declared)
    else:
        by_id |= {int(token["id"]): _token(token, {}, settings, "added_tokens") for token in in_tokenizer_file}
    return _complete(TokenSources(by_id, named, extra))


def add_tokens(tokenizer: Tokenizer, sources: TokenSources, origin: str) -> None:
    """Let `tokenizer` know the tokens, as transformers does.

    A token that it already has keeps its id, gets the flags of the sources, and stays special where it was. origin: for
    the InputError if a new token can't have the id that it must have.
    """
    before = tokenizer.get_added_tokens_decoder().values()
    known, special = {token.content for token in before}, {token.content for token in before if token.special}
    declared = [token for _, token in sorted(sources.by_id.items())]
    listed = known | {token.content for token in declared}
    others = [token for token in (*sources.named.values(), *sources.extra) if token.content not in listed]
    ids = {number: token.content for number, token in sources.by_id.items()}
    new = {number: text for number, text in ids.items() if tokenizer.token_to_id(text) is None}
    tokenizer.add_tokens([_flagged(t, t.special or t.content in special) for t in (*declared, *others)])
    for number, text in new.items():
        if tokenizer.token_to_id(text) != number:
            raise InputError(
                f"{origin}: the added token {text!r} should have id {number}, which does not fit a vocabulary where "
                f"the next id is {tokenizer.token_to_id(text)}"
            )


def _complete(sources: TokenSources) -> TokenSources:
    """Named tokens are special, and are the added ones of the same text."""
    named_texts = {token.content for token in sources.named.values()}
    by_id = {n: _flagged(t, t.special or t.content in named_texts) for n, t in sources.by_id.items()}
    by_text = {token.content: token for token in by_id.values()}
    named = {name: by_text.get(t.content, _flagged(t, True)) for name, t in sources.named.items()}
    extra = [_flagged(t, t.special or t.content in named_texts) for t in sources.extra]
    return TokenSources(by_id, named, extra)


def _flagged(token: AddedToken, special: bool) -> AddedToken:
    """The token, special or not; its other flags stay."""
    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=special,
    )


def _token(value: Any, default: Mapping[str, Any], config: Config, name: str) -> AddedToken:
    """A token that is stored as a string or as an object with a "content"; missing flags are those of `default`."""
    flags = dict(default)
    if isinstance(value, dict):
        flags |= value
        value = value.get("content")
    flags = {flag: flags[flag] for flag in FLAGS if flags.get(flag) is not None}
    if not isinstance(value, str) or not all(isinstance(flag, bool) for flag in flags.values()):
        raise config.fault(name, "a token: its text, or an object with its content and flags that are true or false")
    return AddedToken(value, **flags)


def _named(config: Config) -> dict[str, AddedToken]:
    """The tokens with names, those that every tokenizer knows first; empty ones are none."""
    names = [*NAMES, *(name for name in config.values if name.endswith("_token") and name not in NAMES)]
    found = {name: config.values.get(name) for name in names}
    own = config.values.get("extra_special_tokens")
    found |= own if isinstance(own, dict) else {}
    return {
        name: _token(value, {"special": True}, config, name)
        for name, value in found.items()
        if (isinstance(value, str) and value) or (isinstance(value, dict) and value.get("content"))
    }


def _extra(config: Config) -> list[AddedToken]:
    found = []
    for name in ("extra_special_tokens", "additional_special_tokens"):
        listed = config.values.get(name)
        if isinstance(listed, list):
            found += [_token(value, {"special": True}, config, name) for value in listed]
        elif listed is not None and not isinstance(listed, dict):
            raise config.fault(name, "a list of tokens")
    return [token for token in found if token.content]


def _declared(decoder: Config) -> dict[int, AddedToken]:
    """`added_tokens_decoder`: an object by id, where a flag that is missing is false."""
    found = {}
    for number, value in decoder.values.items():
        if not number.isdecimal() or not isinstance(value, dict):
            raise decoder.fault(number, "a token (an object with its content and its flags) under its id")
        token = _token(value, {}, decoder, number)
        if token.content:
            found[int(number)] = token
    return found


def _optional(path: Path) -> Config:
    return Config(read_optional_json(path), str(path))
