"""Checks a model's tokenizer and chat template, and finds the tokens that end a turn, before anything is built.

A turn is ended by every token that the checkpoint names for it, by well-known ones that the tokenizer has, and by what
the chat template writes behind an answer. A model that could never end a text is refused; other problems, such as
markers that are not tokens, are Notices.
"""

from __future__ import annotations

import re
import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from tokenizers import Tokenizer

from smc.errors import InputError, Notice, blamed_on
from smc.generation import END_TEXTS
from smc.ir import ModelFacts
from smc.runtime.chat import BrokenTemplateError, ChatTemplate, Message

ENDS = ("eos_token", "eot_token", "eom_token")
MARKER = re.compile(r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|<(?:start|end)_of_\w+>|</?s>|<(?:bos|eos)>")
"""Texts that look like control tokens in common templates."""

HARMONY = {"<|return|>", "<|call|>"}
"""Tokenizers with both of them end a message with <|end|>, not a turn."""


def settle_texts(facts: ModelFacts) -> ModelFacts:
    """The facts with every token that ends a turn; Notices report problems of tokenizer and template.

    InputError if the checkpoint names ends, but none that the model could write.
    """
    if facts.tokenizer is None:
        kinds = "tokenizer.json, tokenizer.model, or vocab.json with merges.txt"
        _note(f"{facts.name} has no tokenizer that can be read ({kinds}): it will take token ids, not text")
        return facts
    with blamed_on(f"the tokenizer of {facts.name} can't be read"):
        tokenizer = Tokenizer.from_str(facts.tokenizer)
    added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    template = None
    if facts.chat_template is not None:
        try:
            template = ChatTemplate(
                facts.chat_template, tokenizer, facts.special_tokens, facts.generation.eos_token_ids
            )
        except BrokenTemplateError as error:
            _note(
                f"the chat template of {facts.name} is broken: {error.reason}; the artifact continues plain text "
                "(--raw); for chats correct the template in the checkpoint and compile again"
            )
    ends = list(dict.fromkeys(_ends(facts, tokenizer, added, template)))
    known = [number for number in ends if number < facts.vocab_size and tokenizer.id_to_token(number) is not None]
    if ends and not known:
        raise InputError(
            f"{facts.name} could never end a text: its end tokens {ends} do not belong to a tokenizer and a model of "
            f"{facts.vocab_size}; correct eos_token_id in generation_config.json or config.json"
        )
    if strange := [number for number in ends if number not in known]:
        _note(f"the model {facts.name} can't write the end tokens {strange}: they are left out")
    if template is not None:
        _check_markers(template, added, facts.vocab_size)
    return replace(facts, generation=replace(facts.generation, eos_token_ids=tuple(known)))


def _note(sentence: str) -> None:
    warnings.warn(sentence, Notice, stacklevel=2)


def _ends(
    facts: ModelFacts, tokenizer: Tokenizer, added: Mapping[str, int], template: ChatTemplate | None
) -> Iterator[int]:
    """Every token that ends a turn, those that the checkpoint names first."""
    yield from facts.generation.eos_token_ids
    for name in ENDS:
        number = tokenizer.token_to_id(facts.special_tokens.get(name, ""))
        if number is not None:
            yield number
    found = [added[text] for text in END_TEXTS if text in added and not (text == "<|end|>" and added.keys() >= HARMONY)]
    if template is not None and (end := _end_of_answer(template)) is not None:
        found.append(added.get(end, -1))
    yield from (number for number in found if 0 <= number < facts.vocab_size)


def _end_of_answer(template: ChatTemplate) -> str | None:
    """The control token that the template writes behind an answer; None if it writes none or begins a turn."""
    question, answer = _mark(), _mark()
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    text = _rendered(template, messages, False) or ""
    before, found, behind = text.partition(answer)
    asked, _, between = before.partition(question)
    begins = {tokens[-1] for part in (asked, between) if (tokens := template.control.pattern.findall(part))}
    match = template.control.pattern.match(behind.lstrip())
    return match.group() if found and match and match.group() not in begins else None


def _check_markers(template: ChatTemplate, added: Mapping[str, int], vocab_size: int) -> None:
    """Notice the markers that the template writes, but that are not one token each."""
    system, question, answer = ({"role": role, "content": _mark()} for role in ("system", "user", "assistant"))
    texts = [
        _rendered(template, messages, True) or ""
        for messages in ([system, question, answer, question], [question, answer, question], [question])
    ]
    markers = sorted({marker for text in texts for marker in MARKER.findall(text)})
    if cut := [marker for marker in markers if marker not in added]:
        _note(
            f"the chat template writes {', '.join(cut)}, no token of the tokenizer: it is split into letters, which is "
            "right only if the model was trained with it"
        )
    if beyond := [marker for marker in markers if added.get(marker, 0) >= vocab_size]:
        _note(
            f"the chat template writes {', '.join(beyond)}, for which the model of {vocab_size} tokens has no "
            "embedding: chats will be refused (--raw continues plain text)"
        )


def _rendered(template: ChatTemplate, messages: Sequence[Message], prompt: bool) -> str | None:
    """None if the template refuses the conversation."""
    try:
        return template.render(messages, add_generation_prompt=prompt)
    except InputError:
        return None


def _mark() -> str:
    """A text that no template has."""
    return secrets.token_hex(16)
