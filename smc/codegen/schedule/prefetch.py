"""Prefetching: threads load memory into caches while they wait.

A thread that waits at the end of a phase prefetches the first weights of its share of the next one. Before it computes
keys and values, it prefetches their places in the KV cache, which were last used a whole step ago.

Gain: about 1.5 % of decoding (SmolLM2-135M, int4-plain, two threads, 1,846 pairs of 6 tokens)
(`python -m benchmarks.fast_paths MODEL prefetch --rounds 1800`).
"""

from __future__ import annotations

from dataclasses import replace

from smc.codegen.plan.arguments import Cache, KvShape
from smc.codegen.plan.domains import CacheWrites
from smc.codegen.schedule.schedule import FunctionSchedule, Phase, Schedule
from smc.codegen.schedule.traits import Traits


def prefetch(schedule: Schedule) -> Schedule:
    """All phases prefetch weights; those that begin with a private result, before the KV cache is written, also
    prefetch the cache."""
    return schedule.change(_function)


def _function(function: FunctionSchedule, traits: Traits) -> FunctionSchedule:
    following = (*function.phases[1:], Phase(()))
    phases = tuple(
        replace(phase, prefetches=True, prefetched_caches=_caches(after) if phase.first else ())
        for phase, after in zip(function.phases, following, strict=True)
    )
    return replace(function, phases=phases)


def _caches(phase: Phase) -> tuple[KvShape, ...]:
    """The shapes of the keys and values that a phase writes."""
    writes = [call for task in phase.tasks if isinstance(task.blocks, CacheWrites) for call in task.calls]
    shapes = dict.fromkeys(a.shape for call in writes for a in call.arguments.values() if isinstance(a, Cache))
    return tuple(shapes)
