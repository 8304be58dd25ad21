"""Chat templates: messages → the tokens of a prompt, as Hugging Face transformers renders them.

A template is code of the checkpoint's author, so it runs in jinja2's sandbox and sees plain data only.

Text of a special token inside a message ("<|im_end|>") is never parsed as that token. Where no message contains such
text, which is the rule, the rendered prompt is tokenized whole: the ids are transformers'. Else

 1. each such text in a message is replaced by a random mark before rendering; what the template itself writes as a
    special token is then the only special token in the rendered text,
 2. these are rewritten as random aliases, and the marks as what they stood for,
 3. a second tokenizer, which knows the aliases but no special token, encodes the whole prompt in one go, so merges and
    leading spaces at the seams are as ever; aliases' ids become the special tokens' ids.

Marks and aliases are private-use characters, which no normalizer changes and nobody can guess.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from tokenizers import AddedToken, Tokenizer

from smc.errors import InputError

Message = Mapping[str, Any]


class ChatTemplate:
    """A chat template together with its tokenizer.

    source: jinja text. special_tokens: names ("bos_token", …) to token text, visible to the template.
    Raises InputError where the template has a syntax error.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._tokenizer = tokenizer
        self._variables = dict(special_tokens)
        try:
            self._template = template_environment().from_string(source)
        except jinja2.TemplateError as error:
            raise InputError(f"the model's chat template is broken: {error}; use --raw to run without it") from None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any) -> str:
        """The prompt as text. Raises InputError where the template refuses the conversation.

        messages: dicts with "role" and "content". add_generation_prompt: end where the assistant is to answer.
        variables: more that the template may read (tools, enable_thinking, …).
        """
        names = self._variables | {"tools": None, "documents": None} | variables
        try:
            return self._template.render(
                messages=json.loads(json.dumps(list(messages))), add_generation_prompt=add_generation_prompt, **names
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise InputError(f"the model's chat template refuses this conversation: {error}") from None

    def encode(self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any) -> list[int]:
        """The prompt as tokens; special-token text in messages stays ordinary text (see the module)."""
        if self._special_pattern is None or not _contains(messages, self._special_pattern):
            text = self.render(messages, add_generation_prompt, **variables)
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        marks: dict[str, str] = {}

        def mark(match: re.Match[str]) -> str:
            name = _private_text()
            marks[name] = match.group()
            return name

        marked = _map_strings(messages, lambda text: self._special_pattern.sub(mark, text))  # type: ignore[union-attr]
        text = self.render(marked, add_generation_prompt, **variables)
        text = self._special_pattern.sub(lambda match: self._literal.aliases[match.group()], text)
        for name, original in marks.items():
            text = text.replace(name, original)
        return self._literal.encode(text)

    def has_special_token(self, text: str) -> bool:
        """Whether the text of a special token occurs in `text`; in a message, the template never sees such text."""
        return self._special_pattern is not None and self._special_pattern.search(text) is not None

    @cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        """Matches the text of any special token, the longest at a place, as tokenizers does."""
        texts = sorted(_special_tokens(self._tokenizer), key=len, reverse=True)
        return re.compile("|".join(re.escape(text) for text in texts)) if texts else None

    @cached_property
    def _literal(self) -> _LiteralTokenizer:
        return _LiteralTokenizer(self._tokenizer)


class _LiteralTokenizer:
    """A tokenizer that takes special tokens' text as ordinary text and random aliases for the special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        special = _special_tokens(tokenizer)
        self.aliases = {text: _private_text() for text in special}
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.add_tokens(
            [
                AddedToken(self.aliases[text], lstrip=token.lstrip, rstrip=token.rstrip, normalized=token.normalized)
                for text, (_, token) in special.items()
            ]
        )
        self._special_ids = {number for number, _ in special.values()} - {_unknown_id(tokenizer)}
        self._ids = {self._tokenizer.token_to_id(self.aliases[text]): number for text, (number, _) in special.items()}

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, aliases as the special tokens they stand for.

        Raises InputError where the tokenizer's model itself would make a special token of ordinary text.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not self._special_ids.isdisjoint(ids):
            made = next(number for number in ids if number in self._special_ids)
            name = self._tokenizer.id_to_token(made)
            raise InputError(
                f"a message contains the text of the special token {name!r}, which this tokenizer can't write as "
                "ordinary text; remove it from the message"
            )
        return [self._ids.get(number, number) for number in ids]


def _special_tokens(tokenizer: Tokenizer) -> dict[str, tuple[int, AddedToken]]:
    """Text → (id, token) of the tokenizer's special tokens."""
    added = tokenizer.get_added_tokens_decoder()
    return {token.content: (number, token) for number, token in added.items() if token.special and token.content}


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """What characters outside the vocabulary become; often a special token, but no harm."""
    model = json.loads(tokenizer.to_str())["model"]
    unknown = model.get("unk_token")
    return model.get("unk_id") if unknown is None else tokenizer.token_to_id(unknown)


def _private_text() -> str:
    """16 random private-use characters: about 200 bits."""
    return "".join(chr(0xE000 + secrets.randbelow(0x1900)) for _ in range(16))


def _contains(value: Any, pattern: re.Pattern[str]) -> bool:
    """Whether any text in `value` (of JSON's types) matches."""
    if isinstance(value, str):
        return pattern.search(value) is not None
    if isinstance(value, Mapping):
        return any(_contains(part, pattern) for item in value.items() for part in item)
    return isinstance(value, (list, tuple)) and any(_contains(part, pattern) for part in value)


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """`value` (of JSON's types) with every text in it, keys too, changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_strings(key, change): _map_strings(part, change) for key, part in value.items()}
    return [_map_strings(part, change) for part in value] if isinstance(value, (list, tuple)) else value


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks assistant text for training; in a prompt it is just its content."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as an attribute of the instance)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def template_environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The sandbox, with the names and whitespace rules that Hugging Face templates are written for."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja's HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
