"""The argmax head: the head's matmul keeps the largest logit of each token in place of writing all.

Greedy decoding needs no more. The logits of a vocabulary are long; this way they are not written, read or copied.

Gain: up to 4 % of decoding (1 % and 4 % in two runs; SmolLM2-135M, int4-plain, two threads): for each token 197 kB of
logits are not written and not searched (`python -m benchmarks.fast_paths MODEL argmax --rounds 200`).
"""

from __future__ import annotations

from dataclasses import replace

from smc.codegen.kernels.abi import COMPACT
from smc.codegen.kernels.specs import LinearKernel
from smc.codegen.plan.arguments import Argmaxes, Number
from smc.codegen.plan.domains import Rows
from smc.codegen.plan.plan import BySlot
from smc.codegen.schedule.schedule import Schedule, Task


def argmax(schedule: Schedule) -> Schedule:
    """For heads whose logits one linear computes from the last hidden states, with one encoding in all calls.

    An op that keeps the order of logits, such as a soft-cap, does not change the largest one: it is left out.
    """
    head = schedule.head
    [task, *others] = head.phases[-1].tasks
    if others or not isinstance(task.blocks, Rows) or task.calls[-1].writes != (head.plan.result,):
        return schedule
    call = task.calls[0]
    if task.is_chain and not _keeps_order(task):
        return schedule
    if not isinstance(call.kernel, BySlot) or call.operation.updates:
        return schedule
    slot = call.kernel.slot
    encodings = {schedule.plan.sizes(head.plan, node).parameter(slot).encoding for node in head.plan.calls}
    if len(encodings) > 1:
        return schedule
    flags = call.arguments["flags"]
    assert isinstance(flags, Number) and isinstance(flags.value, int)
    arguments = {
        **call.arguments,
        "out": Argmaxes(),
        "out_stride": Number(schedule.plan.vocab_size),
        "flags": Number(flags.value & ~COMPACT),
    }
    largest = replace(call, kernel=LinearKernel(encodings.pop(), argmax=True), arguments=arguments)
    phases = (*head.phases[:-1], replace(head.phases[-1], tasks=(replace(task, argmax=largest),)))
    changed = replace(head, phases=phases)
    return replace(schedule, functions=tuple(changed if f is head else f for f in schedule.functions))


def _keeps_order(chain: Task) -> bool:
    """Whether a chain is one linear, and what follows it keeps the order of its results."""
    [*linears, last] = chain.calls
    return len(linears) == 1 and all(operation.increasing for operation in last.operations)
