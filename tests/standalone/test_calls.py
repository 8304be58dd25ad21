"""Executables with functions: what they answer is what llguidance lets the same program answer, token for token."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner
from tokenizers import AddedToken, Tokenizer

from smc.cli import main
from smc.errors import InputError
from smc.runtime import Model, load
from smc.standalone.call_forms import template_calls, token_calls
from smc.standalone.call_tables import call_tables
from smc.structured.functional_tokens import TOKENS, call_functions
from smc.structured.functions import Function, read_functions
from tests.runtime.conftest import CHAT_TEMPLATE, VOCAB, byte_tokenizer, manifest_for, write_artifact
from tests.standalone.conftest import QUICK, BuildExecutable, Executable

SOURCE = '''
from typing import Literal

def light(room: Literal["kitchen", "it's", "hall"], on: bool, level: int = 100):
    """Switch a light."""

def weather(city: str, days: list[int]):
    """The weather."""

def heat(degrees: float):
    """Set the heating."""

def off():
    """Switch everything off."""
'''
END = "<nexa_end>"
NAMES = [*(f"<nexa_{i}>" for i in range(4)), END]
SIZE = VOCAB + len(NAMES)
BIGGER = (f"VOCAB = {VOCAB}", f"VOCAB = {SIZE}")
QUERIES = ["light", "how warm?", "<nexa_end> rain", "weather in Oslo", "é", *(f"query {i}" for i in range(15))]


@pytest.fixture(scope="session")
def functions(tmp_path_factory: pytest.TempPathFactory) -> list[Function]:
    path = tmp_path_factory.mktemp("functions") / "home.py"
    path.write_text(SOURCE)
    return read_functions(path)


def tokenizer_with_functions() -> Tokenizer:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in NAMES])
    return tokenizer


@pytest.fixture(scope="session")
def caller(build_executable: BuildExecutable, functions: list[Function]) -> Executable:
    tokenizer = tokenizer_with_functions().to_str()
    return build_executable(BIGGER, functions=functions, tokenizer=tokenizer, vocab_size=SIZE, chat_template=None)


@pytest.fixture(scope="session")
def same_model(build_program: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = build_program(QUICK, BIGGER)
    manifest = manifest_for(program, vocab_size=SIZE)
    members = {
        "weights": bytes(64),
        "manifest.json": json.dumps(manifest),
        "program.so": program,
        "tokenizer.json": tokenizer_with_functions().to_str(),
    }
    return write_artifact(tmp_path_factory.mktemp("same") / "counting.smc", members)


def test_calls_are_those_of_smc_run(caller: Executable, same_model: Path, functions: list[Function]):
    """Nested and parallel ones too. A text that grows too long is refused by both."""
    kinds, nested = set(), 0
    with load(same_model, context_length=4000, threads=1) as model:
        for query in QUERIES:
            answer = caller.run(query, "--ctx", "4000", "-n", "600", "-q")
            if b"longer than 600" in answer.stderr:
                with pytest.raises(InputError, match="longer than 600"):
                    call_functions(model, functions, query, max_tokens=600)
                continue
            expected = [call.as_json() for call in call_functions(model, functions, query, max_tokens=600).calls]
            assert (answer.returncode, answer.stderr) == (0, b"")
            assert [json.loads(line) for line in answer.stdout.splitlines()] == expected
            kinds |= set(re.findall(r'"name": "(\w+)"', json.dumps(expected)))
            nested += any(isinstance(value, dict) for call in expected for value in call["arguments"].values())
    assert len(kinds) > 1 and nested > 0


def query_that_is_answered(model: Model, functions: list[Function]) -> tuple[str, list[dict[str, Any]]]:
    """A query whose calls are not too long, and these."""
    for query in QUERIES:
        with contextlib.suppress(InputError):
            return query, [call.as_json() for call in call_functions(model, functions, query, max_tokens=600).calls]
    raise AssertionError("all calls are long")


def test_calls_in_smc_chat(same_model: Path, functions: list[Function], tmp_path: Path):
    (tmp_path / "home.py").write_text(SOURCE)
    with load(same_model, context_length=4000, threads=1) as model:
        query, expected = query_that_is_answered(model, functions)
    command = ["chat", str(same_model), "--functions", str(tmp_path / "home.py"), "--ctx", "4000", "-q", "-n", "600"]
    answer = CliRunner().invoke(main.cli, command, input=f"{query}\n\n{query}\n", catch_exceptions=False)
    assert [json.loads(line) for line in answer.stdout_bytes.decode().splitlines()] == expected * 2


def test_json_and_lines(caller: Executable, same_model: Path, functions: list[Function]):
    with load(same_model, context_length=4000, threads=1) as model:
        query, _ = query_that_is_answered(model, functions)
    options = ("--ctx", "4000", "-q", "-n", "600")
    lines = caller.text(query, *options).splitlines()
    answer = json.loads(caller.text(query, *options, "--json"))
    assert answer["calls"] == [json.loads(line) for line in lines]
    assert answer["text"] == "" and answer["seconds"] > 0
    chat = caller.text("--chat", *options, stdin=f"{query}\n{query}\n".encode())
    assert chat.splitlines() == lines * 2
    assert caller.text("--raw", "Hello", "-n", "3") != ""


def test_what_is_wrong(caller: Executable):
    assert "the call is longer than 2 tokens" in caller.refusal("light", "-n", "2", "--ctx", "400", "-q")
    assert "--system has no place" in caller.refusal("light", "--system", "x")


class Reader:
    """Reads an automaton as c/calls.c does."""

    def __init__(self, automaton: Any) -> None:
        self.automaton = automaton
        self.stack: list[int] = []
        self.state = 1

    def choices(self) -> list[Any]:
        return list(self.automaton.next[self.state])

    def take(self, label: Any) -> None:
        target = self.automaton.next[self.state][label]
        if not isinstance(label, int) and label.calls is not None:
            self.stack.append(target)
            target = self.automaton.entries[label.calls]
        elif self.stack and target in self.automaton.ends and not self.automaton.next[target]:
            target = self.stack.pop()
        self.state = target


def random_text(automaton: Any, seed: int, names: dict[int, str]) -> str | None:
    """A text that the automaton accepts, or None where it grew too long."""
    random, reader, text = np.random.default_rng(seed), Reader(automaton), bytearray()
    while reader.choices():
        if reader.state in automaton.ends and not reader.stack and random.random() < 0.5:
            break
        labels = reader.choices()
        ends = [label for label in labels if (label in b"'\")]}" if isinstance(label, int) else label.calls is None)]
        label = labels[random.integers(len(labels))] if not ends or random.random() < 0.7 else ends[0]
        if not isinstance(label, int) and len(reader.stack) > 3:
            return None
        text += bytes([label]) if isinstance(label, int) else names[label.token].encode()
        reader.take(label)
        if len(text) > 3000:
            return None
    return text.decode()


def test_python_values_are_python(functions: list[Function]):
    """Judged by Python's parser."""
    names = dict(enumerate(["_0", "_1", "_2", "_3", "#"]))
    automaton = token_calls(functions, [0, 1, 2, 3], 4)
    texts = [text for seed in range(200) if (text := random_text(automaton, seed, names)) is not None]
    assert len(texts) > 100
    for text in texts:
        calls = ast.parse(re.sub(r"\);_(?=\d\()", "),_", text.removesuffix("#")) + ",", mode="eval").body
        assert isinstance(calls, ast.Tuple) and all(isinstance(call, ast.Call) for call in calls.elts)


SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "maxLength": 3},
        "b": {"type": ["integer", "null"]},
        "c": {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3},
        "d": {"enum": ["x", 1, None, True]},
        "é\"": {"anyOf": [{"type": "boolean"}, {"const": "no"}]},
        "e": {"type": "object", "properties": {"z": {"type": "string", "minLength": 1, "maxLength": 2}}},
    },
    "required": ["b", "d"],
}


@pytest.mark.parametrize("form", ["hermes", "mistral", "llama"])
def test_calls_of_a_template_validate(form: Any):
    function = Function("fill", "", SCHEMA)
    automaton = template_calls([function, Function("stop", "", {"type": "object"})], form, {"<tool_call>": 7})
    seen = set()
    texts = [text for seed in range(150) if (text := random_text(automaton, seed, {7: "<tool_call>"})) is not None]
    assert len(texts) > 50
    for text in texts:
        body = text.removeprefix("[TOOL_CALLS]") if form == "mistral" else text
        parts = re.findall(r"<tool_call>\n(.*)\n</tool_call>", text) if form == "hermes" else [body]
        values = [json.loads(part) for part in parts]
        calls = values[0] if form == "mistral" else values
        assert calls
        for call in calls:
            arguments = call["parameters" if form == "llama" else "arguments"]
            seen.add((call["name"], len(arguments)))
            jsonschema.validate(arguments, SCHEMA if call["name"] == "fill" else {"maxProperties": 0})
    assert {("stop", 0), ("fill", 2)} <= seen and max(count for _, count in seen) > 3


@pytest.fixture(scope="session")
def template_caller(build_executable: BuildExecutable, functions: list[Function]) -> Executable:
    return build_executable(functions=functions, chat_template=CHAT_TEMPLATE)


def test_calls_by_a_template(template_caller: Executable, functions: list[Function]):
    names = {function.name: function for function in functions}
    for seed in range(6):
        options = ("--ctx", "8000", "-n", "3000", "-q", "--temperature", "2", "--seed", str(seed))
        done = template_caller.run("light", *options, "--system", "Be brief.")
        if done.returncode:
            assert b"longer than" in done.stderr
            continue
        for line in done.stdout.splitlines():
            call = json.loads(line)
            jsonschema.validate(call["arguments"], dict(names[call["name"]].parameters))


def test_the_template_has_the_functions(template_caller: Executable, functions: list[Function]):
    with zipfile.ZipFile(template_caller.path) as archive:
        pieces = archive.read("chat_template.pieces").decode("utf-8", "replace")
        assert archive.read("chat_template.jinja").decode() == CHAT_TEMPLATE
    assert all(f'"name": "{function.name}"' in pieces for function in functions)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"properties": {"x": {"type": "string", "pattern": "a+"}}}, "the keyword 'pattern'"),
        ({"properties": {"x": {"$ref": "#/x"}}}, "the keyword '$ref'"),
        ({"properties": {"x": {"type": "date"}}}, "there is no type 'date'"),
        ({"properties": {"x": 3}}, "3 is no JSON schema"),
        ({"properties": {"x": {"type": "string", "maxLength": 60000}}}, "too large"),
    ],
)
def test_functions_that_are_refused(parameters: dict[str, Any], named: str):
    with pytest.raises(InputError, match=re.escape(named)):
        call_tables([Function("f", "", parameters)], byte_tokenizer(), VOCAB, CHAT_TEMPLATE)


def test_too_many_functions_for_the_tokens():
    with pytest.raises(InputError, match="no token <nexa_4>"):
        call_tables([Function(f"f{i}", "", {}) for i in range(5)], tokenizer_with_functions(), SIZE, None)
    with pytest.raises(InputError, match="neither function tokens nor a chat template"):
        call_tables([Function("f", "", {})], byte_tokenizer(), VOCAB, None)
    assert set(TOKENS) == {"<nexa_end>", "<fn_end>"}
