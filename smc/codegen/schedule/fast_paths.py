"""The fast paths in the order in which they run, by the names that `smc compile --without` knows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from smc.codegen.plan.plan import Plan
from smc.codegen.schedule.argmax import argmax
from smc.codegen.schedule.chains import chains
from smc.codegen.schedule.joins import joins
from smc.codegen.schedule.prefetch import prefetch
from smc.codegen.schedule.private import private
from smc.codegen.schedule.schedule import Schedule
from smc.codegen.schedule.straight import straight
from smc.codegen.schedule.tail import tail
from smc.codegen.schedule.traits import Traits
from smc.errors import InputError

FastPath = Callable[[Schedule], Schedule]

FAST_PATHS: dict[str, FastPath] = {
    "chains": chains,
    "private": private,
    "joins": joins,
    "tail": tail,
    "argmax": argmax,
    "prefetch": prefetch,
}
"""Each may be left out; later ones then get a schedule without it."""


def make_schedule(plan: Plan, traits: Traits, without: Collection[str] = ()) -> Schedule:
    """The straight schedule of a plan, then all fast paths except some; InputError for an unknown name."""
    return apply_paths(plan, traits, FAST_PATHS, without)


def apply_paths(
    plan: Plan, traits: Traits, paths: Mapping[str, FastPath], without: Collection[str] = ()
) -> Schedule:
    """The same with the fast paths of one kind of device; names of others have no effect."""
    for name in without:
        if name not in FAST_PATHS:
            raise InputError(f"there is no fast path {name!r}: use one of {', '.join(FAST_PATHS)}")
    schedule = straight(plan, traits)
    for name, fast_path in paths.items():
        if name not in without:
            schedule = fast_path(schedule)
    return schedule
