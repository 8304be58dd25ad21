"""Planner: ir → plan. Which kernels run when, on which buffers (plan.py).

Calls of `main` that agree in ops, attributes and the forms of their activations share one function plan; what differs
between them (weights, encodings, FFN widths) is read from a table at run time. So programs grow with the number of
different layers only.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

from smc.codegen.kernels.abi import F32_FORM, AttentionShape, Form, form_for
from smc.codegen.kernels.specs import (
    AttentionKernel,
    ElementwiseKernel,
    MergeKernel,
    QuantizeTokensKernel,
    RmsNormKernel,
    RopeKernel,
    TransformKernel,
)
from smc.codegen.plan import Buffer, FunctionPlan, Plan, RopeTable, Task, rope_table
from smc.errors import InputError
from smc.ir import Function, Module, Node

MAX_KV_GROUPS = 8
"""SMC_MAX_KV_GROUPS of the engine's program.h."""

DIRECT_GROUPS = (32, 64, 128)
"""Columns that may share a scale in codes that a chain of linears makes."""


def make_plan(module: Module) -> Plan:
    """Plan a verified module; InputError for what codegen can't do yet."""
    planner = _Planner()
    order: list[tuple[FunctionPlan, Node]] = []
    shared: dict[object, FunctionPlan] = {}
    for call, function in module.calls():
        forms = _input_forms(module, call, function)
        key = (repr(list(function.nodes())), function.outputs, repr(sorted(forms.items())))
        if key not in shared:
            taken = {plan.name for plan in shared.values()}
            names = itertools.chain([function.name], (f"{function.name}_{i}" for i in itertools.count(2)))
            shared[key] = planner.plan(next(name for name in names if name not in taken), function, forms)
        shared[key].calls.append(call)
        order.append((shared[key], call))
    plans = list(shared.values())
    embeds = [p for p in plans if p.x is None]
    heads = [p for p, call in order if call.name in module.main.outputs]
    blocks = [p for p in plans if p not in embeds and p not in heads]
    if len(embeds) != 1 or len(heads) != 1 or order[0][0] is not embeds[0] or order[-1][0] is not heads[0]:
        raise InputError("codegen takes modules whose main is an embedding, blocks and a head, one after the other")
    for (_, before), (_, call) in itertools.pairwise(order):
        if before.name not in call.inputs:
            raise InputError(f"codegen takes a chain of calls; {call.name} does not read {before.name}")
    hidden = embeds[0].function.node(embeds[0].function.outputs[0]).tensor.shape[1]
    assert isinstance(hidden, int)
    plan = Plan(module, embeds[0], blocks, heads[0], order, planner.rope_tables, hidden)
    if len(plan.kv_groups) > MAX_KV_GROUPS:
        kinds = f"{len(plan.kv_groups)} kinds of K and V (KV heads, head_dim, window)"
        raise InputError(f"the layers have {kinds}; codegen takes up to {MAX_KV_GROUPS}")
    return plan


def _input_forms(module: Module, call: Node, function: Function) -> dict[str, Form]:
    """For every linear of a call: the form in which its weights want the input."""
    forms = {}
    for node in function.nodes():
        if node.op == "linear":
            encoding = module.parameters[call.attributes["parameters"][node.inputs[1]]].encoding
            forms[node.name] = form_for(encoding)
    return forms


class _Planner:
    def __init__(self) -> None:
        self.rope_tables: list[RopeTable] = []

    def plan(self, name: str, function: Function, forms: dict[str, Form]) -> FunctionPlan:
        self.function, self.forms = function, forms
        self.buffers: dict[str, Buffer] = {}
        self.codes: dict[tuple[str, Form], Buffer] = {}
        self.producer: dict[Buffer, Task] = {}
        self.readers: dict[Buffer, list[Task]] = {}
        self.tasks: list[Task] = []
        x = None
        for node in function.inputs():
            if node.tensor.dtype == "f32":
                x = self.buffers[node.name] = Buffer(node.name, node.tensor.shape[1], [F32_FORM])
        for node in function.nodes():
            if node.op not in ("input", "parameter"):
                handler = getattr(self, f"_{node.op}", None)
                if handler is None:
                    raise InputError(f"there is no kernel for the op {node.op} yet ({function.name}: {node.name})")
                handler(node)
        result = self.buffers[function.outputs[0]]
        self._choose_kernels()
        self._chain_linears()
        for task in self.tasks:
            task.phase = 1 + max((other.phase for other in task.after), default=-1)
        phases: list[list[Task]] = [[] for _ in range(1 + max(task.phase for task in self.tasks))]
        for task in self.tasks:
            phases[task.phase].append(task)
        for phase, following in itertools.pairwise(phases):
            if len(phase) > 1 or phase[0].joins not in following:
                for task in phase:
                    task.joins = None
            self._make_private(phase, following, [b for b in (x, result) if b is not None])
        used = dict.fromkeys(b for task in self.tasks for b in task.buffers() if not b.chained)
        return FunctionPlan(name, function, phases, [b for b in used if b not in (x, result)], x, result)

    # ---- tasks and their order

    def _task(self, task: Task, in_place: Buffer | None = None) -> Task:
        """Add a task after whoever makes its inputs; one that writes in place also after all other readers."""
        for buffer in task.inputs:
            if buffer in self.producer:
                task.after.append(self.producer[buffer])
            self.readers.setdefault(buffer, []).append(task)
        if in_place is not None:
            task.after += [reader for reader in self.readers.get(in_place, []) if reader is not task]
            if in_place in self.producer:
                task.after.append(self.producer[in_place])
        if task.output is not None:
            self.producer[task.output] = task
        self.tasks.append(task)
        return task

    def _new(self, node: Node) -> Buffer:
        buffer = self.buffers[node.name] = Buffer(node.name, node.tensor.shape[1])
        return buffer

    def _reader_forms(self, node: Node) -> list[Form]:
        """The forms in which a value is read; a value also returned or read by other ops is kept as f32."""
        forms: list[Form] = []
        for user in self.function.users(node.name):
            form = F32_FORM
            if user.op == "linear" and user.inputs[0] == node.name:
                form = self.forms[user.name]
                form = F32_FORM if form.permuted or form.rotation else form
                if user.attributes["residual"] and user.inputs[-1] == node.name:
                    forms.append(F32_FORM)
            if form not in forms:
                forms.append(form)
        if node.name in self.function.outputs and F32_FORM not in forms:
            forms.append(F32_FORM)
        return sorted(dict.fromkeys(forms), key=str)

    def _produce(self, node: Node, kind: str, blocks: str, inputs: list[str]) -> None:
        """An op that can hand out its result in several forms at once.

        Norms have whole tokens. Elsewhere token-wise codes need a task of their own, and wider groups than a tile
        wherever blocks of work may cut them.
        """
        out = self._new(node)
        wanted = self._reader_forms(node)
        groups = DIRECT_GROUPS if self._will_be_chained(node) else (32,)
        direct = [form for form in wanted if kind == "rms_norm" or form.group in groups]
        if len(direct) < len(wanted) and F32_FORM not in direct:
            direct.insert(0, F32_FORM)
        for form in direct:
            out.need(form)
            self.codes[node.name, form] = out
        slot = node.inputs[1] if kind == "rms_norm" else None
        self._task(Task(kind, node, blocks, inputs=[self.buffers[i] for i in inputs], output=out, slot=slot))

    def _transformed(self, node: Node, form: Form) -> str:
        """The name of a linear's input in the order and the basis of its matrix."""
        name, source = f"{node.name}_input", self.buffers[node.inputs[0]]
        out = self.buffers[name] = Buffer(name, source.width, [F32_FORM])
        kernel = TransformKernel(form.permuted, form.rotation)
        self._task(Task("transform", node, "tokens", kernel, inputs=[source], output=out, slot=node.inputs[1]))
        return name

    def _input_in_form(self, value: str, form: Form, node: Node) -> Buffer:
        """The buffer of a value in a form, quantized by a task of its own where its producer did not do it.

        Such codes have a buffer of their own: the value's may be written again in place.
        """
        if form == F32_FORM:
            return self.buffers[value]
        if (value, form) not in self.codes:
            source = self.buffers[value]
            codes = self.codes[value, form] = Buffer(value, source.width, [form])
            blocks = "chunks" if form.group == 32 else "tokens"
            self._task(Task("quantize", node, blocks, inputs=[source], output=codes, input_form=form))
        return self.codes[value, form]

    # ---- ops

    def _embedding(self, node: Node) -> None:
        out = self._new(node)
        out.need(F32_FORM)
        self._task(Task("embedding", node, "tokens", output=out, slot=node.inputs[1]))

    def _rms_norm(self, node: Node) -> None:
        self._produce(node, "rms_norm", "tokens", [node.inputs[0]])

    def _linear(self, node: Node) -> None:
        form = self.forms[node.name]
        value = node.inputs[0]
        if form.permuted or form.rotation:
            value, form = self._transformed(node, form), replace(form, permuted=False, rotation=None)
        source = self._input_in_form(value, form, self.function.node(node.inputs[0]))
        bias = node.inputs[2] if node.attributes["bias"] else None
        task = Task("linear", node, "rows", inputs=[source], slot=node.inputs[1], bias=bias, input_form=form)
        if not node.attributes["residual"]:
            task.output = self._new(node)
            task.output.need(F32_FORM)
            self._task(task)
            return
        residual = self.buffers[node.inputs[-1]]
        later = [u for u in self.function.users(node.inputs[-1]) if u.name != node.name and u.name not in self.buffers]
        # A value that linears read as codes, too, is no result of a function, which is of floats alone.
        if later or node.inputs[-1] in self.function.outputs or residual is source or len(residual.forms) > 1:
            copy = Buffer(f"{node.name}_residual", residual.width, [F32_FORM])
            self._task(Task("copy", node, "chunks", inputs=[residual], output=copy))
            residual = copy
        task.accumulate, task.output = True, residual
        self.buffers[node.name] = residual
        self._task(task, in_place=residual)

    def _rope(self, node: Node) -> None:
        """Done by who reads it: the write of k into the cache, and attention."""
        self.buffers[node.name] = self.buffers[node.inputs[0]]

    def _attention(self, node: Node) -> None:
        attributes = node.attributes
        ropes = [self.function.node(i) for i in node.inputs[:2]]
        rotary = [rope.op == "rope" for rope in ropes]
        if rotary[0] != rotary[1] or (rotary[0] and ropes[0].attributes != ropes[1].attributes):
            raise InputError(f"attention {node.name}: q and k must be rotated alike")
        if rotary[0]:
            if rope_table(ropes[0]) not in self.rope_tables:
                self.rope_tables.append(rope_table(ropes[0]))
            for rope in ropes:
                if len(self.function.users(rope.inputs[0])) > 1 or len(self.function.users(rope.name)) > 1:
                    raise InputError(f"attention {node.name}: rotated q and k must have no other reader")
        q, k, v = (self.buffers[i] for i in node.inputs)
        shape = AttentionShape(attributes["heads"], attributes["kv_heads"], attributes["head_dim"], "f16", rotary[0])
        write = self._task(Task("rope_cache", node, "kv", RopeKernel(shape), inputs=[k, v]))
        out = self._new(node)
        out.need(F32_FORM)
        task = Task("attention", node, "tiles", AttentionKernel(shape), inputs=[q], output=out, after=[write])
        write.joins = self._task(task)
        self._task(Task("merge", node, "merges", MergeKernel(shape), output=out, after=[task]))

    def _gated_activation(self, node: Node) -> None:
        if node.attributes["activation"] != "silu":
            raise InputError(f"there is no kernel for the activation {node.attributes['activation']} yet")
        self._produce(node, "gated_silu", "chunks", list(node.inputs))

    def _silu(self, node: Node) -> None:
        self._produce(node, "silu", "chunks", list(node.inputs))

    def _mul(self, node: Node) -> None:
        self._produce(node, "mul", "chunks", list(node.inputs))

    def _add(self, node: Node) -> None:
        self._produce(node, "add", "chunks", list(node.inputs))

    def _choose_kernels(self) -> None:
        """Kernels whose forms are known only when all readers are."""
        for task in self.tasks:
            if task.output is not None and task.kind == "rms_norm":
                task.kernel = RmsNormKernel(tuple(task.output.forms))
            elif task.output is not None and task.kind in ("add", "mul", "silu", "gated_silu", "copy"):
                task.kernel = ElementwiseKernel(task.kind, tuple(task.output.forms))
            elif task.kind == "quantize":
                form = task.input_form
                task.kernel = ElementwiseKernel("copy", (form,)) if form.group == 32 else QuantizeTokensKernel(form)

    def _chain_linears(self) -> None:
        """Element-wise ops join the linears whose results only they read; a block of rows is a tile of columns."""
        for task in list(self.tasks):
            makers = [self.producer.get(buffer) for buffer in task.inputs]
            if not isinstance(task.kernel, ElementwiseKernel) or task.kind == "copy" or task.output is None:
                continue
            linears = [m for m in dict.fromkeys(makers) if m is not None and m.kind == "linear" and not m.accumulate]
            alone = all(self.readers[buffer] == [task] for buffer in task.inputs)
            if len(linears) < len(set(makers)) or not alone:
                continue
            if any(linear.output is not None and linear.output.value in self.function.outputs for linear in linears):
                continue
            parts = [*linears, task]
            task.kernel = replace(task.kernel, chained=True)
            for buffer in task.inputs:
                buffer.chained = True
            after = [t for part in parts for t in part.after if t not in parts]
            inputs = list(dict.fromkeys(b for linear in linears for b in linear.inputs))
            chain = Task("chain", task.node, "rows", inputs=inputs, output=task.output, slot=linears[0].slot)
            chain.after, chain.parts = list(dict.fromkeys(after)), parts
            self.producer[task.output] = chain
            # After everything that any of them reads.
            self.tasks[max(self.tasks.index(linear) for linear in linears)] = chain
            self.tasks = [t for t in self.tasks if t not in parts]
            for other in self.tasks:
                other.after = list(dict.fromkeys(chain if t in parts else t for t in other.after))
            for buffer in inputs:
                self.readers[buffer] = [chain if t in parts else t for t in self.readers[buffer]]

    def _will_be_chained(self, node: Node) -> bool:
        """Whether `_chain_linears` is sure to find that an element-wise op is the only reader of linears' results."""
        makers = [self.function.node(value) for value in dict.fromkeys(node.inputs)]
        return len(makers) == len(node.inputs) and all(
            maker.op == "linear"
            and not maker.attributes["residual"]
            and self.function.users(maker.name) == [node]
            and maker.name not in self.function.outputs
            for maker in makers
        )

    def _make_private(self, phase: list[Task], following: list[Task], shared: list[Buffer]) -> None:
        """A phase that only norms or quantizes what the next phase alone reads, and does not overwrite."""
        [first, *others] = phase
        if others or first.kind not in ("rms_norm", "quantize") or first.output is None or first.output in shared:
            return
        written = [part.output for task in following for part in task.kernels()]
        if set(self.readers[first.output]) <= set(following) and not any(b in written for b in first.inputs):
            first.private = first.output.private = True
