"""Chat templates as pieces: the same prompts as jinja's, or none."""

from __future__ import annotations

import re
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from smc.errors import InputError
from smc.runtime.chat import ChatTemplate
from smc.standalone.chat_pieces import MAGIC, ChatPieces, EmptySystem, Kind, Place, Role, all_keys, place, turn_keys
from smc.standalone.chat_split import Unsplittable, chat_pieces, split_chat_template

from .chat_templates import LLAMA2, QWEN3, SMOLLM2, TEMPLATES, UNSPLITTABLE

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
NOW = datetime(2027, 7, 4, 13, 2, 1)

# Beside any text: white space, texts that templates look for, and pieces of the templates themselves.
CONTENTS = st.lists(
    st.one_of(
        st.text(max_size=4),
        st.sampled_from(
            [" ", "\n", "\t", "\u3000", "\x1c", "\u200b", "</think>", "<think>", "</s>", "<|im_end|>", "[/INST]", "{{"]
        ),
    ),
    max_size=6,
).map("".join)


def template(source: str, special: tuple[str, ...] = ()) -> ChatTemplate:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_special_tokens([AddedToken(text) for text in special])
    return ChatTemplate(source, tokenizer, SPECIAL_TOKENS)


def split(source: str) -> ChatPieces:
    pieces = split_chat_template(template(source))
    assert isinstance(pieces, ChatPieces), pieces
    return pieces


@pytest.fixture(scope="module")
def splits() -> dict[str, tuple[ChatTemplate, ChatPieces]]:
    return {name: (template(source), split(source)) for name, source in TEMPLATES.items()}


def conversation(contents: list[str], system: str | None) -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return ([] if system is None else [{"role": "system", "content": system}]) + turns


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=25, deadline=None)
@given(contents=st.lists(CONTENTS, min_size=1, max_size=9), system=st.none() | CONTENTS)
def test_what_pieces_write_is_what_jinja_writes(
    splits: dict[str, tuple[ChatTemplate, ChatPieces]], name: str, contents: list[str], system: str | None
) -> None:
    whole, pieces = splits[name]
    messages = conversation(contents[: len(contents) - 1 | 1], system)  # an odd number: a user is last
    try:
        got = pieces.render(messages, NOW)
    except InputError:
        return  # refused, as test_what_is_refused says
    assert got == whole.render(messages, strftime_now=NOW.strftime)


# What pieces refuse beyond what the template refuses itself; each is a limit that users meet.
GUARDS = {
    "llama-2": {(True, Role.USER, False, "")},  # .strip() goes through an empty question into the system message
    "qwen3": {(system, Role.USER, False, "<tool_response>") for system in (False, True)},
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_refused(splits: dict[str, tuple[ChatTemplate, ChatPieces]], name: str) -> None:
    guards = {
        (system, role, piece.system, piece.text)
        for (system, role, _), listed in splits[name][1].lists.items()
        for piece in listed
        if piece.kind is Kind.GUARD
    }
    assert guards == GUARDS.get(name, set())


@pytest.mark.parametrize(
    ("name", "contents", "system", "word"),
    [
        ("gemma", ["a"], "s", "System role not supported"),
        ("mistral-v1", ["a"], "s", "roles must alternate"),
        ("alpaca", ["a", "b", "c"], None, "one instruction"),
        ("llama-2", [" "], "s", "empty message"),
        ("qwen3", ["<tool_response>a</tool_response>"], None, "'<tool_response>'"),
    ],
)
def test_refusals_say_why(
    splits: dict[str, tuple[ChatTemplate, ChatPieces]], name: str, contents: list[str], system: str | None, word: str
) -> None:
    with pytest.raises(InputError, match=re.escape(word)):
        splits[name][1].render(conversation(contents, system))


@pytest.mark.parametrize("name", UNSPLITTABLE)
def test_templates_that_have_no_pieces(name: str) -> None:
    source, word = UNSPLITTABLE[name]
    answer = split_chat_template(template(source))
    assert isinstance(answer, Unsplittable)
    assert word in str(answer)


def test_two_user_messages_that_only_together_change_a_third_are_found() -> None:
    """Qwen 3 keeps the thoughts of an answer when all questions after it look like a tool's."""
    whole, pieces = template(QWEN3), split(QWEN3)
    messages = conversation(["q", "<think>t</think>\n\na", "<tool_response>r</tool_response>"], None)
    assert "<think>" in whole.render(messages)
    with pytest.raises(InputError):
        pieces.render(messages)
    messages[-1]["content"] = "r"
    assert pieces.render(messages) == whole.render(messages)
    assert "<think>" not in pieces.render(messages)


def test_texts_of_special_tokens_are_no_texts_to_look_for() -> None:
    """Templates never see them in messages, so a cut after one would change what the user wrote."""
    pieces = split_chat_template(template(QWEN3, special=("</think>", "<tool_response>")))
    assert isinstance(pieces, ChatPieces)
    parts = [piece for listed in pieces.lists.values() for piece in listed]
    assert not any(piece.kind is Kind.GUARD or (piece.kind is Kind.CONTENT and piece.text) for piece in parts)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [("vicuna", EmptySystem.NONE_IF_BLANK), ("smollm2", EmptySystem.MESSAGE), ("llama-2", EmptySystem.MESSAGE)],
)
def test_what_an_empty_system_message_means(
    splits: dict[str, tuple[ChatTemplate, ChatPieces]], name: str, meaning: EmptySystem
) -> None:
    assert splits[name][1].empty_system is meaning


def test_an_empty_but_not_a_blank_system_message_is_none() -> None:
    source = LLAMA2.replace("system_message != false", "system_message")
    assert split(source).empty_system is EmptySystem.NONE_IF_EMPTY


def test_dates_are_written_when_the_prompt_is_made(splits: dict[str, tuple[ChatTemplate, ChatPieces]]) -> None:
    text = splits["llama-3.2"][1].render(conversation(["a"], None), NOW)
    assert "Today Date: 04 Jul 2027\n" in text


def test_places() -> None:
    assert [place(i, 3) for i in range(3)] == [Place.FIRST, Place.MIDDLE, Place.LAST]
    assert place(0, 1) is Place.ONLY
    assert turn_keys(3, True) == [
        (True, Role.USER, Place.FIRST),
        (True, Role.ASSISTANT, Place.ONLY),
        (True, Role.USER, Place.LAST),
        (True, Role.END, Place.LAST),
    ]


def test_members_are_deterministic_and_small() -> None:
    tokenizer = Tokenizer(models.BPE()).to_str()
    first, second = (chat_pieces(SMOLLM2, tokenizer, SPECIAL_TOKENS) for _ in range(2))
    assert isinstance(first, bytes)
    assert first == second
    assert first.startswith(MAGIC)
    assert first.count(b"You are a helpful AI assistant") == 1
    assert len(first) < 1000
    assert len(list(all_keys())) == 24


def test_a_broken_template_is_told_as_such() -> None:
    answer = chat_pieces("{% for %}", Tokenizer(models.BPE()).to_str(), SPECIAL_TOKENS)
    assert isinstance(answer, Unsplittable)
    assert "broken" in str(answer)
