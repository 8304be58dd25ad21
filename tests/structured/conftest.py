"""The counting program, whose 256 tokens are bytes: any text can be written with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from smc.runtime import Model, load
from smc.structured.constraint import Grammars
from tests.runtime.conftest import artifact, build_program, program

__all__ = ["artifact", "build_program", "program"]


@pytest.fixture(scope="package")
def model(artifact: Path) -> Iterator[Model]:
    with load(artifact, threads=1) as model:
        yield model


@pytest.fixture(scope="package")
def grammars(model: Model) -> Grammars:
    return Grammars(model)
