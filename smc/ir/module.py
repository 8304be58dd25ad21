"""A `Module`: functions, lazily read parameters, and the facts about the model that the runtime needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smc.generation import GenerationDefaults
from smc.ir.encoded_tensor import EncodedTensor
from smc.ir.encoding import Encoding
from smc.ir.function import Function, Node

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Parameter:
    """One tensor of the model, read when it is needed: `load` returns it in its encoding and keeps nothing.

    A pass that changes a parameter wraps its `load`; so a 10.7B checkpoint is processed one tensor at a time. `load`
    raises InputError if the checkpoint is damaged (truncated shard, NaN weights).
    original: what it was before a pass quantized it, in the same basis; None where none did. costs: what a pass that
    chose among widths expects of each, by the bits of a code: nats per token that the model loses.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    load: Callable[[], EncodedTensor] = field(repr=False, compare=False)
    original: Parameter | None = field(default=None, repr=False, compare=False)
    costs: Mapping[int, float] = field(default_factory=dict, repr=False, compare=False)

    def values(self) -> Tensor:
        """The decoded values, float32, in `shape`."""
        return self.load().decode()

    def error(self) -> float | None:
        """The distance of the values from those before they were quantized, as part of their norm; None where they were
        not, or all are 0."""
        if self.original is None:
            return None
        expected = self.original.values()
        norm = expected.norm().item()
        return (self.values() - expected).norm().item() / norm if norm else None


@dataclass(frozen=True)
class ModelFacts:
    """What the runtime needs besides the program.

    architecture: the checkpoint's name for it ("LlamaForCausalLM"). context_length: tokens, as trained.
    tokenizer: the text of a `tokenizers` JSON file, or None. chat_template: jinja source, or None.
    special_tokens: names ("bos_token", …) to token text, for the chat template.
    generation: which tokens end a text, and how tokens are chosen by default.
    provenance: one line for the source and one for every pass that ran.
    source: the checkpoint's file or folder, which no output may replace; None if there is none.
    config: the checkpoint's config with Hugging Face's keys, as it was read; changes of passes follow from the ir.
    """

    name: str
    architecture: str
    context_length: int
    vocab_size: int
    tokenizer: str | None = None
    chat_template: str | None = None
    special_tokens: dict[str, str] = field(default_factory=dict)
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)
    provenance: tuple[str, ...] = ()
    source: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass
class Module:
    """Functions by name (one is "main"), parameters by name, facts.

    `main` calls an embedding function, then a block function once per layer with that layer's parameters, then a head.
    A parameter used by two calls (a tied embedding and head) is stored once.
    Passes return a new Module (`copy`, then edit); functions of a copy may be edited freely.
    """

    functions: dict[str, Function]
    parameters: dict[str, Parameter]
    facts: ModelFacts

    @property
    def main(self) -> Function:
        """The entry: tokens and positions in, logits out."""
        return self.functions["main"]

    def calls(self) -> Iterator[tuple[Node, Function]]:
        """The calls of `main` in execution order, each with the function it runs."""
        for node in self.main.nodes():
            if node.op == "call":
                yield node, self.functions[node.attributes["function"]]

    def uses(self, parameter: str) -> list[tuple[Node, str, Function]]:
        """Where a parameter is used: (call, slot, function)."""
        return [
            (call, slot, function)
            for call, function in self.calls()
            for slot, name in call.attributes["parameters"].items()
            if name == parameter
        ]

    def parameters_of(self, role: str) -> list[str]:
        """The parameters that fill slots of this role, each once, in order of use."""
        found = [
            call.attributes["parameters"][slot.name]
            for call, function in self.calls()
            for slot in function.parameters()
            if slot.attributes["role"] == role
        ]
        return list(dict.fromkeys(found))

    def chosen_by_token(self) -> dict[str, Fraction]:
        """By name the parameters that are the matrices of experts, and how much of each a token multiplies."""
        found = {}
        for call, function in self.calls():
            for node in function.nodes():
                if node.op == "grouped_linear":
                    name, chosen = call.attributes["parameters"][node.inputs[1]], node.tensor.shape[1]
                    assert isinstance(chosen, int)
                    found[name] = Fraction(chosen, self.parameters[name].shape[0])
        return found

    def layer_calls(self) -> list[Node]:
        """The calls of functions that attend: the layers, in order."""
        return [call for call, function in self.calls() if any(True for _ in function.attentions())]

    def layer_map(self) -> tuple[int | None, ...]:
        """For every layer the layer of the checkpoint that it came from; None if unknown.

        Calls have it as attribute `origin`, so it stays right when they are copied, moved or dropped.
        """
        return tuple(call.attributes.get("origin") for call in self.layer_calls())

    def copy(self) -> Module:
        """A copy whose functions and parameter table can be edited without touching this one."""
        return Module({n: f.copy() for n, f in self.functions.items()}, dict(self.parameters), self.facts)

    def opened(self, context: int) -> Module:
        """The module that an artifact computes when it is opened with this context: each rope table has one set of
        frequencies."""
        result = self.copy()
        for function in result.functions.values():
            for node in function.nodes():
                if node.op == "rope":
                    table = node.attributes["table"].opened(context)
                    function.replace_node(node.name, attributes={**node.attributes, "table": table})
        return result

    def with_provenance(self, line: str) -> Module:
        """The same module with another line of provenance."""
        facts = replace(self.facts, provenance=(*self.facts.provenance, line))
        return Module(self.functions, self.parameters, facts)

    def stored_bits(self) -> int:
        """Bits that all parameters take as encoded, tied ones once."""
        return sum(p.encoding.stored_bits(p.shape) for p in self.parameters.values())

    def weight_count(self) -> int:
        """How many numbers the parameters have, tied ones once."""
        total = 0
        for parameter in self.parameters.values():
            count = 1
            for dim in parameter.shape:
                count *= dim
            total += count
        return total

    def bits_per_weight(self) -> float:
        """True average bits per weight, embeddings, head, scales and padding included."""
        return self.stored_bits() / self.weight_count()
