"""A module small enough to read in one look, made by hand."""

from __future__ import annotations

import torch

from smc.ir import F16, F32, EncodedTensor, Encoding, Function, ModelFacts, Module, Parameter, TensorType, encode_float

TOKENS, STATE = TensorType(("n",), "i32"), TensorType(("n", 4))


def parameter(name: str, *shape: int, encoding: Encoding = F32, values: torch.Tensor | None = None) -> Parameter:
    """A parameter of these values, or of ones."""

    def load() -> EncodedTensor:
        return encode_float(torch.ones(shape) if values is None else values, encoding)

    return Parameter(name, shape, encoding, load)


def tiny_module() -> Module:
    """An embedding of 5 tokens, two layers x + down(h·h) with h = up(x) of widths 3 and 2, and a tied head."""
    embed = Function("embed")
    tokens = embed.input("tokens", TOKENS)
    embed.set_outputs(embed.add("embedding", tokens, embed.parameter("table", 5, 4, role="embedding")))

    block = Function("block")
    x = block.input("x", STATE)
    h = block.add("linear", x, block.parameter("up", "ffn", 4), name="h", bias=False, residual=False)
    square = block.add("mul", h, h)
    down = block.add("linear", square, block.parameter("down", 4, "ffn"), name="down_proj", bias=False, residual=False)
    block.set_outputs(block.add("add", x, down))

    head = Function("head")
    x = head.input("x", STATE)
    weight = head.parameter("weight", 5, 4, role="head")
    head.set_outputs(head.add("linear", x, weight, name="logits", bias=False, residual=False))

    main = Function("main")
    tokens = main.input("tokens", TOKENS)

    def call(name: str, function: Function, type: TensorType, *inputs: str, **parameters: str) -> str:
        return main.add("call", *inputs, name=name, type=type, function=function.name, parameters=parameters)

    x = call("embedded", embed, STATE, tokens, table="table")
    for layer in range(2):
        x = call(f"layer_{layer}", block, STATE, x, up=f"up.{layer}", down=f"down.{layer}")
    main.set_outputs(call("logits", head, TensorType(("n", 5)), x, weight="table"))

    parameters = [parameter("table", 5, 4, encoding=F16)]
    for layer, width in enumerate((3, 2)):
        parameters += [parameter(f"up.{layer}", width, 4), parameter(f"down.{layer}", 4, width)]
    facts = ModelFacts("tiny", "TinyForTests", context_length=16, vocab_size=5, provenance=("made by hand",))
    functions = {f.name: f for f in (main, embed, block, head)}
    return Module(functions, {p.name: p for p in parameters}, facts)
