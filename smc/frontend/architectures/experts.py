"""Mixtures of experts: a feed-forward of which every token chooses some matrices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from smc.errors import InputError
from smc.frontend.architectures.block import Block
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.stacks import NUMBER, stack_name, with_stacks
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.config import Config

GGUF_METADATA = {"expert_used_count": "num_experts_per_tok", "expert_weights_norm": "norm_topk_prob"}
"""Key of the metadata → key of config.json, as most families have it."""


NAMES = ("gate_proj", "up_proj", "down_proj")
"""An expert's matrices."""


@dataclass(frozen=True)
class Experts:
    """The sizes of a mixture, and where its matrices are.

    count: of experts; chosen: by each token; width: of an expert's feed-forward. normalized: the weights of those that
    are chosen add up to 1. path: of the part of a layer; names: of gate, up and down.
    """

    count: int
    chosen: int
    width: int
    normalized: bool
    path: str = "mlp"
    names: tuple[str, str, str] = NAMES

    @classmethod
    def of(cls, config: Config, *, count: int, chosen: int, width: int, normalized: bool) -> Experts:
        """InputError where more are chosen than there are."""
        if chosen > count:
            raise InputError(f"{config.origin}: num_experts_per_tok {chosen} is more than the {count} experts")
        return cls(count, chosen, width, normalized)

    def patterns(self, layers: Iterable[int]) -> list[str]:
        """The names of their tensors, with the expert's number left open."""
        paths = [f"model.layers.{layer}.{self.path}.experts.{NUMBER}" for layer in layers]
        return [f"{path}.{name}.weight" for path in paths for name in self.names]


def count_of(config: Config, default: int) -> int:
    """How many experts there are, under either name."""
    return config.integer("num_experts", config.integer("num_local_experts", default))


def gguf_tensors(path: str = "mlp", names: tuple[str, str, str] = NAMES) -> dict[str, str]:
    """GGUF's names of the modules of a mixture → the checkpoint's."""
    gate, up, down = (f"{path}.experts.{name}" for name in names)
    return {"ffn_gate_inp": f"{path}.gate", "ffn_gate_exps": gate, "ffn_up_exps": up, "ffn_down_exps": down}


def mixture(b: Block, x: str, hidden_size: int, experts: Experts, activation: str) -> str:
    """Σ weight · down(activation(gate(x)) * up(x)) over the experts that a token chose."""
    count, width, path = experts.count, experts.width, experts.path
    logits = b.linear(x, f"{path}.gate", count, hidden_size, role="router", name="router", slot="router_proj")
    choice = b.add("route", logits, k=experts.chosen, normalized=experts.normalized)
    weights = b.add("project", choice, name="expert_weights", index=0)
    chosen = b.add("project", choice, name="experts", index=1)
    rows = b.add("dispatch", x, chosen)

    def product(inputs: str, role: str, place: int, shape: tuple[int, int]) -> str:
        name = stack_name(f"{path}.experts.{NUMBER}.{experts.names[place]}.weight")
        stack = b.parameter(name, count, *shape, role=role, slot=f"{role}_experts")
        return b.add("grouped_linear", inputs, stack, chosen, name=role)

    gate = product(rows, "gate", 0, (width, hidden_size))
    up = product(rows, "up", 1, (width, hidden_size))
    gated = b.add("mul", b.add(activation, gate), up)
    return b.add("combine", product(gated, "down", 2, (hidden_size, width)), weights)


def stacked(checkpoint: Checkpoint, experts: Experts, layers: Iterable[int]) -> Checkpoint:
    """The checkpoint with the matrices of these layers' experts as stacks."""
    return with_stacks(checkpoint, experts.patterns(layers), experts.count)


def finished(decoder: Decoder, checkpoint: Checkpoint, experts: Experts, layers: Iterable[int]) -> Decoder:
    """The decoder, with the names under which its stacks are stored."""
    stacks = {stack_name(pattern): pattern for pattern in experts.patterns(layers)}
    return replace(decoder, tensors=checkpoint.tensors, stacks=stacks)
