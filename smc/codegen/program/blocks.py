"""A task's blocks as C, as far as they are the same for all kinds of machines."""

from __future__ import annotations

from collections.abc import Mapping

from smc.codegen.plan.arguments import Buffer
from smc.codegen.plan.work import WIDTH_MULTIPLE
from smc.codegen.program.scope import Scope

CLAIMED: Mapping[str, str] = {"begin": "phase.begin", "end": "phase.end"}
"""The blocks that a thread, or a block of CUDA threads, has claimed."""


def tiles(scope: Scope, buffer: Buffer) -> str:
    """How many tiles of columns all tokens have."""
    return f"N * ({scope.width(buffer)} / {WIDTH_MULTIPLE})"


def chunks(scope: Scope, buffer: Buffer) -> str:
    """How many chunks of tiles these are: the blocks of a task on columns."""
    chunk = scope.schedule.traits.chunk_tiles
    return f"({tiles(scope, buffer)} + {chunk - 1}) / {chunk}"


def claimed_tiles(scope: Scope, buffer: Buffer) -> Mapping[str, str]:
    """The tiles of the claimed chunks, of which the last may be shorter."""
    chunk, count = scope.schedule.traits.chunk_tiles, tiles(scope, buffer)
    end = f"phase.end * {chunk} < {count} ? phase.end * {chunk} : {count}"
    return {"begin": f"phase.begin * {chunk}", "end": end}
