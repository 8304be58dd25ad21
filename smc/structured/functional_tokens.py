"""Function tokens (Octopus v2, Chen and Li 2024, arXiv 2404.01744): each function has a token of its own.

A model that was trained for them answers with a call, `<nexa_2>("kitchen", 21)<nexa_end>`: the first token is one of
the function tokens, arguments are Python values of the signature's types, and an end token follows. Parallel calls are
separated by ";", and an argument may itself be a call.
"""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import Tokenizer

from smc.errors import InputError
from smc.runtime import Model
from smc.runtime.chat import ChatTemplate
from smc.structured.functions import Function
from smc.structured.grammar import Grammar

TOKENS = {"<nexa_end>": "<nexa_{}>", "<fn_end>": "<fn_{}>"}
"""End tokens, and the function tokens that belong to them: the paper's, and those of smc's pass `functional-tokens`."""

MOST_NESTED = 3
MOST_TOKENS = 256

PROMPT = (
    "Below is the query from the users, please call the correct function and generate the parameters to call the "
    "function.\n\nQuery: {query} \n\nResponse:"
)
"""The paper's."""


@dataclass(frozen=True)
class Call:
    """A call as the model wrote it; arguments are values or further calls, by name."""

    name: str
    arguments: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The call as an object for JSON; nested calls are objects, too."""
        values = {n: v.as_json() if isinstance(v, Call) else v for n, v in self.arguments.items()}
        return {"name": self.name, "arguments": values}


@dataclass(frozen=True)
class CallResult:
    """calls: one, or several parallel ones. text: as the model wrote them. seconds: from the query to the calls."""

    calls: list[Call]
    text: str
    seconds: float


def end_token(tokenizer: Tokenizer) -> str | None:
    """The end token of a model with function tokens; None: it has none."""
    return next((end for end in TOKENS if tokenizer.token_to_id(end) is not None), None)


def with_tokens(functions: Sequence[Function], end: str) -> list[Function]:
    """The functions; those without a token get those of this end token in their order: <nexa_0>, <nexa_1>, …"""
    return [
        function if function.token else replace(function, token=TOKENS[end].format(i))
        for i, function in enumerate(functions)
    ]


def call_functions(
    model: Model, functions: Sequence[Function], query: str, *, prompt: str = PROMPT, max_tokens: int = MOST_TOKENS
) -> CallResult:
    """Put a query to a model with function tokens. InputError if its tokenizer lacks one, or the answer is too long."""
    from smc.structured.constraint import Grammars

    end = end_token(model.tokenizer)
    if end is None:
        raise InputError(f"{model.artifact.manifest.name} has no end token of functions: {', '.join(TOKENS)}")
    functions = with_tokens(functions, end)
    started = time.perf_counter()
    constraint = Grammars(model).constraint(grammar_of(functions, _special_tokens(model, functions), end))
    stream = model.stream(
        prompt_tokens(model, prompt, query),
        max_tokens=max_tokens,
        temperature=0.0,
        constraint=constraint,
        show_special=True,
    )
    for _ in stream:
        pass
    if stream.result.finish_reason != "stop":
        raise InputError(f"the call is longer than {max_tokens} tokens: allow more")
    text = stream.result.text
    return CallResult(parse(text, functions, end), text, time.perf_counter() - started)


def prompt_tokens(model: Model, prompt: str, query: str) -> list[int]:
    """The prompt with the query in it, whose text is never a special token."""
    before, _, after = map(json.dumps, prompt.partition("{query}"))
    source = f"{{{{ {before} ~ messages[0]['content'] ~ {after} }}}}"
    chat = ChatTemplate(source, model.tokenizer, {}, model.eos_token_ids)
    around = model.encode("a")
    start = around[: around.index(model.encode("a", add_special_tokens=False)[0])]
    return [*start, *chat.encode([{"role": "user", "content": query}])]


def _special_tokens(model: Model, functions: Sequence[Function]) -> frozenset[str]:
    added = {token.content for token in model.tokenizer.get_added_tokens_decoder().values()}
    for text in (function.token or "" for function in functions):
        if text not in added:
            name = model.artifact.manifest.name
            raise InputError(f"{name} has no token {text}: it was not trained with function tokens")
    return frozenset(added)


def grammar_of(functions: Sequence[Function], tokens: frozenset[str], end: str) -> Grammar:
    """A grammar of calls of these functions, with the types of their schemas, up to the end token. tokens: the
    model's."""
    lines = [f'start: call0 (";" call0)* {end}']
    for depth in range(MOST_NESTED + 1):
        names = [f"call{depth}_{i}" for i in range(len(functions))]
        lines.append(f"call{depth}: {' | '.join(names)}")
        nested = f" | call{depth + 1}" if depth < MOST_NESTED else ""
        for name, function in zip(names, functions, strict=True):
            arguments = [_argument(schema, nested) for schema in _properties(function).values()]
            lines.append(f'{name}: {function.token} "(" {" ".join(_separated(arguments))} ")"')
    lines += [
        r"STRING: /'([^'\\\n\x00-\x1f]|\\['\\n])*'/",
        r"INTEGER: /-?(0|[1-9][0-9]{0,15})/",
        r"NUMBER: /-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,15})?/",
        'BOOLEAN: "True" | "False"',
    ]
    return Grammar("lark", "\n".join(lines) + "\n")


def python_literal(value: Any) -> str:
    """A choice as Python writes it, strings always in single quotes."""
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
    return repr(value)


def _properties(function: Function) -> dict[str, Any]:
    return dict(function.parameters.get("properties") or {})


def _separated(parts: list[str]) -> list[str]:
    return [part for i, text in enumerate(parts) for part in ((text,) if i == 0 else ('", "', text))]


def _argument(schema: dict[str, Any], nested: str) -> str:
    """A grammar of the Python values of a schema, and of `nested` calls. InputError for types that have no grammar
    here."""
    if "enum" in schema:
        values = " | ".join(json.dumps(python_literal(value)) for value in schema["enum"])
        return f"({values}{nested})"
    kinds = {"string": "STRING", "integer": "INTEGER", "number": "NUMBER", "boolean": "BOOLEAN"}
    kind = schema.get("type", "string")
    if kind == "array":
        item = _argument(dict(schema.get("items") or {}), nested)
        return f'("[" ({item} (", " {item})*)? "]")'
    if kind not in kinds:
        raise InputError(f"function tokens take strings, numbers, booleans, enums and lists of these, not {kind!r:.40}")
    return f"({kinds[kind]}{nested})"


def parse(text: str, functions: Sequence[Function], end: str) -> list[Call]:
    """The calls in an answer. InputError if it is not a call."""
    body = text.partition(end)[0].strip()
    by_place = {f"_function{i}": function for i, function in enumerate(functions)}
    for place, function in by_place.items():
        body = body.replace(function.token or function.name, place)
    try:
        tree = ast.parse(f"[{_commas(body)}]", mode="eval").body
        assert isinstance(tree, ast.List) and tree.elts
        return [_call(node, by_place, 0) for node in tree.elts]
    except (SyntaxError, ValueError, KeyError, AssertionError, RecursionError, MemoryError):
        raise InputError(f"the answer is not a call of a function: {text!r:.200}") from None


def _commas(body: str) -> str:
    """The text with "," in place of ";" between calls; those inside strings stay."""
    out, quoted, escaped = [], False, False
    for c in body:
        out.append("," if c == ";" and not quoted else c)
        quoted ^= c == "'" and not escaped
        escaped = c == "\\" and not escaped
    return "".join(out)


def _call(node: ast.expr, functions: dict[str, Function], depth: int) -> Call:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or depth > MOST_NESTED:
        raise ValueError
    function = functions[node.func.id]
    names = list(_properties(function))
    values = {name: _value(value, functions, depth) for name, value in zip(names, node.args, strict=False)}
    if len(node.args) > len(names):
        raise ValueError
    return Call(function.name, values)


def _value(node: ast.expr, functions: dict[str, Function], depth: int) -> Any:
    if isinstance(node, ast.Call):
        return _call(node, functions, depth + 1)
    if isinstance(node, ast.List):
        return [_value(item, functions, depth) for item in node.elts]
    return ast.literal_eval(node)
