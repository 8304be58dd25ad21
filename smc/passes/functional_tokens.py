"""The pass `functional-tokens`: one token per function that the model may call."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from smc.errors import InputError
from smc.ir import EncodedTensor, Module, Parameter
from smc.passes.base import Context, Need, Pass
from smc.passes.refit import refit
from smc.passes.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("functional-tokens")
@dataclass(frozen=True)
class FunctionalTokens(Pass):
    """Add a token per function of a list, as Octopus v2 does (arXiv 2404.01744); train the model to call them next.

    functions: a JSON file with a list of {"name": …, "description": …}. The tokens are <fn_0>, <fn_1>, … in its order,
    and <fn_end> ends a call. Their rows of embedding and head are the means of the rows of their descriptions' tokens.
    The tokenizer knows them as special tokens, and <fn_end> ends a text.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"torch"})

    functions: str

    def run(self, module: Module, context: Context) -> Module:
        """Add the tokens to the tokenizer, then rows to the matrices that have a row per token."""
        from tokenizers import AddedToken, Tokenizer

        facts, listed = module.facts, read_functions(Path(self.functions))
        if facts.tokenizer is None:
            raise InputError(f"pass {self.name} can't add tokens: {facts.name} has no tokenizer")
        tokenizer = Tokenizer.from_str(facts.tokenizer)
        known = set(tokenizer.get_vocab(with_added_tokens=True).values())
        texts = [*(f"<fn_{index}>" for index in range(len(listed))), "<fn_end>"]
        descriptions = [f"{entry['name']}: {entry['description']}" for entry in listed] + ["end of a call"]
        ids = [sorted(set(tokenizer.encode(text, add_special_tokens=False).ids)) for text in descriptions]
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in texts])
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        new = [vocabulary[text] for text in texts]
        if set(new) & known:
            raise InputError(
                f"the tokenizer of {facts.name} already has the token {texts[0]}: run {self.name} once only"
            )
        count = max(facts.vocab_size, max(new) + 1)
        result, rows = module.copy(), dict(zip(new, ids, strict=True))
        for name in dict.fromkeys(module.parameters_of("embedding") + module.parameters_of("head")):
            result.parameters[name] = _grown(module.parameters[name], count, rows)
        refit(result)
        ends = (*facts.generation.eos_token_ids, new[-1])
        generation = replace(facts.generation, eos_token_ids=ends)
        result.facts = replace(facts, tokenizer=tokenizer.to_str(), vocab_size=count, generation=generation)
        context.report(f"tokens {new[0]} to {new[-1]} for {len(listed)} functions; {count} tokens in all")
        return result


def read_functions(path: Path) -> list[dict[str, Any]]:
    """The functions of a JSON file. InputError if it is not a list of objects with a name and a description."""
    if not path.is_file():
        raise InputError(f"there is no file of functions {path}")
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(listed, list) or not listed:
        raise InputError(f'{path} must be a list of functions, each {{"name": …, "description": …}}')
    for index, entry in enumerate(listed):
        wanted = isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "description"))
        if not wanted or not entry["name"].strip():
            raise InputError(f"{path}: function {index} lacks a name or a description")
    names = [entry["name"] for entry in listed]
    if len(set(names)) < len(names):
        raise InputError(f"{path} has two functions with the same name: rename one")
    return listed


def _grown(parameter: Parameter, count: int, rows: dict[int, list[int]]) -> Parameter:
    if not parameter.encoding.is_float:
        raise InputError(f"{parameter.name} is quantized: add functional tokens first, then quantize")
    shape = (count, *parameter.shape[1:])
    return replace(parameter, shape=shape, load=partial(_with_rows, parameter, count, rows))


def _with_rows(parameter: Parameter, count: int, rows: dict[int, list[int]]) -> EncodedTensor:
    import torch

    old = parameter.load().values
    assert old is not None
    values: Tensor = torch.cat([old, old.new_zeros(count - len(old), *old.shape[1:])])
    for row, sources in rows.items():
        values[row] = old[sources].float().mean(0).to(old.dtype)
    return EncodedTensor(parameter.encoding, tuple(values.shape), values=values)
