"""What a standalone executable has beside a program: facts as C, a tokenizer's tables, a chat template's pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from smc.codegen.c_literals import c_string
from smc.distribution import VERSION
from smc.errors import InputError
from smc.generation import SAMPLING
from smc.ir import ModelFacts, Module
from smc.runtime.chat import BrokenTemplateError, ChatTemplate
from smc.runtime.sampling import SamplingOptions
from smc.standalone.call_tables import call_tables
from smc.standalone.chat_split import Unsplittable, split_chat_template
from smc.standalone.tokenizer_tables import tokenizer_tables
from smc.structured.functions import Function
from smc.targets import Target

TOKENIZER_TABLES = "tokenizer.tables"
CHAT_PIECES = "chat_template.pieces"
FUNCTIONS = "functions.tables"


@dataclass(frozen=True)
class StandaloneParts:
    """What an executable needs of the model's texts.

    members: of the artifact, for the executable's own use. no_chat: why it can't have chats though the model has a chat
    template, the end of a sentence; None if it can. calls: an smc_call_form of standalone.h.
    """

    members: dict[str, bytes]
    no_chat: str | None
    calls: str = "SMC_CALLS_NONE"


def standalone_parts(facts: ModelFacts, target: Target, functions: Sequence[Function] = ()) -> StandaloneParts:
    """Prepare an executable, whose answers are calls of `functions` where there are any.

    Raises InputError for a target without executables, and for a tokenizer or functions that can't be in one.
    """
    if target.executable_target is None:
        raise InputError(f"there are no standalone executables for {target.name}: compile without --standalone")
    if facts.tokenizer is None:
        raise InputError(f"{facts.name} has no tokenizer, which a standalone executable needs")
    if functions:
        return _with_functions(facts, target, functions)
    if facts.chat_template is None:
        return StandaloneParts({TOKENIZER_TABLES: tokenizer_tables(facts.tokenizer)}, None)
    tokenizer, ends = Tokenizer.from_str(facts.tokenizer), facts.generation.eos_token_ids
    try:
        chat = ChatTemplate(facts.chat_template, tokenizer, facts.special_tokens, ends)
    except BrokenTemplateError as error:
        return StandaloneParts({TOKENIZER_TABLES: tokenizer_tables(facts.tokenizer)}, f"is broken: {error.reason}")
    members = {TOKENIZER_TABLES: tokenizer_tables(facts.tokenizer, chat.control)}
    pieces = split_chat_template(chat)
    if isinstance(pieces, Unsplittable):
        return StandaloneParts(members, pieces.reason)
    return StandaloneParts({**members, CHAT_PIECES: pieces.to_bytes()}, None)


def _with_functions(facts: ModelFacts, target: Target, functions: Sequence[Function]) -> StandaloneParts:
    assert facts.tokenizer is not None
    calls = call_tables(functions, Tokenizer.from_str(facts.tokenizer), facts.vocab_size, facts.chat_template)
    parts = standalone_parts(replace(facts, chat_template=calls.template), target)
    if parts.no_chat is not None and not calls.tokens:
        raise InputError(f"the executable can't call functions: the chat template {parts.no_chat}")
    form = "SMC_CALLS_BY_TOKENS" if calls.tokens else "SMC_CALLS_BY_TEMPLATE"
    return StandaloneParts({**parts.members, FUNCTIONS: calls.data}, parts.no_chat, form)


def standalone_facts(module: Module, target: Target, parts: StandaloneParts, weight_bytes: int) -> str:
    """The C source of `smc_facts` (standalone.h)."""
    facts = module.facts
    # Calls by function tokens are greedy, as `smc run` has them.
    sampling = SamplingOptions(**({} if parts.calls == "SMC_CALLS_BY_TOKENS" else facts.generation.sampling()))
    tokens = facts.generation.eos_token_ids
    values = ", ".join(f".{name} = {getattr(sampling, name)}" for name in SAMPLING)
    constants = {
        "smc_version": c_string(VERSION),
        "architecture": c_string(facts.architecture),
        "target": c_string(target.name),
        "provenance": c_string("\n".join(facts.provenance)),
        "has_template": int(facts.chat_template is not None),
        "no_chat": "0" if parts.no_chat is None else c_string(parts.no_chat),
        "calls": parts.calls,
        "parameters": f"{module.weight_count()}u",
        "bits_per_weight": repr(8 * weight_bytes / module.weight_count()),
        "sampling": f"{{{values}}}",
        "eos_count": len(tokens),
        "eos": "eos",
    }
    return "\n".join(
        [
            '#include "standalone.h"',
            "",
            f"static const int32_t eos[] = {{{', '.join(map(str, [*tokens, -1]))}}};",
            "",
            "const struct smc_facts smc_facts = {",
            *(f"    .{name} = {value}," for name, value in constants.items()),
            "};",
            "",
        ]
    )
