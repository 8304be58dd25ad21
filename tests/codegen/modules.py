"""Modules that the tests of codegen share: the tiny one with other blocks, layers of different widths and precision."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st

from smc.ir import Function, Module, TensorType, encode_float
from smc.passes import apply
from tests.ir.models import parameter, tiny_module


def random_parameters(module: Module) -> Module:
    """The same module with random weights in place of its own."""
    generator = torch.Generator().manual_seed(0)
    result = module.copy()
    result.main.input("positions", TensorType(("n",), "i32"))
    for name, old in module.parameters.items():
        values = torch.randn(old.shape, generator=generator) * 0.5
        result.parameters[name] = parameter(name, *old.shape, values=values)
    return result


def block_with(build: Callable[[Function, str], str]) -> Module:
    """The tiny module, its block's body made anew: build(block, x) → result. The slot `square` is [4, 4]."""
    module = random_parameters(tiny_module())
    block = Function("block")
    x = block.input("x", TensorType(("n", 4)))
    block.parameter("square", 4, 4)
    block.set_outputs(build(block, x))
    module.functions["block"] = block
    for layer in range(2):
        call = module.main.node(f"layer_{layer}")
        module.main.replace_node(call.name, attributes={**call.attributes, "parameters": {"square": f"square.{layer}"}})
        for slot in ("up", "down"):
            del module.parameters[f"{slot}.{layer}"]
        values = torch.randn(4, 4, generator=torch.Generator().manual_seed(layer)) * 0.5
        module.parameters[f"square.{layer}"] = parameter(f"square.{layer}", 4, 4, values=values)
    return module


def linear(block: Function, x: str, residual: str | None = None) -> str:
    rest = () if residual is None else (residual,)
    return block.add("linear", x, "square", *rest, bias=False, residual=residual is not None)


OPERATIONS = ("silu", "add", "mul", "linear", "residual")


@st.composite
def random_blocks(draw: st.DrawFn) -> Callable[[Function, str], str]:
    """Builders of random blocks: every op reads values made before it; the last value is the result."""
    return block_of(
        draw(st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 9), st.integers(0, 9)), min_size=1))
    )


def block_of(steps: Sequence[tuple[str, int, int]]) -> Callable[[Function, str], str]:
    """The builder of a block: by step an op, and which of the values made before it that reads."""

    def build(block: Function, x: str) -> str:
        values = [x]
        for op, i, j in steps:
            a, b = values[i % len(values)], values[j % len(values)]
            if op in ("linear", "residual"):
                rest = (b,) if op == "residual" else ()
                values.append(block.add("linear", a, "square", *rest, bias=False, residual=op == "residual"))
            else:
                values.append(block.add(op, *((a,) if op == "silu" else (a, b))))
        return values[-1]

    return build


def different_widths(module: Module, widths: list[int]) -> Module:
    """The module with another FFN width in every layer: the first rows and columns of the one it has."""
    result = module.copy()
    for layer, width in enumerate(widths):
        for part in ("gate_proj", "up_proj", "down_proj"):
            name = f"model.layers.{layer}.mlp.{part}.weight"
            old = module.parameters[name]
            shape = (old.shape[0], width) if part == "down_proj" else (width, old.shape[1])

            def load(old: Any = old, shape: Any = shape) -> Any:
                return encode_float(old.values()[: shape[0], : shape[1]].contiguous(), old.encoding)

            result.parameters[name] = replace(old, shape=shape, load=load)
    return result


def mixed_bits(module: Module, layers: int) -> Module:
    """Every layer in 4 or 8 bits, drawn at random."""
    generator = random.Random(0)
    chain = [f"quantize-rtn:bits={generator.choice((4, 8))},include=model.layers.{layer}.*" for layer in range(layers)]
    return apply(module, [*chain, "quantize-rtn:bits=8,include=lm_head+embed_tokens"])
