"""Functions from files, calls in the templates' forms, and function tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from smc.errors import InputError
from smc.runtime import Model
from smc.runtime.generation import Generation
from smc.structured.constraint import Grammars
from smc.structured.functional_tokens import Call, grammar_of, parse, with_tokens
from smc.structured.functions import Function, functions_of_tools, read_functions
from smc.structured.tool_calls import ToolCall, calls_grammar, form_of, parse_calls
from tests.runtime.conftest import VOCAB, byte_tokenizer
from tests.structured.test_constraint import written

SOURCE = '''
from typing import Literal

def set_light(room: str, on: bool = True, level: int = 100):
    """Switch a light.

    Args:
        room: which one
        level (int): from 0 to 100
    """
    raise SystemExit("never run")

def weather(city: str, days: list[int], unit: Literal["C", "F"] = "C", wind: float | None = None):
    "The weather."

def _hidden(): ...
'''


@pytest.fixture
def functions(tmp_path: Path) -> list[Function]:
    (tmp_path / "home.py").write_text(SOURCE)
    return read_functions(tmp_path / "home.py")


def test_functions_of_a_python_file(functions: list[Function], tmp_path: Path):
    light, weather = functions
    assert (light.name, light.description) == ("set_light", "Switch a light.")
    assert light.parameters == {
        "type": "object",
        "properties": {
            "room": {"type": "string", "description": "which one"},
            "on": {"type": "boolean"},
            "level": {"type": "integer", "description": "from 0 to 100"},
        },
        "required": ["room"],
        "additionalProperties": False,
    }
    assert weather.parameters["properties"] == {
        "city": {"type": "string"},
        "days": {"type": "array", "items": {"type": "integer"}},
        "unit": {"enum": ["C", "F"]},
        "wind": {"type": "number"},
    }
    tools = [function.as_tool() for function in functions]
    (tmp_path / "home.json").write_text(json.dumps(tools))
    assert read_functions(tmp_path / "home.json") == functions_of_tools(tools) == functions


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("a.py", "def f(:", "is not Python"),
        ("a.py", "x = 1", "has no functions"),
        ("a.py", "def f(x: dict): ...", "the type of f's argument x is dict"),
        ("a.py", "def f(*x): ...", "any number of arguments"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "[1]", "must be a list of tools"),
        ("a.json", '[{"type": "function"}]', "tools: each is"),
        ("a.txt", "", "a .py or a .json file"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, text: str, named: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=named):
        read_functions(tmp_path / name)
    with pytest.raises(InputError, match="can't be read"):
        read_functions(tmp_path / "missing.py")


@pytest.mark.parametrize("form", ["hermes", "mistral", "llama"])
def test_what_the_grammar_writes_is_parsed(model: Model, grammars: Grammars, functions: list[Function], form: str):
    """By random logits: every answer is calls of known functions with arguments of the right types."""
    bounded = [
        Function(f.name, "", json.loads(json.dumps(f.parameters).replace('"string"', '"string", "maxLength": 5')))
        for f in functions
    ]
    for seed in range(4):
        grammar = calls_grammar(bounded, form, frozenset(), parallel=seed % 2 == 0)
        text = written(model, grammars, grammar, seed, most=1500).text
        rest, calls = parse_calls(text, form, bounded)
        if calls:
            assert rest == ""
            assert {call.name for call in calls} <= {"set_light", "weather"}
            assert all(isinstance(call.arguments.get("room", call.arguments.get("city")), str) for call in calls)
        else:
            assert len(text) > 500  # cut short


def test_calls_in_text(functions: list[Function]):
    text = 'Sure.\n<tool_call>\n{"name": "set_light", "arguments": {"room": "bath"}}\n</tool_call>'
    assert parse_calls(text, "hermes", functions) == ("Sure.", [ToolCall("set_light", {"room": "bath"})])
    assert parse_calls("no call", "hermes", functions) == ("no call", [])
    unknown = text.replace("set_light", "erase_disk")
    assert parse_calls(unknown, "hermes", functions) == (unknown.strip(), [])
    several = '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome", "days": [1]}}]'
    assert parse_calls(several, "mistral", functions)[1] == [ToolCall("weather", {"city": "Rome", "days": [1]})]
    llama = '<|python_tag|>{"name": "set_light", "parameters": {"room": "x"}}'
    assert parse_calls(llama, "llama", functions)[1] == [ToolCall("set_light", {"room": "x"})]
    assert form_of('{{ "<tool_call>" }}') == "hermes" and form_of("[TOOL_CALLS]") == "mistral"


def test_function_tokens(functions: list[Function]):
    """The forms of the paper: a call, nested calls, parallel calls."""
    tokens = with_tokens(functions, "<nexa_end>")
    assert [function.token for function in tokens] == ["<nexa_0>", "<nexa_1>"]
    assert parse("<nexa_0>('bath; 2', False, 5)<nexa_end>", tokens, "<nexa_end>") == [
        Call("set_light", {"room": "bath; 2", "on": False, "level": 5})
    ]
    nested = parse("<nexa_1>(<nexa_0>('x'), [1, 2]);<nexa_0>('y')<nexa_end>", tokens, "<nexa_end>")
    assert nested[0].as_json()["arguments"]["city"] == {"name": "set_light", "arguments": {"room": "x"}}
    assert nested[1] == Call("set_light", {"room": "y"})
    for wrong in ("", "hello", "<nexa_7>()<nexa_end>", "<nexa_0>(x)<nexa_end>", "__import__('os')<nexa_end>"):
        with pytest.raises(InputError, match="not a call of a function"):
            parse(wrong, tokens, "<nexa_end>")


def test_the_first_token_is_a_function_token(model: Model, functions: list[Function]):
    """With a tokenizer that has them, under random logits."""
    from tokenizers import AddedToken

    tokenizer = byte_tokenizer()
    names = ["<nexa_0>", "<nexa_1>", "<nexa_end>"]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])

    class WithTokens:
        """A model as `Grammars` sees it."""

        eos_token_ids = frozenset({257})
        vocab_size = VOCAB + 3
        artifact = model.artifact

    WithTokens.tokenizer = tokenizer
    tokens = with_tokens(functions, "<nexa_end>")
    grammar = grammar_of(tokens, frozenset(names), "<nexa_end>")
    grammars = Grammars(WithTokens())  # type: ignore[arg-type]
    letters = np.zeros(VOCAB + 3, np.float32)
    letters[list(tokenizer.encode("')]").ids)] = 2  # so that strings and lists end
    for seed in range(5):
        random = np.random.default_rng(seed)
        options = model.generation_options(max_tokens=900, show_special=True)
        generation = Generation([1], options, tokenizer, 1000, grammars.constraint(grammar))
        while not generation.done:
            generation.advance((letters + random.normal(0, 1, VOCAB + 3)).astype(np.float32))
        assert generation.result.tokens[0] in (VOCAB, VOCAB + 1)
        if generation.result.finish_reason == "stop":
            calls = parse(generation.result.text, tokens, "<nexa_end>")
            assert {call.name for call in calls} <= {"set_light", "weather"}
