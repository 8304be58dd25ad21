"""What ends a turn, and what is said of tokenizers and templates that do not fit each other."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from smc.codegen.standalone import standalone_parts
from smc.codegen.texts import settle_texts
from smc.errors import InputError, Notice
from smc.frontend.config import Config
from smc.frontend.gguf_tokenizer import build_tokenizer, special_tokens
from smc.generation import GenerationDefaults
from smc.ir import ModelFacts
from smc.targets import find_target

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
FIRST = len(ALPHABET)


def tokenizer(*added: str, **flags: bool) -> str:
    """Bytes and added tokens."""
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(ALPHABET)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_tokens([AddedToken(text, **{"special": True, "normalized": False, **flags}) for text in added])
    return str(made.to_str())


def facts(text: str | None, template: str | None = None, ends: tuple[int, ...] = (), **changes: Any) -> ModelFacts:
    made = ModelFacts("some-model", "Llama", 8, FIRST + 8, text, template)
    return replace(made, generation=GenerationDefaults(eos_token_ids=ends), **changes)


def ends(made: ModelFacts) -> set[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        return set(settle_texts(made).generation.eos_token_ids)


def test_a_llama_3_gguf_ends_turns_as_llama_cpp_does() -> None:
    """Its eos is the end of texts; no key names the ends of turns and messages. llama.cpp has these three."""
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|eom_id|>", "<|eot_id|>"]
    kinds = [3, 3, 3, 1, 3]  # an old conversion: <|eom_id|> is called a normal token
    values = {
        "model": "gpt2",
        "pre": "llama-bpe",
        "tokens": [*ALPHABET, *names],
        "token_type": [1] * FIRST + kinds,
        "merges": [],
        "bos_token_id": FIRST,
        "eos_token_id": FIRST + 1,
    }
    metadata = Config({f"tokenizer.ggml.{key}": value for key, value in values.items()}, "model.gguf")
    made = facts(build_tokenizer(metadata), None, (FIRST + 1,), special_tokens=special_tokens(metadata))
    assert ends(made) == {FIRST + 1, FIRST + 3, FIRST + 4}
    settled = Tokenizer.from_str(made.tokenizer or "")
    assert settled.encode("<|eom_id|>", add_special_tokens=False).ids == [FIRST + 3]
    assert settled.decode([FIRST + 3]) == ""


@pytest.mark.parametrize("special", [True, False])
def test_what_the_template_writes_behind_an_answer_ends_a_turn(special: bool) -> None:
    text = tokenizer("<bos>", "<turn>", "<stop>", special=special)
    for template in (
        "{{ '<bos>' }}{% for m in messages %}<turn>{{ m.role }}: {{ m.content }}<stop>\n{% endfor %}",
        "{% for m in messages %}{{ m.content | trim }} {{ '<stop>' if m.role == 'assistant' }}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "<turn>{{ m.content }}<stop>{% endfor %}",
    ):
        assert ends(facts(text, template)) == {FIRST + 2}


def test_what_begins_a_turn_does_not_end_one() -> None:
    text = tokenizer("<turn>", "<stop>")
    template = "{% for m in messages %}<turn>{{ m.content }}{% endfor %}<turn>"
    assert ends(facts(text, template, (FIRST + 1,))) == {FIRST + 1}


@pytest.mark.parametrize("name", ["eos_token", "eot_token"])
def test_named_ends(name: str) -> None:
    assert ends(facts(tokenizer("<a>", "<b>"), special_tokens={name: "<b>"})) == {FIRST + 1}


def test_messages_of_harmony_are_no_turns() -> None:
    assert ends(facts(tokenizer("<|end|>"))) == {FIRST}
    assert ends(facts(tokenizer("<|end|>", "<|return|>", "<|call|>"))) == {FIRST + 1, FIRST + 2}


def test_what_can_not_work_is_refused() -> None:
    with pytest.raises(InputError, match=r"never end a text: its end tokens \[900\] do not belong to a tokenizer"):
        settle_texts(facts(tokenizer("<a>"), None, (900,)))
    with pytest.raises(InputError, match="the tokenizer of some-model can't be read"):
        settle_texts(facts("{}"))
    assert ends(facts(tokenizer("<a>"))) == set()  # a base model may name none


@pytest.mark.parametrize(
    ("made", "note"),
    [
        (facts(None), "some-model has no tokenizer that can be read"),
        (facts(tokenizer("<a>"), None, (900, FIRST)), r"some-model can't write the end tokens \[900\]"),
        (facts(tokenizer("</s>"), CHATML), r"writes <\|im_end\|>, <\|im_start\|>, no token of the tokenizer"),
        (facts(tokenizer("<|im_end|>"), CHATML), r"writes <\|im_start\|>, no token of the tokenizer"),
        (
            facts(tokenizer("<|im_end|>", *(f"<{i}>" for i in range(7)), "<|im_start|>"), CHATML),
            r"writes <\|im_start\|>, for which the model of 264 tokens has no embedding",
        ),
        (facts(tokenizer("<a>"), "{% for %}"), r"template of some-model is broken: .*Expected.* \(line 1\).*correct"),
        (facts(tokenizer("<a>"), "{{ 'x' | klingon }}"), "is broken: No filter named 'klingon'"),
    ],
)
def test_what_does_not_fit_is_said(made: ModelFacts, note: str) -> None:
    with pytest.warns(Notice, match=note) as caught:
        settle_texts(made)
    assert len(caught) == 1


def test_all_is_well_where_all_is_known() -> None:
    assert ends(facts(tokenizer("<|im_start|>", "<|im_end|>"), CHATML)) == {FIRST + 1}


def test_a_broken_template_stops_no_executable() -> None:
    parts = standalone_parts(facts(tokenizer("<a>"), "{% for %}"), find_target("native"))
    assert parts.no_chat is not None and parts.no_chat.startswith("is broken: ")
    assert list(parts.members) == ["tokenizer.tables"]
