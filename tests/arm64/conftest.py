"""Models compiled for emulated CPUs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

import smc
from benchmarks.models import glassllm
from smc.ir import Module
from smc.passes import load_recipe
from tests.emulation import link_driver

Built = tuple[Module, tuple[Path, Path]]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Built]:
    """(recipe, target) → glassllm as compiled, and its driver; each is built once."""

    @functools.cache
    def checkpoint() -> Path:
        path = tmp_path_factory.mktemp("glassllm") / "glassllm"
        glassllm(path)
        return path

    @functools.cache
    def build_one(recipe: str, target: str) -> Built:
        module = smc.apply(smc.load_checkpoint(checkpoint()), load_recipe(recipe).passes)
        return module, link_driver(module, target, tmp_path_factory.mktemp(f"{recipe}-{target}"))

    return build_one
