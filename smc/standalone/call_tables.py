"""The functions of an executable as tables (`functions.tables`), which c/calls.c uses in place.

They hold the automaton of the calls, the vocabulary in the order of its bytes, so that a mask is found in one pass over
it, the names of functions and arguments, and the prompt of function tokens.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from smc.errors import InputError
from smc.ir import ceil_div
from smc.runtime.token_texts import TokenTexts
from smc.standalone.automaton import MOST_STATES, Automaton, TokenEdge
from smc.standalone.call_forms import properties_of, template_calls, token_calls
from smc.structured.functional_tokens import PROMPT, end_token, with_tokens
from smc.structured.functions import Function
from smc.structured.tool_calls import form_of, knows_tools, tools_message

MAGIC, VERSION = 0x6C6C6163, 1
ALIGNMENT = 8  # bytes
DEAD, RETURN, NO_CALL = 0xFFFF, 0xFFFE, 0xFFFF
MAY_END, MUST_END = 1, 2
MOST_TOKEN_BYTES = 255
assert MOST_STATES <= RETURN


@dataclass(frozen=True)
class CallTables:
    """data: the member. tokens: whether the calls begin with function tokens; else they are as `template` shows them,
    which writes the functions into the prompt."""

    data: bytes
    tokens: bool
    template: str | None


def call_tables(
    functions: Sequence[Function], tokenizer: Tokenizer, vocab_size: int, template: str | None
) -> CallTables:
    """Of an executable that answers with calls of `functions`.

    template: the model's chat template. InputError where it has neither function tokens nor a template, and for
    functions whose arguments have no form in an executable.
    """
    added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    end = end_token(tokenizer)
    if end is not None:
        functions = with_tokens(functions, end)
        missing = [function.token for function in functions if function.token not in added]
        if missing:
            raise InputError(f"the model has no token {missing[0]}, which a function of its place needs: give fewer")
        numbers = [added[function.token or ""] for function in functions]
        automaton = token_calls(functions, numbers, added[end])
        before, _, after = PROMPT.partition("{query}")
        return CallTables(_tables(automaton, functions, tokenizer, vocab_size, (before, after)), True, template)
    if template is None:
        raise InputError("the model has neither function tokens nor a chat template: it can't call functions")
    automaton = template_calls(functions, form_of(template), added)
    data = _tables(automaton, functions, tokenizer, vocab_size, None)
    return CallTables(data, False, _with_functions(template, functions))


def _with_functions(template: str, functions: Sequence[Function]) -> str:
    """The template with the functions in it: by its own words for tools, or in the system message."""
    if knows_tools(template):
        return f"{{%- set tools = {_jinja([function.as_tool() for function in functions])} -%}}{template}"
    tools = _jinja(tools_message(functions))
    return (
        "{%- if messages and messages[0]['role'] == 'system' -%}"
        "{%- set messages = [{'role': 'system', 'content': messages[0]['content'] ~ '\\n\\n' ~ "
        f"{tools}}}] + messages[1:] -%}}"
        f"{{%- else -%}}{{%- set messages = [{{'role': 'system', 'content': {tools}}}] + messages -%}}{{%- endif -%}}"
        f"{template}"
    )


def _jinja(value: Any) -> str:
    """A value of JSON as jinja reads it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_jinja(name)}: {_jinja(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_jinja, value)) + "]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return {True: "true", False: "false", None: "none"}[value] if value in (True, False, None) else repr(value)


# ---- the member


def _tables(
    automaton: Automaton,
    functions: Sequence[Function],
    tokenizer: Tokenizer,
    vocab_size: int,
    prompt: tuple[str, str] | None,
) -> bytes:
    """Header and sections, all numbers little-endian; c/calls.h says what they are. prompt: None: by a template."""
    classes, steps = _byte_steps(automaton)
    texts = bytearray()

    def span(value: str) -> bytes:
        data = value.encode()
        texts.extend(data)
        return struct.pack("<2I", len(texts) - len(data), len(data))

    edges = _token_edges(automaton)
    order, common, added, suffixes = _vocabulary(tokenizer, vocab_size)
    named, arguments = b"", b""
    for function in functions:
        names = list(properties_of(function))
        named += span(function.name) + span(function.token or "")
        named += struct.pack("<2I", len(arguments) // 8, len(names))
        arguments += b"".join(map(span, names))
    before, after = map(span, prompt or ("", ""))
    sections: list[tuple[bytes, int]] = [  # data, bytes of an element: in the header's order
        (classes.tobytes(), 1),
        (steps.astype("<u2").tobytes(), 2),
        (bytes(_flags(automaton)), 1),
        (edges, 12),
        (order.astype("<i4").tobytes(), 4),
        (common.tobytes(), 1),
        (added.tobytes(), 1),
        (suffixes, 1),
        (named, 24),
        (arguments, 8),
        (bytes(texts), 1),
    ]
    size = 4 * 6 + 16 + 8 * len(sections)
    block = bytearray(ceil_div(size, ALIGNMENT) * ALIGNMENT)
    places = []
    for data, width in sections:
        places.append((len(block), len(data) // width))
        block += data + bytes(-len(data) % ALIGNMENT)
    header = struct.pack("<6I", MAGIC, VERSION, len(block), len(automaton.next), steps.shape[1], prompt is not None)
    header += before + after + b"".join(struct.pack("<2I", *place) for place in places)
    block[: len(header)] = header
    return bytes(block)


def _flags(automaton: Automaton) -> list[int]:
    """By state: whether the text may, and whether it must end there."""
    return [
        (MAY_END | (0 if edges else MUST_END)) if state in automaton.ends else 0
        for state, edges in enumerate(automaton.next)
    ]


def _byte_steps(automaton: Automaton) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """A class for each byte, and the next state by state and class: `RETURN` where a called automaton ends.

    An automaton that is called ends in a state that nothing leaves, so the step into it is the return.
    """
    table = np.full((len(automaton.next), 256), DEAD, np.uint16)
    for state, edges in enumerate(automaton.next):
        for label, target in edges.items():
            if not isinstance(label, TokenEdge):
                returns = automaton.entries and target in automaton.ends and not automaton.next[target]
                table[state, label] = RETURN if returns else target
    columns, classes = np.unique(table, axis=1, return_inverse=True)
    return classes.reshape(256).astype(np.uint8), columns


def _token_edges(automaton: Automaton) -> bytes:
    """(state, token, next state, state behind the call or NO_CALL), in the order of the states."""
    packed = b""
    for state, edges in enumerate(automaton.next):
        for label, target in edges.items():
            if isinstance(label, TokenEdge):
                called = label.calls is not None
                to, behind = (automaton.entries[label.calls or 0], target) if called else (target, NO_CALL)
                packed += struct.pack("<IiHH", state, label.token, to, behind)
    return packed


def _vocabulary(
    tokenizer: Tokenizer, vocab_size: int
) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.uint8], bytes]:
    """Tokens that are text, in the order of their bytes: ids, how many bytes each has in common with the one before it,
    how many more it has, and these."""
    texts = TokenTexts(tokenizer)
    added = tokenizer.get_added_tokens_decoder()
    listed = sorted(
        (data, number)
        for number in range(vocab_size)
        if number not in added and 0 < len(data := texts.bytes_of(number)) <= MOST_TOKEN_BYTES
    )
    common, suffixes, before = np.zeros(len(listed), np.uint8), bytearray(), b""
    for place, (data, _) in enumerate(listed):
        shared = 0
        while shared < min(len(before), len(data)) and before[shared] == data[shared]:
            shared += 1
        common[place] = shared
        suffixes += data[shared:]
        before = data
    lengths = np.array([len(data) for data, _ in listed], np.uint8)
    return np.array([number for _, number in listed], np.int32), common, lengths - common, bytes(suffixes)
