"""Grammars as data: JSON schemas, regular expressions, and Lark grammars as llguidance reads them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from smc.errors import InputError, blamed_on

MOST_GRAMMAR_BYTES = 1 << 20

JSON_FORM: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How JSON is written: as Python's json.dumps does, in one line."""


@dataclass(frozen=True)
class Grammar:
    """The required form of a text. kind: what `source` is; "lark" is a Lark grammar as llguidance reads it."""

    kind: Literal["json", "regex", "lark"]
    source: str

    @classmethod
    def of_schema(cls, schema: Any) -> Grammar:
        """The grammar of a JSON schema."""
        return cls("json", json.dumps(schema))

    def compiled(self) -> str:
        """The grammar in llguidance's own format. InputError if it can't be read."""
        if len(self.source) > MOST_GRAMMAR_BYTES:
            raise InputError(f"the {self.name} is larger than {MOST_GRAMMAR_BYTES >> 20} MiB: make it smaller")
        from llguidance import LLMatcher

        with blamed_on(f"the {self.name} can't be used"):
            if self.kind == "json":
                return LLMatcher.grammar_from_json_schema(self.source, defaults=JSON_FORM)
            if self.kind == "regex":
                return LLMatcher.grammar_from_regex(self.source)
            return LLMatcher.grammar_from_lark(self.source)

    @property
    def name(self) -> str:
        """The grammar's name in messages."""
        return {"json": "JSON schema", "regex": "regular expression", "lark": "grammar"}[self.kind]


ANY_JSON = Grammar.of_schema({"type": "object"})
"""A grammar of any JSON object."""
