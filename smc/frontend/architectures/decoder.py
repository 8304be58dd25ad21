"""From an architecture's functions and a checkpoint's tensors to a verified module."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from smc.errors import InputError
from smc.frontend.checkpoint import Checkpoint, StoredTensor
from smc.ir import Function, ModelFacts, Module, Parameter, TensorType, verify

DERIVED = re.compile(r"\.rotary_emb\.inv_freq$")
"""Tensors that old checkpoints store although they follow from the config."""


@dataclass(frozen=True)
class Stage:
    """One call of `main`: a function, and which tensor of the checkpoint fills each of its slots.

    sizes: the numbers that the symbols of the slots stand for in this call ({"ffn": 1536}).
    """

    function: Function
    tensors: Mapping[str, str]
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoder:
    """A decoder-only transformer: what an architecture makes of a config.

    Layers that differ only in `sizes` share one Function object. unused: tensors that the checkpoint may hold beside
    those of the stages (a head stored twice although it is tied).
    """

    vocab_size: int
    context_length: int
    embed: Stage
    layers: Iterable[Stage]
    head: Stage
    unused: frozenset[str] = frozenset()


def assemble(decoder: Decoder, checkpoint: Checkpoint, architecture: str) -> Module:
    """Bind the tensors to the slots, write `main`, verify.

    InputError where a tensor is missing, has the wrong shape, or is left over.
    """
    main = Function("main")
    functions: dict[str, Function] = {}
    parameters: dict[str, Parameter] = {}
    tokens = main.input("tokens", TensorType(("n",), "i32"))
    positions = main.input("positions", TensorType(("n",), "i32"))

    def call(name: str, stage: Stage, *inputs: str) -> str:
        function = functions.setdefault(stage.function.name, stage.function)
        for slot in function.parameters():
            shape = tuple(stage.sizes[d] if isinstance(d, str) else d for d in slot.tensor.shape)
            parameter = _parameter(checkpoint, stage.tensors[slot.name], shape)
            parameters.setdefault(parameter.name, parameter)
        result = function.node(function.outputs[0]).tensor
        bound = {slot: stage.tensors[slot] for slot in stage.tensors}
        return main.add("call", *inputs, name=name, type=result, function=function.name, parameters=bound)

    x = call("embed", decoder.embed, tokens)
    for index, layer in enumerate(decoder.layers):
        x = call(f"layer_{index}", layer, x, positions)
    main.set_outputs(call("logits", decoder.head, x))
    _refuse_leftovers(checkpoint, parameters, decoder.unused)
    facts = ModelFacts(
        name=checkpoint.name,
        architecture=architecture,
        context_length=decoder.context_length,
        vocab_size=decoder.vocab_size,
        tokenizer=checkpoint.tokenizer,
        chat_template=checkpoint.chat_template,
        special_tokens=checkpoint.special_tokens,
        generation=checkpoint.generation,
        provenance=(f"checkpoint {checkpoint.name} ({checkpoint.format})",),
    )
    module = Module({"main": main, **functions}, parameters, facts)
    verify(module)
    return module


def _parameter(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Parameter:
    stored: StoredTensor | None = checkpoint.tensors.get(name)
    if stored is None:
        raise InputError(f"{checkpoint.config.origin}: the checkpoint lacks the tensor {name}, of shape {list(shape)}")
    if stored.shape != shape:
        raise InputError(f"{stored.origin}: tensor {name} has shape {list(stored.shape)}, expected {list(shape)}")
    return stored.parameter()


def _refuse_leftovers(checkpoint: Checkpoint, used: Mapping[str, Parameter], unused: frozenset[str]) -> None:
    extra = [n for n in checkpoint.tensors if n not in used and n not in unused and not DERIVED.search(n)]
    if extra:
        others = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
        raise InputError(
            f"{checkpoint.tensors[extra[0]].origin}: the model has no place for the tensor {extra[0]}{others}, "
            f"so config.json and weights do not belong together"
        )
