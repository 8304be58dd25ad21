"""Functions that a model may call: read from a Python file's signatures and docstrings, or from JSON.

A Python file is parsed, never run.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smc.errors import InputError

_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_ARGUMENT = re.compile(r"^\s*(\w+)\s*(?:\([^)]*\))?\s*:\s*(.+)$")


@dataclass(frozen=True)
class Function:
    """A function: its name, a description, and a JSON schema of its arguments (an object, in their order).

    token: its function token (Octopus v2); None: the model writes its name.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    token: str | None = None

    def as_tool(self) -> dict[str, Any]:
        """The function as a tool of OpenAI's API, as chat templates expect it."""
        about = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": about}


def read_functions(path: Path) -> list[Function]:
    """The functions of a .py or a .json file. InputError if they can't be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"the functions in {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text") from None
    if path.suffix == ".py":
        functions = _of_python(path, text)
    elif path.suffix == ".json":
        functions = _of_json(path, text)
    else:
        raise InputError(f"functions come from a .py or a .json file, not from {path}")
    if not functions:
        raise InputError(f"{path} has no functions: define one with def")
    return functions


def functions_of_tools(tools: list[dict[str, Any]]) -> list[Function]:
    """Functions from OpenAI's tools. InputError if this is not a list of functions."""
    functions = []
    for tool in tools:
        about = tool.get("function", tool) if tool.get("type", "function") == "function" else None
        if not isinstance(about, dict) or not isinstance(about.get("name"), str):
            raise InputError('tools: each is {"type": "function", "function": {"name": …, "parameters": …}}')
        if not _NAME.fullmatch(about["name"]):
            raise InputError(f"tools: {about['name']!r:.80} is not a name of a function")
        parameters = about.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(parameters, dict):
            raise InputError(f"tools: the parameters of {about['name']} are not a JSON schema")
        token = about.get("token")
        functions.append(
            Function(about["name"], str(about.get("description") or ""), parameters, str(token) if token else None)
        )
    if len({function.name for function in functions}) != len(functions):
        raise InputError("tools: two functions have the same name: rename one")
    return functions


def _of_json(path: Path, text: str) -> list[Function]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InputError(f"{path} must be a list of tools in OpenAI's form")
    return functions_of_tools(value)


def _of_python(path: Path, text: str) -> list[Function]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not Python: {error}") from None
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return [_of_definition(path, node) for node in found]


def _of_definition(path: Path, node: ast.FunctionDef) -> Function:
    documentation = ast.get_docstring(node) or ""
    described = {m[1]: m[2].strip() for line in documentation.splitlines() if (m := _ARGUMENT.match(line))}
    arguments = node.args
    if arguments.vararg or arguments.kwarg:
        raise InputError(f"{path}: {node.name} takes any number of arguments: name each of them")
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = [
        *zip(positional, [*defaults, *arguments.defaults], strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    properties = {}
    for argument, _ in pairs:
        schema = _schema_of(path, node.name, argument)
        if argument.arg in described:
            schema["description"] = described[argument.arg]
        properties[argument.arg] = schema
    required = [argument.arg for argument, default in pairs if default is None]
    summary = documentation.strip().split("\n\n")[0].replace("\n", " ")
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return Function(node.name, summary, parameters)


def _schema_of(path: Path, function: str, argument: ast.arg) -> dict[str, Any]:
    """The schema of an annotation: str, int, float, bool, Literal[…], list[…] and X | None; without one: a string."""
    where = f"{path}: the type of {function}'s argument {argument.arg}"

    def schema(annotation: ast.expr) -> dict[str, Any]:
        if isinstance(annotation, ast.Name) and annotation.id in _TYPES:
            return {"type": _TYPES[annotation.id]}
        if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
            parts = [annotation.left, annotation.right]
            kept = [part for part in parts if not (isinstance(part, ast.Constant) and part.value is None)]
            return schema(kept[0]) if len(kept) == 1 else {"anyOf": [schema(part) for part in kept]}
        if isinstance(annotation, ast.Subscript):
            name = ast.unparse(annotation.value).rpartition(".")[2]
            if name == "Literal":
                values = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
                return {"enum": [ast.literal_eval(value) for value in values]}
            if name in ("list", "List"):
                return {"type": "array", "items": schema(annotation.slice)}
            if name == "Optional":
                return schema(annotation.slice)
        raise InputError(f"{where} is {ast.unparse(annotation)}: use str, int, float, bool, Literal or list of these")

    return schema(argument.annotation) if argument.annotation is not None else {"type": "string"}
