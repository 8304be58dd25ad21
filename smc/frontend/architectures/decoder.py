"""Makes a verified module from an architecture's functions and a checkpoint's tensors."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from smc.frontend.architectures.block import Block
from smc.frontend.architectures.views import Source, check_leftovers
from smc.frontend.checkpoint import Checkpoint, StoredTensor
from smc.ir import Function, ModelFacts, Module, Parameter, TensorType, verify

DERIVED = re.compile(r"\.rotary_emb\.inv_freq$")
"""Tensors that old checkpoints store although they follow from the config."""


@dataclass(frozen=True)
class Decoder:
    """A decoder-only transformer, which an architecture makes from a checkpoint.

    embed: tokens (and, where its function takes them, positions) → x. layers: x and positions → x; they may differ, and
    those of equal functions share one. head: x → logits. unused: tensors that the checkpoint may hold beside theirs (a
    head stored twice although it is tied, a mask that follows from the config).
    tensors: in place of the checkpoint's, where the architecture joined some. stacks: of tensors that are several
    matrices in one, by name, the names under which these are stored one by one (stacks.py).
    """

    vocab_size: int
    context_length: int
    embed: Block
    layers: Iterable[Block]
    head: Block
    unused: str | None = None
    tensors: Mapping[str, StoredTensor] | None = None
    stacks: Mapping[str, str] = field(default_factory=dict)


def assemble(decoder: Decoder, checkpoint: Checkpoint, architecture: str) -> Module:
    """Bind the tensors to the slots, write `main`, verify.

    InputError if a tensor is missing, has the wrong shape, or is left over, as a whole or in part.
    """
    if decoder.tensors is not None:
        checkpoint = replace(checkpoint, tensors=decoder.tensors)
    main = Function("main")
    tokens = main.input("tokens", TensorType(("n",), "i32"))
    positions = main.input("positions", TensorType(("n",), "i32"))
    program = _Program(checkpoint, main)
    x = program.call("embed", decoder.embed, tokens, positions)
    for index, layer in enumerate(decoder.layers):
        x = program.call(f"layer_{index}", layer, x, positions, origin=index)
    main.set_outputs(program.call("logits", decoder.head, x))
    unused = re.compile(decoder.unused) if decoder.unused else DERIVED
    check_leftovers(checkpoint, program.sources.values(), lambda n: bool(DERIVED.search(n) or unused.fullmatch(n)))
    facts = ModelFacts(
        name=checkpoint.name,
        architecture=architecture,
        context_length=decoder.context_length,
        vocab_size=decoder.vocab_size,
        tokenizer=checkpoint.tokenizer,
        chat_template=checkpoint.chat_template,
        special_tokens=checkpoint.special_tokens,
        generation=checkpoint.generation,
        provenance=(f"checkpoint {checkpoint.name} ({checkpoint.format})", *checkpoint.changes),
        source=checkpoint.source,
        config=checkpoint.config.values,
    )
    module = Module({"main": main, **program.functions}, program.parameters, facts)
    verify(module)
    return module


class _Program:
    """`main` as it grows: the functions that it calls, each once, and the parameters that fill their slots."""

    def __init__(self, checkpoint: Checkpoint, main: Function) -> None:
        self.checkpoint, self.main = checkpoint, main
        self.functions: dict[str, Function] = {}
        self.parameters: dict[str, Parameter] = {}
        self.sources: dict[str, Source] = {}
        self._shared: dict[str, Function] = {}

    def call(self, name: str, block: Block, *inputs: str, **attributes: Any) -> str:
        """Append a call of the block's function, with as many of the inputs as it takes."""
        function = self._share(block.function)
        bound = {}
        for slot in function.parameters():
            shape = tuple(block.sizes[d] if isinstance(d, str) else d for d in slot.tensor.shape)
            source = block.sources[slot.name]
            parameter = source.parameter(self.checkpoint, shape)
            self.parameters.setdefault(parameter.name, parameter)
            if self.sources.setdefault(parameter.name, source) != source:
                raise ValueError(f"{parameter.name} fills slots in two different ways")
            bound[slot.name] = parameter.name
        result = function.node(function.outputs[0]).tensor
        taken = inputs[: len(function.inputs())]
        attributes |= {"function": function.name, "parameters": bound}
        return self.main.add("call", *taken, name=name, type=result, **attributes)

    def _share(self, function: Function) -> Function:
        """An equal function that exists already, or this one under a name of its own."""
        key = repr((list(function.nodes()), function.outputs))
        if key not in self._shared:
            names = itertools.chain([function.name], (f"{function.name}_{i}" for i in itertools.count(2)))
            function.name = next(name for name in names if name not in self.functions)
            self._shared[key] = self.functions[function.name] = function
        return self._shared[key]
