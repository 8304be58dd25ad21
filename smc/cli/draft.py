"""`--draft`: the drafter, which guesses tokens so that a model is faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from smc.runtime import Model
    from smc.runtime.speculation import Drafter

draft_option = click.option(
    "--draft",
    metavar="WHAT",
    help="Drafter that guesses tokens, which is faster and changes no text: `lookup` (what the text had before), an "
    "n-gram model, or a smaller artifact.",
)


def drafter_of(what: str | None, model: Model) -> Callable[[], Drafter | None]:
    """A function that makes a drafter for each text of `model`. Raises InputError if the two do not have the same
    tokens."""
    if what is None:
        return lambda: None
    from smc.runtime.drafters import Drafters

    return Drafters(what, model).new
