"""A task's blocks as C, as far as they are the same for all kinds of machines."""

from __future__ import annotations

from collections.abc import Mapping

from smc.codegen.plan.arguments import Buffer, Routing
from smc.codegen.plan.work import WIDTH_MULTIPLE
from smc.codegen.program.scope import Range, Scope

CLAIMED: Mapping[str, str] = {"begin": "phase.begin", "end": "phase.end"}
"""The blocks that a thread, or a block of CUDA threads, has claimed."""


def tiles(scope: Scope, buffer: Buffer) -> str:
    """How many tiles of columns the rows of all tokens have."""
    rows = "N" if buffer.rows == 1 else f"N * {buffer.rows}"
    return f"{rows} * ({scope.width(buffer)} / {WIDTH_MULTIPLE})"


def chunks(scope: Scope, buffer: Buffer) -> str:
    """How many chunks of tiles these are: the blocks of a task on columns."""
    chunk = scope.schedule.traits.chunk_tiles
    return f"({tiles(scope, buffer)} + {chunk - 1}) / {chunk}"


def claimed_tiles(scope: Scope, buffer: Buffer) -> Mapping[str, str]:
    """The tiles of the claimed chunks, of which the last may be shorter."""
    chunk, count = scope.schedule.traits.chunk_tiles, tiles(scope, buffer)
    end = f"phase.end * {chunk} < {count} ? phase.end * {chunk} : {count}"
    return {"begin": f"phase.begin * {chunk}", "end": end}


def groups(routing: Routing) -> str:
    """How many experts all tokens may choose; the table has zeros behind those that they did."""
    most = f"N * {routing.chosen}"
    return f"({most} < {routing.experts} ? {most} : {routing.experts})"


EXPERT = Range("n", "first", expert="expert")
"""The rows of one expert."""


def expert(scope: Scope, routing: Routing, number: str) -> tuple[str, str]:
    """C that declares which expert a group is of, and which rows."""
    group = f"const int32_t *group = {scope.name(routing.groups)} + 3 * {number};"
    return group, "const int32_t expert = group[0], first = group[1], n = group[2];"
