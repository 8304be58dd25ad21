"""Planner: ir → plan. Each op's lowering (smc/codegen/ops) adds its kernels, on buffers.

Calls of `main` that agree in ops, attributes and the forms of their activations share one function plan; what differs
between them (weights, encodings, FFN widths) is read from a table at run time. So programs grow with the number of
different layers only.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping

from smc.codegen.ops import find_lowering
from smc.codegen.plan.lowering import Forms, FunctionLowering
from smc.codegen.plan.plan import FunctionPlan, Plan
from smc.errors import InputError
from smc.ir import Function, Module, Node

MAX_KV_GROUPS = 8
"""SMC_MAX_KV_GROUPS of the engine's program.h."""


def make_plan(module: Module) -> Plan:
    """Plan a verified module; InputError for what codegen can't do yet."""
    order: list[tuple[FunctionPlan, Node]] = []
    shared: dict[Hashable, FunctionPlan] = {}
    for call, whole in module.calls():
        function = whole.copy()
        function.remove_dead()  # values without readers have no form
        forms = input_forms(module, call, function)
        key = signature(function, forms)
        if key not in shared:
            name = _free_name(function.name, {plan.name for plan in shared.values()})
            shared[key] = plan_function(name, function, forms)
        shared[key].calls.append(call)
        order.append((shared[key], call))
    return _program(module, list(shared.values()), order)


def input_forms(module: Module, call: Node, function: Function) -> Forms:
    """The forms in which the nodes of a call read their inputs, which its parameters decide."""
    slots = call.attributes["parameters"]
    forms = {}
    for node in _computed(function):
        lowering = find_lowering(function, node)
        for place, form in lowering.input_forms(node, lambda slot: module.parameters[slots[slot]]).items():
            forms[node.name, place] = form
    return forms


def signature(function: Function, forms: Forms) -> Hashable:
    """What must be equal for calls to run the same code: nodes with their attributes, outputs, forms."""
    nodes = tuple((n.name, n.op, n.inputs, _frozen(n.attributes), n.type) for n in function.nodes())
    return nodes, function.outputs, frozenset(forms.items())


def plan_function(name: str, function: Function, forms: Forms) -> FunctionPlan:
    """The operations of a function, of which `main` has one activation, or token ids, as input."""
    f = FunctionLowering(function, forms)
    inputs = [node for node in function.inputs() if node.tensor.dtype == "f32"]
    if len(inputs) > 1:
        names = ", ".join(node.name for node in inputs)
        raise InputError(f"codegen supports functions with one input of activations; {function.name} has {names}")
    x = None
    for node in inputs:
        x = f.new_buffer(node.name, node.tensor.shape[1])
    for node in _computed(function):
        find_lowering(function, node).lower(f, node)
        f.lowered.add(node.name)
    plan = FunctionPlan(name, function, f.operations, x, f.buffer(function.outputs[0]))
    if len(plan.attentions()) > 1:
        raise InputError(f"codegen supports one attention per function; {name} has {len(plan.attentions())}")
    return plan


def _program(module: Module, plans: list[FunctionPlan], order: list[tuple[FunctionPlan, Node]]) -> Plan:
    """The calls as embedding, blocks and head; InputError if they are not."""
    embeds = [p for p in plans if p.x is None]
    heads = [p for p, call in order if call.name in module.main.outputs]
    blocks = [p for p in plans if p not in embeds and p not in heads]
    if len(embeds) != 1 or len(heads) != 1 or order[0][0] is not embeds[0] or order[-1][0] is not heads[0]:
        raise InputError("codegen supports modules whose main is an embedding, blocks and a head, one after the other")
    for (_, before), (_, call) in itertools.pairwise(order):
        if before.name not in call.inputs:
            raise InputError(f"codegen supports calls in sequence; {call.name} does not read {before.name}")
    plan = Plan(module, embeds[0], blocks, heads[0], order)
    groups = len(plan.kv_groups())
    if groups > MAX_KV_GROUPS:
        kinds = f"{groups} kinds of K and V (KV heads, head_dim, window)"
        raise InputError(f"the layers have {kinds}; codegen supports up to {MAX_KV_GROUPS}")
    return plan


def _computed(function: Function) -> Iterable[Node]:
    """The nodes that ops compute, in order."""
    return (node for node in function.nodes() if node.is_computed)


def _free_name(name: str, taken: set[str]) -> str:
    names = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(2)))
    return next(name for name in names if name not in taken)


def _frozen(value: object) -> Hashable:
    """An attribute as something that can be compared and hashed."""
    if isinstance(value, Mapping):
        return tuple((key, _frozen(item)) for key, item in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    assert isinstance(value, Hashable), value
    return value
