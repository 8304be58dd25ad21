"""Grammars as data: JSON schemas, regular expressions, and llguidance's dialect of Lark."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from smc.errors import InputError, blamed_on

MOST_GRAMMAR_BYTES = 1 << 20


@dataclass(frozen=True)
class Grammar:
    """What a text must look like. kind: of `source`; "lark" is llguidance's dialect of Lark."""

    kind: Literal["json", "regex", "lark"]
    source: str

    @classmethod
    def of_schema(cls, schema: Any) -> Grammar:
        """Of a JSON schema."""
        return cls("json", json.dumps(schema))

    def compiled(self) -> str:
        """In llguidance's own form. InputError where it can't be read."""
        if len(self.source) > MOST_GRAMMAR_BYTES:
            raise InputError(f"the {self.name} is larger than {MOST_GRAMMAR_BYTES >> 20} MiB")
        from llguidance import LLMatcher

        with blamed_on(f"the {self.name} can't be used"):
            if self.kind == "json":
                return LLMatcher.grammar_from_json_schema(
                    self.source, defaults={"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
                )
            if self.kind == "regex":
                return LLMatcher.grammar_from_regex(self.source)
            return LLMatcher.grammar_from_lark(self.source)

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return {"json": "JSON schema", "regex": "regular expression", "lark": "grammar"}[self.kind]


ANY_JSON = Grammar.of_schema({"type": "object"})
"""An object, whatever is in it."""
