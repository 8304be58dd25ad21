"""The language of chat templates: jinja in a sandbox, and facts about a template that are found without running it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes as nodes
import jinja2.parser
import jinja2.sandbox


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks assistant text for training; in a prompt it is only its content."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as an attribute of the instance)

    def parse(self, parser: jinja2.parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def template_environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The sandbox, with the names and whitespace rules that Hugging Face templates are written for."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja's HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


@dataclass(frozen=True)
class TemplateTexts:
    """The texts in a template's source.

    written: all of them, the text outside of tags and every constant. compared: constants in comparisons. searched:
    those that are searched for in a text, or cut off one. assigned: those that variables get.
    """

    written: frozenset[str]
    compared: frozenset[str]
    searched: frozenset[str]
    assigned: frozenset[str]


def template_texts(source: str) -> TemplateTexts:
    """The texts of a template's source. Raises jinja2.TemplateError if it has a syntax error."""
    tree = template_environment().parse(source)
    compared: list[nodes.Node] = []
    searched: list[nodes.Node] = []
    for comparison in tree.find_all(nodes.Compare):
        inside = any(operand.op in ("in", "notin") for operand in comparison.ops)
        (searched if inside else compared).extend([comparison.expr, *(operand.expr for operand in comparison.ops)])
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr):  # a method, such as startswith
            searched.extend(call.args)
    for use in tree.find_all((nodes.Filter, nodes.Test)):
        searched.extend(use.args or ())
    outside = {text.data for text in tree.find_all(nodes.TemplateData)}
    return TemplateTexts(
        frozenset(outside) | _constants(tree.find_all(nodes.Const)),
        _constants(compared),
        _constants(searched),
        _constants(assignment.node for assignment in tree.find_all(nodes.Assign)),
    )


def _constants(found: Iterable[nodes.Node]) -> frozenset[str]:
    """The texts among nodes, and in lists of them."""
    inner = itertools.chain.from_iterable(
        node.items if isinstance(node, (nodes.Tuple, nodes.List)) else [node] for node in found
    )
    return frozenset(n.value for n in inner if isinstance(n, nodes.Const) and isinstance(n.value, str) and n.value)
