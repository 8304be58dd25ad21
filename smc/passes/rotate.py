"""The pass `rotate`: weights in a basis in which none stands out, at no cost when the model runs."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from smc.ir import F32, EncodedTensor, Function, Module, Parameter, encode_float, rotate
from smc.passes.base import Context, Need, Pass
from smc.passes.registry import register
from smc.passes.turns import (
    CannotTurn,
    Edit,
    FunctionTurns,
    Turn,
    block_of,
    joined,
    slots_of,
    stream_turns,
    value_turns,
)

if TYPE_CHECKING:
    from torch import Tensor

LEAST_BLOCK = 16
"""Blocks of fewer columns spread too little."""


@register("rotate")
@dataclass(frozen=True)
class Rotate(Pass):
    """Rotate the hidden states and the values, so that weights and activations are easier to round.

    After QuaRot (arXiv 2404.00456) and SpinQuant (2405.16406): the residual stream in another basis, its columns given
    random signs and multiplied in blocks by a Hadamard matrix, and so are the values of every head. That folds into the
    matrices around, and the weights of norms into those behind them: nothing is computed for it, but where the head is
    tied to the embedding two transforms of the last hidden state. Changes no result by itself: put it before a
    quantizer. What is rotated is stored as f32 until then. A model whose norms subtract a mean, or stand where the
    stream is written, keeps its stream.
    stream, values: which of the two.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"torch"})

    stream: bool = True
    values: bool = True

    def run(self, module: Module, context: Context) -> Module:
        """Fold the rotations into the parameters."""
        result, edits, said = module.copy(), dict[str, Edit](), list[str]()
        if self.stream:
            try:
                edits = _Stream(module, context).fold(result)
                said.append("the residual stream rotated")
            except CannotTurn as reason:
                said.append(f"the residual stream stays as it is: {reason}")
        if self.values:
            count = 0
            for own in _value_edits(module, context):
                together = {name: joined(edits.get(name, Edit()), edit) for name, edit in own.items()}
                if all(together.values()):
                    edits |= {name: edit for name, edit in together.items() if edit is not None}
                    count += 1
            said.append(f"the values of {count} layers rotated")
        signs = _signs(module, edits, context.seed)
        for name, edit in edits.items():
            load = functools.partial(_edited, module.parameters[name], edit, _scale(module, edit), signs)
            result.parameters[name] = replace(module.parameters[name], encoding=F32, load=load)
        context.report("; ".join(said))
        return result


class _Stream:
    """The residual stream of a module on its way into another basis."""

    def __init__(self, module: Module, context: Context) -> None:
        self._module, self._context = module, context
        self._edits: dict[str, Edit] = {}
        self._covered: Counter[str] = Counter()  # parameter → how many of its uses are accounted for

    def fold(self, result: Module) -> dict[str, Edit]:
        """The edits of all parameters; the head's function is changed in `result` where it is tied."""
        turn = Turn(block_of(self._width()), signs=True)
        if turn.block < LEAST_BLOCK:
            raise CannotTurn(f"{self._width()} columns have no blocks of {LEAST_BLOCK} or more")
        turned: set[str] = set()
        tied: list[tuple[Function, str]] = []
        for call, function in self._module.calls():
            inputs = (node.name for node in function.inputs())
            flowing = frozenset(own for own, given in zip(inputs, call.inputs, strict=True) if given in turned)
            found = stream_turns(function, flowing, turn)
            bound: dict[str, str] = call.attributes["parameters"]
            tied += [(function, norm) for norm in found.norms if self._is_tied(found, norm, bound, turn)]
            for slot, edit in found.edits.items():
                named = edit if edit.scale is None else replace(edit, scale=bound[edit.scale])
                if self._edits.setdefault(bound[slot], named) != named:
                    raise CannotTurn(f"{bound[slot]} is used in two ways")
                self._covered[bound[slot]] += 1
            if found.is_turned:
                turned.add(call.name)
        if turned & set(self._module.main.outputs):
            raise CannotTurn("the model's result is the residual stream")
        self._check(Counter(function.name for function, _ in tied))
        for function, norm in tied:
            _turn_back(result.functions[function.name], norm, turn.block)
        return self._edits

    def _width(self) -> int:
        """Columns of the stream."""
        tables = self._module.parameters_of("embedding")
        if not tables:
            raise CannotTurn("no embedding begins it")
        return self._module.parameters[tables[0]].shape[1]

    def _is_tied(self, found: FunctionTurns, norm: str, bound: dict[str, str], turn: Turn) -> bool:
        """Whether the matrices behind a norm are tables of embeddings; their edits and the norm's are then dropped."""
        slots = [reader.inputs[1] for reader in found.norms[norm]]
        tables = [self._edits.get(bound[slot]) == Edit(columns=turn) for slot in slots]
        if not any(tables):
            return False
        if not all(tables):
            raise CannotTurn(f"{norm} is read by a tied matrix and by others")
        for slot in slots:
            found.edits.pop(slot)
            self._covered[bound[slot]] += 1
        found.edits.pop(found.scales[norm])
        return True

    def _check(self, changed: Counter[str]) -> None:
        """CannotTurn where a parameter has codes that are kept or another use, or a changed function another call."""
        uses = Counter(name for _, _, _, name in slots_of(self._module))
        for name in self._edits:
            parameter = self._module.parameters[name]
            if not parameter.encoding.is_float and parameter.load not in self._context.requantize:
                raise CannotTurn(f"{name} is quantized")
            if uses[name] != self._covered[name]:
                raise CannotTurn(f"{name} is used elsewhere, too")
        calls = Counter(function.name for _, function in self._module.calls())
        for name, count in changed.items():
            if calls[name] != 1 or count != 1:
                raise CannotTurn(f"{name} is a tied head that is called more than once")


def _turn_back(function: Function, norm: str, block: int) -> None:
    """The stream back into its own basis for this norm, and what that makes into the table's: signs cancel."""
    node = function.node(norm)
    back = function.add("hadamard", node.inputs[0], name=function.fresh_name("own_basis"), block=block)
    function.replace_node(norm, inputs=(back, *node.inputs[1:]))
    turned = function.add("hadamard", norm, name=function.fresh_name(f"{norm}_turned"), block=block)
    for user in function.users(norm):
        if user.name != turned:
            function.replace_node(user.name, inputs=tuple(turned if i == norm else i for i in user.inputs))


def _value_edits(module: Module, context: Context) -> list[dict[str, Edit]]:
    """The edits of the values, call by call, where all of a call's matrices are floats and used there alone."""
    uses = Counter(name for _, _, _, name in slots_of(module))
    found = []
    for call, function in module.calls():
        edits = {call.attributes["parameters"][slot]: edit for slot, edit in value_turns(function).items()}
        parameters = [module.parameters[name] for name in edits]
        free = all(p.encoding.is_float or p.load in context.requantize for p in parameters)
        if edits and free and all(uses[name] == 1 for name in edits):
            found.append(edits)
    return found


def _signs(module: Module, edits: dict[str, Edit], seed: int) -> Tensor | None:
    """1 or -1 for every column of the stream, float32; None where it stays."""
    import torch

    for name, edit in edits.items():
        if edit.columns is not None and edit.columns.signs:
            generator = torch.Generator().manual_seed(seed)
            return torch.randint(0, 2, (module.parameters[name].shape[1],), generator=generator).float() * 2 - 1
    return None


def _scale(module: Module, edit: Edit) -> Parameter | None:
    return None if edit.scale is None else module.parameters[edit.scale]


def _edited(parameter: Parameter, edit: Edit, scale: Parameter | None, signs: Tensor | None) -> EncodedTensor:
    """The parameter after its edit, in float32."""
    import torch

    values = parameter.values()
    if edit.ones:
        return encode_float(torch.ones_like(values), F32)
    matrix = values.view(len(values), -1)
    if scale is not None:
        matrix = matrix * scale.values()
    if edit.columns is not None:
        matrix = _turned(matrix, edit.columns, signs)
    if edit.rows is not None:
        matrix = _turned(matrix.T.contiguous(), edit.rows, signs).T
    return encode_float(matrix.reshape(values.shape).contiguous(), F32)


def _turned(matrix: Tensor, turn: Turn, signs: Tensor | None) -> Tensor:
    """float32 [rows, columns] with its columns turned."""
    if turn.signs:
        assert signs is not None
        matrix = matrix * signs
    return rotate(matrix, turn.block)
