"""Answers that end validate, whatever the model would rather say: logits are random."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest

from smc.errors import InputError
from smc.runtime import Model
from smc.runtime.generation import Generation, GenerationResult
from smc.runtime.speculation import PromptLookup
from smc.structured.constraint import GrammarConstraint, Grammars
from smc.structured.grammar import ANY_JSON, Grammar
from tests.runtime.conftest import VOCAB, byte_tokenizer


def written(model: Model, grammars: Grammars, grammar: Grammar, seed: int, most: int = 2000) -> GenerationResult:
    """A text by random logits, in which printable characters are likelier than other bytes."""
    random = np.random.default_rng(seed)
    likely = np.zeros(VOCAB, np.float32)
    likely[list(byte_tokenizer().encode("abcdefghijklmnopqrstuvwxyz0123456789").ids)] = 3
    options = model.generation_options(max_tokens=most)
    generation = Generation([1], options, byte_tokenizer(), 10_000, grammars.constraint(grammar))
    while not generation.done:
        generation.advance((likely + random.normal(0, 1, VOCAB)).astype(np.float32))
    return generation.result


DEFINITIONS = {
    "switch": {"type": "boolean"},
    "pair": {"type": "array", "items": {"$ref": "#/$defs/switch"}, "maxItems": 2},
}


def random_value(random: np.random.Generator) -> dict[str, Any]:
    """A schema of values without parts."""

    def number(low: int, high: int) -> int:
        return int(random.integers(low, high))

    low = number(-1000, 1000)
    formats = ("date", "ipv4", "ipv6", "uuid", "email")
    kinds: list[dict[str, Any]] = [
        {"type": "string", "minLength": number(0, 4), "maxLength": number(4, 12)},
        {"type": "string", "pattern": r"^[a-c]{1,4}-\d{2,3}$"},
        {"type": "string", "format": formats[number(0, len(formats))]},
        {"type": "integer", "minimum": low, "maximum": low + number(0, 2000)},
        {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + number(2, 2000)},
        {"type": "integer", "multipleOf": number(2, 9), "minimum": 0, "maximum": 500},
        {"type": "number", "minimum": 0, "maximum": number(1, 50)},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": number(1, 50)},
        {"type": ["boolean", "null"], "title": "A switch", "description": "On, off or unknown."},
        {"type": "null"},
        {"enum": [f"choice {i}" for i in range(number(1, 5))] + [None, 7]},
        {"const": number(0, 100)},
        {"const": {"a": [1, "é"]}},
        {"allOf": [{"type": "integer", "minimum": low}, {"maximum": low + number(0, 50)}]},
        {"$ref": "#/$defs/pair"},
    ]
    return kinds[number(0, len(kinds))]


def random_schema(random: np.random.Generator, depth: int = 0) -> dict[str, Any]:
    """Of the supported keywords, with bounded strings, arrays and objects."""

    def part() -> dict[str, Any]:
        return random_schema(random, depth + 1)

    kind = random.choice(["value", "value", "object", "object", "map", "array", "tuple", "anyOf", "oneOf"])
    low, more = int(random.integers(0, 3)), int(random.integers(0, 4))
    if depth == 3 or kind == "value":
        return random_value(random)
    if kind == "object":
        names = [f"key{i}" for i in range(int(random.integers(0, 5)))]
        properties = {name: part() for name in names}
        required = [name for name in names if random.random() < 0.6]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if kind == "map":
        named: dict[str, Any] = {"additionalProperties": part()}
        if low:
            named = {"patternProperties": {"^n[0-9]{1,3}$": part()}, "additionalProperties": False}
        return {"type": "object", "minProperties": low, "maxProperties": low + more, **named}
    if kind == "array":
        return {"type": "array", "items": part(), "minItems": low, "maxItems": low + more}
    if kind == "tuple":
        first = [part(), part()]
        return {"type": "array", "prefixItems": first, "items": part(), "minItems": low, "maxItems": 2 + more}
    if kind == "anyOf":
        return {"anyOf": [part(), part()]}
    return {"oneOf": [{"type": "null"}, {"type": "array", "items": part(), "maxItems": 1 + low}]}


def check_schemas(model: Model, grammars: Grammars, seeds: range) -> None:
    stopped = 0
    for seed in seeds:
        schema = {**random_schema(np.random.default_rng(seed)), "$defs": DEFINITIONS}
        result = written(model, grammars, Grammar.of_schema(schema), seed)
        assert result.finish_reason in ("stop", "length")
        if result.finish_reason == "stop":
            stopped += 1
            form = jsonschema.Draft202012Validator
            jsonschema.validate(json.loads(result.text), schema, form, format_checker=form.FORMAT_CHECKER)
    assert stopped > 0.8 * len(seeds)  # numbers may have any number of digits


def test_answers_validate(model: Model, grammars: Grammars):
    check_schemas(model, grammars, range(60))


@pytest.mark.slow
def test_answers_of_a_thousand_schemas_validate(model: Model, grammars: Grammars):
    check_schemas(model, grammars, range(1000, 2000))


def test_recursive_schemas(model: Model, grammars: Grammars):
    tree = {
        "$defs": {"tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}, "n": {"type": "boolean"}},
                           "required": ["n"], "additionalProperties": False}},
        "$ref": "#/$defs/tree",
    }  # fmt: skip
    result = written(model, grammars, Grammar.of_schema(tree), 3)
    if result.finish_reason == "stop":
        jsonschema.validate(json.loads(result.text), tree)


def test_regular_expressions_and_grammars(model: Model, grammars: Grammars):
    pattern = r"[A-Z][a-z]{2,5} (one|two) \d{3}"
    assert re.fullmatch(pattern, written(model, grammars, Grammar("regex", pattern), 1).text)
    lark = 'start: sum "="\nsum: NUMBER | NUMBER "+" sum\nNUMBER: /[1-9][0-9]?/\n'
    assert re.fullmatch(r"[1-9]\d?(\+[1-9]\d?)*=", written(model, grammars, Grammar("lark", lark), 2).text)


def test_any_object(model: Model, grammars: Grammars):
    result = written(model, grammars, ANY_JSON, 5, most=4000)
    if result.finish_reason == "stop":
        assert isinstance(json.loads(result.text), dict)


@pytest.mark.parametrize(
    ("grammar", "named"),
    [
        (Grammar.of_schema({"type": "string", "not": {"const": "x"}}), "not"),
        (Grammar.of_schema({"type": "bogus"}), "JSON schema can't be used"),
        (Grammar.of_schema({"$ref": "#/nowhere"}), "JSON schema can't be used"),
        (Grammar("regex", "(unclosed"), "regular expression can't be used"),
        (Grammar("lark", "start: nothing"), "grammar can't be used"),
        (Grammar("regex", "x" * (2 << 20)), "larger than 1 MiB"),
    ],
    ids=["keyword", "type", "reference", "regex", "lark", "size"],
)
def test_what_can_not_be_followed_is_refused(grammars: Grammars, grammar: Grammar, named: str):
    with pytest.raises(InputError, match=re.escape(named)):
        grammars.constraint(grammar)


def test_the_model_alone(model: Model, grammars: Grammars):
    """Through the engine: greedy among what is allowed."""
    schema = {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 2, "maxItems": 2}
    result = model.generate("x", constraint=grammars.constraint(Grammar.of_schema(schema)))
    jsonschema.validate(json.loads(result.text), schema)
    assert result.finish_reason == "stop"


def test_certain_text_is_guessed_which_changes_no_token(
    model: Model, grammars: Grammars, monkeypatch: pytest.MonkeyPatch
):
    names = {"name": {"enum": ["red", "blue"]}, "age": {"type": "integer", "minimum": 0, "maximum": 9}}
    schema = {"type": "object", "properties": names, "required": ["name", "age"], "additionalProperties": False}

    def generate(**options: Any) -> GenerationResult:
        return model.generate("x", constraint=grammars.constraint(Grammar.of_schema(schema)), **options)

    for options in ({}, {"temperature": 1.0, "seed": 5}, {"drafter": PromptLookup()}, {"max_tokens": 4}):
        guessed = generate(**options)
        with monkeypatch.context() as patch:
            patch.setattr(GrammarConstraint, "foresee", lambda self: [])
            assert generate(**options).tokens == guessed.tokens
        assert guessed.timings.right_guesses > 0
        assert guessed.timings.decoded_tokens == len(guessed.tokens) - 1
