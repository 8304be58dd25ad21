"""The load generator and what is made of its results, with the counting program behind a server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.serve import over_http, shared_prompt, soak
from benchmarks.serve_load import Plan, percentiles
from benchmarks.servers import Server
from smc.serve.scheduler import Limits
from tests.runtime.conftest import artifact, build_program, program
from tests.serve.conftest import serving

__all__ = ["artifact", "build_program", "program"]


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[Server]:
    with serving(artifact, limits=Limits(running=16, waiting=64), sequences=33, context_length=4000) as place:
        yield Server("smc", "counting", int(place.rsplit(":", 1)[1]), os.getpid())


def test_percentiles():
    assert percentiles("x", [3.0, 1.0, 2.0]) == {"x_p50": 2.0, "x_p99": 3.0}
    assert percentiles("x", []) == {"x_p50": 0.0, "x_p99": 0.0}


def test_loads(server: Server):
    result = over_http([server], [1, 3], 4, 2, 1)
    for kind in ("http", "streamed"):
        for count in (1, 3):
            figures = result["smc"][kind][str(count)]
            assert (figures["texts"], figures["failed"]) == (2 * count, 0) and figures["tokens_per_s"] > 0
    assert result["smc"]["streamed"]["3"]["first_token_s_p50"] > 0


def test_failures_are_counted(server: Server):
    result = Plan(server.port, "other", 2, 4, 3).run()
    assert (result["texts"], result["failed"]) == (3, 3)


@pytest.mark.slow
def test_a_soak_and_a_shared_prompt(server: Server):
    result = soak(server, 0.1, 8)
    assert result["failed"] == 0 and result["texts"] > 16
    assert result["growth"] == pytest.approx(result["memory_mib"][1] / result["memory_mib"][0] - 1)
    shared = shared_prompt(server, 4, texts=3)
    assert shared["later_s"] > 0 and shared["part"] == pytest.approx(shared["later_s"] / shared["first_s"])
