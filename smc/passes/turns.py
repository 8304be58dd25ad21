"""What turning the residual stream and the values by orthogonal matrices does to the parameters of a model.

Every function of the ir is read once: a norm's weights, the matrices behind it, those that write into the stream and
those around attention are found by what nodes read, whatever the architecture. What can't be turned is a `CannotTurn`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from smc.ir import Function, Module, Node


class CannotTurn(Exception):
    """Why a model's residual stream stays as it is; the message names the node."""


@dataclass(frozen=True)
class Turn:
    """Blocks of that many columns times a Hadamard matrix; with signs, columns are given random signs before."""

    block: int
    signs: bool = False


@dataclass(frozen=True)
class Edit:
    """How a parameter changes: its columns times those of `scale`, a norm's parameter; then the columns turned, and the
    rows; or `ones`: it becomes ones, as its factors went into the matrices behind it."""

    scale: str | None = None
    columns: Turn | None = None
    rows: Turn | None = None
    ones: bool = False


@dataclass
class FunctionTurns:
    """What a function's slots become when its stream is turned; `scale` of an edit is a slot here.

    norms: nodes of norms on the stream, and the linears behind each. scales: the slots of their weights. is_turned:
    whether the result is in the turned basis.
    """

    edits: dict[str, Edit] = field(default_factory=dict)
    norms: dict[str, list[Node]] = field(default_factory=dict)
    scales: dict[str, str] = field(default_factory=dict)
    is_turned: bool = False


def block_of(columns: int) -> int:
    """The largest power of two that divides the columns."""
    return columns & -columns


def stream_turns(function: Function, turned_inputs: frozenset[str], turn: Turn) -> FunctionTurns:
    """What turning the residual stream does to a function, of whose inputs these are in the turned basis.

    CannotTurn where something but norms without a mean and sums reads the stream, or something but a matrix writes it.
    """
    found, stream, normed = FunctionTurns(), set(turned_inputs), dict[str, Node]()
    for node in function.nodes():
        read = [name for name in node.inputs if name in stream]
        if node.op == "embedding":
            found.edits[node.inputs[1]] = Edit(columns=turn)
            stream.add(node.name)
        elif node.op == "add" and read:
            for other in set(node.inputs) - stream:
                _write(function, other, turn, found)
            stream.add(node.name)
        elif node.op == "rms_norm" and read == [node.inputs[0]] and not node.attributes["residual"]:
            if function.node(node.inputs[1]).tensor.shape != (node.tensor.shape[1],):
                raise CannotTurn(f"{node.name} norms parts of the residual stream")
            normed[node.name] = node
            found.norms[node.name], found.scales[node.name] = [], node.inputs[1]
            found.edits[node.inputs[1]] = Edit(ones=True)
        elif node.op == "linear" and node.inputs[0] in normed and set(node.inputs[1:]).isdisjoint(stream | set(normed)):
            norm = normed[node.inputs[0]]
            found.norms[norm.name].append(node)
            found.edits[node.inputs[1]] = replace(
                found.edits.get(node.inputs[1], Edit()), scale=norm.inputs[1], columns=turn
            )
        elif read or any(name in normed for name in node.inputs):
            raise CannotTurn(f"{node.name}, {node.op}, reads the residual stream or its norm")
    if any(name in normed for name in function.outputs):
        raise CannotTurn(f"{function.name} returns a norm of the residual stream")
    found.is_turned = any(name in stream for name in function.outputs)
    return found


def _write(function: Function, value: str, turn: Turn, found: FunctionTurns) -> None:
    """A value that is added to the stream: the rows of the matrix that makes it are turned."""
    node = function.node(value)
    if node.op != "linear" or node.attributes["residual"] or len(function.users(value)) != 1:
        raise CannotTurn(f"{value}, {node.op}, is added to the residual stream and is no product of a matrix alone")
    for slot in node.inputs[1:]:
        found.edits[slot] = replace(found.edits.get(slot, Edit()), rows=turn)


def value_turns(function: Function) -> dict[str, Edit]:
    """What turning the values of every head does to a function: the rows of the matrix that makes them, and the columns
    of the one behind attention, which mixes tokens but no columns. Left out where others read one of the two."""
    edits: dict[str, Edit] = {}
    for node in function.attentions():
        value = function.node(node.inputs[2])
        readers = function.users(node.name)
        turn = Turn(block_of(node.attributes["head_dim"]))
        plain = value.op == "linear" and not value.attributes["residual"] and len(function.users(value.name)) == 1
        read = all(reader.op == "linear" and reader.inputs[0] == node.name for reader in readers)
        if turn.block < 2 or not plain or not read or not readers or node.name in function.outputs:
            continue
        if value.name in function.outputs or any(reader.inputs.count(node.name) > 1 for reader in readers):
            continue
        for slot in value.inputs[1:]:
            edits[slot] = Edit(rows=turn)
        for reader in readers:
            edits[reader.inputs[1]] = Edit(columns=turn)
    return edits


def joined(first: Edit, second: Edit) -> Edit | None:
    """Two edits of different sides of one parameter as one; None where both change one side."""
    if first.ones or second.ones or (first.columns and second.columns) or (first.rows and second.rows):
        return None
    return Edit(first.scale or second.scale, first.columns or second.columns, first.rows or second.rows)


def slots_of(module: Module) -> Iterator[tuple[Node, Function, str, str]]:
    """Every slot of every call: call, function, slot, parameter."""
    for call, function in module.calls():
        for slot, name in call.attributes["parameters"].items():
            yield call, function, slot, name
