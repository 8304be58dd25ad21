"""The calls that an executable's model may write, as an automaton: smc/structured has grammars of them for llguidance.

Function tokens (Octopus v2) are followed by arguments in parentheses, Python values by the signature, which may be
calls again; calls in a chat template's form are JSON objects by the schemas of their arguments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smc.errors import InputError
from smc.standalone.automaton import (
    Automaton,
    Builder,
    Part,
    TokenEdge,
    byte_of,
    characters,
    determinize,
    either,
    maybe,
    sequence,
    text,
    times,
    token,
)
from smc.structured.functional_tokens import python_literal
from smc.structured.functions import Function
from smc.structured.tool_calls import Form

_ABOUT = frozenset({"title", "description", "default", "examples", "deprecated", "$comment", "$schema"})
"""Keywords that say nothing about the form."""

_PLAIN = bytes(range(0x20, 0x80))
_DIGITS = b"0123456789"


def digits(least: int, most: int) -> Part:
    """A number of digits."""
    return times(byte_of(_DIGITS), least, most)


INTEGER = sequence(maybe(text("-")), either(text("0"), sequence(byte_of(b"123456789"), digits(0, 15))))
NUMBER = sequence(INTEGER, maybe(sequence(text("."), digits(1, 15))))


# ---- function tokens


def python_string() -> Part:
    """In single quotes."""
    plain = bytes(set(_PLAIN) - set(b"'\\"))
    one = either(characters(plain), sequence(text("\\"), byte_of(b"'\\n")))
    return sequence(text("'"), times(one, 0, None), text("'"))


def token_calls(functions: Sequence[Function], tokens: Sequence[int], end: int) -> Automaton:
    """Calls with function tokens, separated by ";", up to the end token; the automaton begins in state 1.

    tokens: of the functions. In state 0 a call that is no argument has ended. Raises InputError for types that have no
    form here.
    """
    builder = Builder()
    between, start = builder.state(), builder.state()
    called = [TokenEdge(number, index) for index, number in enumerate(tokens)]
    for edge in called:
        builder.edge(start, edge, between)
    builder.edge(between, ord(";"), start)
    last = [token(end)(builder, between)]
    nested = either(*(token(edge.token, edge.calls) for edge in called))
    entries = []
    for function in functions:
        arguments = [_python_value(schema, nested) for schema in properties_of(function).values()]
        parts = [part for i, value in enumerate(arguments) for part in ((value,) if i == 0 else (text(", "), value))]
        entries.append(builder.state())
        last.append(sequence(text("("), *parts, text(")"))(builder, entries[-1]))
    return determinize(builder, [between, start], last, entries)


def properties_of(function: Function) -> dict[str, Any]:
    """A function's arguments in their order: name → schema."""
    return dict(function.parameters.get("properties") or {})


def _python_value(schema: dict[str, Any], nested: Part) -> Part:
    if "enum" in schema:
        return either(*(text(python_literal(value)) for value in schema["enum"]), nested)
    kind = schema.get("type", "string")
    if kind == "array":
        item = _python_value(dict(schema.get("items") or {}), nested)
        return either(_listed(item, 0, None), nested)
    kinds: dict[str, Callable[[], Part]] = {
        "string": python_string,
        "integer": lambda: INTEGER,
        "number": lambda: NUMBER,
        "boolean": lambda: either(text("True"), text("False")),
    }
    if kind not in kinds:
        raise InputError(f"function tokens take strings, numbers, booleans, enums and lists of these, not {kind!r:.40}")
    return either(kinds[kind](), nested)


def _listed(item: Part, least: int, most: int | None) -> Part:
    """In brackets, separated by ", "."""
    if most == 0:
        return text("[]")
    more = sequence(text(", "), item)
    full = sequence(item, times(more, max(least - 1, 0), None if most is None else most - 1))
    return sequence(text("["), full if least else maybe(full), text("]"))


# ---- calls in a template's form


def template_calls(functions: Sequence[Function], form: Form, tokens: Mapping[str, int]) -> Automaton:
    """One or several calls as `smc.structured.tool_calls.calls_grammar` has them; the automaton begins in state 1.

    tokens: special or added ones by text: they are tokens here, too. Raises InputError for schemas that have no form
    here, by the name of the keyword.
    """

    def literal(value: str) -> Part:
        return token(tokens[value]) if value in tokens else text(value)

    name = "parameters" if form == "llama" else "arguments"
    calls = [_call(function, name) for function in functions]
    one = either(*calls)
    if form == "mistral":
        whole = sequence(literal("[TOOL_CALLS]"), _listed(one, 1, None))
    elif form == "llama":
        whole = one
    else:
        tagged = sequence(literal("<tool_call>"), text("\n"), one, text("\n"), literal("</tool_call>"))
        whole = sequence(tagged, times(sequence(text("\n"), tagged), 0, None))
    builder = Builder()
    unused, start = builder.state(), builder.state()
    return determinize(builder, [unused, start], [whole(builder, start)], [])


def _call(function: Function, name: str) -> Part:
    parameters = {"type": "object", **function.parameters}
    value = _json_value(parameters, f"the arguments of {function.name}")
    return sequence(text(f'{{"name": {json.dumps(function.name)}, "{name}": '), value, text("}"))


def _json_string(schema: dict[str, Any], where: str) -> Part:
    least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
    plain = bytes(set(_PLAIN) - set(b'"\\'))
    code = sequence(text("u"), times(byte_of(b"0123456789abcdefABCDEF"), 4, 4))
    one = either(characters(plain), sequence(text("\\"), either(byte_of(b'"\\/bfnrt'), code)))
    return sequence(text('"'), times(one, least, most), text('"'))


def _json_array(schema: dict[str, Any], where: str) -> Part:
    item = _json_value(dict(schema.get("items") or {"type": "string"}), where)
    return _listed(item, int(schema.get("minItems", 0)), schema.get("maxItems"))


def _json_object(schema: dict[str, Any], where: str) -> Part:
    """Its properties in their order; those that are not required may be left out."""
    required = frozenset(schema.get("required") or ())

    def build(builder: Builder, start: int) -> int:
        none, some = text("{")(builder, start), builder.state()  # whether there is a property before
        for name, value in (schema.get("properties") or {}).items():
            entry = text(", ")(builder, some)
            builder.jump(none, entry)
            behind = text(f"{json.dumps(name, ensure_ascii=False)}: ")(builder, entry)
            behind = _json_value(value, where)(builder, behind)
            if name not in required:
                builder.jump(some, behind)
            none, some = (builder.state() if name in required else none), behind
        builder.jump(none, some)
        return text("}")(builder, some)

    return build


_KINDS: dict[str, tuple[Callable[[dict[str, Any], str], Part], frozenset[str]]] = {
    "string": (_json_string, frozenset({"minLength", "maxLength"})),
    "integer": (lambda schema, where: INTEGER, frozenset()),
    "number": (lambda schema, where: NUMBER, frozenset()),
    "boolean": (lambda schema, where: either(text("true"), text("false")), frozenset()),
    "null": (lambda schema, where: text("null"), frozenset()),
    "array": (_json_array, frozenset({"items", "minItems", "maxItems"})),
    "object": (_json_object, frozenset({"properties", "required", "additionalProperties"})),
}
"""What writes a type, and the keywords that it follows."""


def _json_value(schema: Any, where: str) -> Part:
    if not isinstance(schema, dict):
        raise InputError(f"{where}: {schema!r:.40} is no JSON schema")
    if "const" in schema or "enum" in schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        return either(*(text(json.dumps(value, ensure_ascii=False)) for value in values))
    if "anyOf" in schema:
        return either(*(_json_value(part, where) for part in schema["anyOf"]))
    kinds = schema.get("type", "string")
    listed = kinds if isinstance(kinds, list) else [kinds]
    known: frozenset[str] = frozenset()
    for kind in listed:
        if kind not in _KINDS:
            raise InputError(f"{where}: there is no type {kind!r:.40} in an executable: {', '.join(_KINDS)}")
        known |= _KINDS[kind][1]
    if unknown := sorted(schema.keys() - known - _ABOUT - {"type"}):
        raise InputError(f"{where}: an executable can't follow the keyword {unknown[0]!r:.40}: leave it out")
    return either(*(_KINDS[kind][0](schema, where) for kind in listed))
