"""The facts of a module in a form for people and for JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from smc.ir.encoding import FLOAT_BYTES, ceil_div
from smc.ir.module import Module


def describe_module(module: Module) -> dict[str, Any]:
    """The facts of a module as values for JSON, sizes in bytes; if layers differ, a sorted list in place of a
    number."""
    facts, slots = module.facts, _slots(module)
    functions = [function for _, function in module.calls()]
    attention = [node.attributes for function in functions for node in function.attentions()]
    kv_values = sum(2 * layer["kv_heads"] * layer["head_dim"] for layer in attention)
    chosen = module.chosen_by_token()
    [embedding, *_] = module.parameters_of("embedding")
    return {
        "name": facts.name,
        "architecture": facts.architecture,
        "layers": len(attention),
        "hidden_size": module.parameters[embedding].shape[1],
        "heads": _one_or_all(layer["heads"] for layer in attention),
        "kv_heads": _one_or_all(layer["kv_heads"] for layer in attention),
        "head_dim": _one_or_all(layer["head_dim"] for layer in attention),
        "ffn_width": _one_or_all(module.parameters[name].shape[-1] for name in module.parameters_of("down")),
        "experts": _one_or_all(module.parameters[name].shape[0] for name in chosen),
        "experts_per_token": _one_or_all(int(part * module.parameters[name].shape[0]) for name, part in chosen.items()),
        "sliding_window": _one_or_all(layer["window"] for layer in attention if layer["window"] is not None),
        "vocab_size": facts.vocab_size,
        "context_length": facts.context_length,
        "parameters": module.weight_count(),
        "bits_per_weight": round(module.bits_per_weight(), 4),
        "weight_bytes": ceil_div(module.stored_bits(), 8),
        "kv_bytes_per_token": kv_values * FLOAT_BYTES["f16"],
        "tokenizer": _tokenizer(facts.tokenizer),
        "chat_template": facts.chat_template is not None,
        "generation": facts.generation.to_json(),
        "provenance": list(facts.provenance),
        "slots": slots,
    }


def _slots(module: Module) -> list[dict[str, Any]]:
    """The tensors in each slot of the functions: how many, their shapes, encodings and bytes.

    A tied matrix counts at its first use; the row of the second use names the first.
    """
    rows: dict[str, dict[str, Any]] = {}
    first_use: dict[str, str] = {}
    for call, function in module.calls():
        bound = call.attributes["parameters"]
        for slot in function.parameters():
            parameter = module.parameters[bound[slot.name]]
            row = rows.setdefault(
                slot.name, {"slot": slot.name, "tensors": 0, "shapes": [], "encodings": [], "bytes": 0, "tied_to": None}
            )
            row["tensors"] += 1
            row["shapes"] = _with(row["shapes"], list(parameter.shape))
            row["encodings"] = _with(row["encodings"], str(parameter.encoding))
            if first_use.setdefault(parameter.name, slot.name) == slot.name:
                row["bytes"] += ceil_div(parameter.encoding.stored_bits(parameter.shape), 8)
            else:
                row["tied_to"] = first_use[parameter.name]
    return list(rows.values())


def _with(seen: list[Any], value: Any) -> list[Any]:
    return seen if value in seen else sorted([*seen, value])


def _one_or_all(values: Iterable[Any]) -> Any:
    """The only value, the sorted list of all, or None if there is none."""
    found = sorted(set(values))
    return found[0] if len(found) == 1 else found or None


def _tokenizer(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    return {"kind": type(tokenizer.model).__name__, "tokens": tokenizer.get_vocab_size()}
