"""Chat templates: messages → the tokens of a prompt, as Hugging Face transformers renders them.

A template is code of the checkpoint's author, so it runs in jinja2's sandbox and sees plain data only.

Text of a control token in a message ("<|im_end|>") is never parsed as that token (control_tokens.py says which tokens
these are). If no message contains such text, the rendered prompt is tokenized as a whole: the ids are those of
transformers. Otherwise

 1. each such text in a message is replaced by a random mark before rendering, so that all control tokens in the
 rendered text come from the template itself,
 2. these become random aliases, and the marks become the texts that they stand for,
 3. a second tokenizer, which knows the aliases but no control token, encodes the whole prompt at once, so merges and
 leading spaces at the borders are as usual; the aliases' ids become the control tokens' ids.

Marks and aliases are random private-use characters, which no normalizer changes.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jinja2
from tokenizers import AddedToken, Tokenizer

from smc.errors import InputError
from smc.runtime.control_tokens import ControlTokens, control_tokens
from smc.runtime.template_language import template_environment

Message = Mapping[str, Any]


class BrokenTemplateError(InputError):
    """A template with a syntax error; `reason` is jinja's sentence."""

    def __init__(self, error: jinja2.TemplateError) -> None:
        line = getattr(error, "lineno", None)
        self.reason = f"{error.message or error}" + (f" (line {line})" if line else "")
        super().__init__(
            f"the model's chat template is broken: {self.reason}; continue plain text with smc run FILE PROMPT --raw"
        )


class ChatTemplate:
    """A chat template together with its tokenizer.

    source: jinja text. special_tokens: names ("bos_token", …) to token text, visible to the template. ends: ids of the
    tokens that end a text. Raises BrokenTemplateError where the template has a syntax error.
    """

    def __init__(
        self, source: str, tokenizer: Tokenizer, special_tokens: Mapping[str, str], ends: Iterable[int] = ()
    ) -> None:
        self.source = source
        self._tokenizer = tokenizer
        self._variables = dict(special_tokens)
        self._ends = frozenset(ends)
        try:
            self._template = template_environment().from_string(source)
        except jinja2.TemplateError as error:
            raise BrokenTemplateError(error) from None

    @cached_property
    def control(self) -> ControlTokens:
        """The tokens that messages can't contain."""
        return control_tokens(self._tokenizer, self.source, self._variables, self._ends)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any) -> str:
        """The prompt as text. Raises InputError if the template refuses the conversation.

        messages: dicts with "role" and "content". add_generation_prompt: end with the beginning of the assistant's
        answer. variables: other variables of the template (tools, enable_thinking, …).
        """
        names = self._variables | {"tools": None, "documents": None} | variables
        try:
            return self._template.render(
                messages=json.loads(json.dumps(list(messages))), add_generation_prompt=add_generation_prompt, **names
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise InputError(f"the model's chat template refuses this conversation: {error}") from None

    def encode(self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any) -> list[int]:
        """The prompt as tokens; text of control tokens in messages stays ordinary text (see the module)."""
        marks = _Marks(self.control)
        marked = [_map_strings(message, marks.of(_role(message))) for message in messages]
        variables = {name: _map_strings(value, marks.of(None)) for name, value in variables.items()}
        text = self.render(marked, add_generation_prompt, **variables)
        if not marks.needed:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        text = self.control.pattern.sub(lambda match: self._literal.aliases[match.group()], text)
        return self._literal.encode(marks.undone(text))

    def hides(self, text: str) -> bool:
        """Whether `text` contains a control token's text that answers must not contain."""
        return self.control.pattern_in_answers.search(text) is not None

    @cached_property
    def _literal(self) -> _LiteralTokenizer:
        return _LiteralTokenizer(self._tokenizer, self.control)


class _Marks:
    """Random marks in place of control tokens' texts; `needed` is true once a text could have become a control
    token."""

    def __init__(self, control: ControlTokens) -> None:
        self.needed = False
        self._control = control
        self._names: dict[str, str] = {}  # text → its mark

    def of(self, role: str | None) -> Callable[[str], str]:
        """A function that marks texts in a message of this role."""
        pattern = self._control.pattern_in_answers if role == "assistant" else self._control.pattern

        def marked(text: str) -> str:
            self.needed = self.needed or self._control.disguised(text)
            return pattern.sub(self._mark, text)

        return marked

    def _mark(self, match: re.Match[str]) -> str:
        self.needed = True
        return self._names.setdefault(match.group(), _private_text())

    def undone(self, text: str) -> str:
        """The text, with marks replaced by what they stand for."""
        originals = {name: original for original, name in self._names.items()}
        return re.sub("|".join(originals) or r"(?!)", lambda match: originals[match.group()], text)


def _role(message: Any) -> str | None:
    return message.get("role") if isinstance(message, Mapping) else None


class _LiteralTokenizer:
    """A tokenizer that reads control tokens' texts as ordinary text and random aliases as the control tokens."""

    def __init__(self, tokenizer: Tokenizer, control: ControlTokens) -> None:
        self.aliases = {text: _private_text() for text in control.ids}
        data = json.loads(tokenizer.to_str())
        for token in data["added_tokens"]:
            token["special"] = token["content"] in control.ids
        self._tokenizer = Tokenizer.from_str(json.dumps(data))
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.add_tokens(
            [
                AddedToken(self.aliases[text], lstrip=token.lstrip, rstrip=token.rstrip, normalized=token.normalized)
                for text, token in control.flags.items()
            ]
        )
        self._control_ids = set(control.ids.values()) - {_unknown_id(data["model"])}
        self._ids = {self._tokenizer.token_to_id(self.aliases[text]): number for text, number in control.ids.items()}

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; aliases give the control tokens that they stand for.

        Raises InputError if the tokenizer's model would make a control token from ordinary text.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not self._control_ids.isdisjoint(ids):
            made = next(number for number in ids if number in self._control_ids)
            name = self._tokenizer.id_to_token(made)
            raise InputError(
                f"a message contains the text of the special token {name!r}, which this tokenizer can't write as "
                "ordinary text; remove it from the message"
            )
        return [self._ids.get(number, number) for number in ids]


def _unknown_id(model: Mapping[str, Any]) -> int | None:
    """The id of characters outside the vocabulary; often a special token, but harmless."""
    unknown = model.get("unk_token")
    return model.get("unk_id") if unknown is None else model["vocab"].get(unknown)


def _private_text() -> str:
    """16 random private-use characters: about 200 bits."""
    return "".join(chr(0xE000 + secrets.randbelow(0x1900)) for _ in range(16))


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """`value` (of JSON's types) with every text in it changed, also keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_strings(key, change): _map_strings(part, change) for key, part in value.items()}
    return [_map_strings(part, change) for part in value] if isinstance(value, (list, tuple)) else value
