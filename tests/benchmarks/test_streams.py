"""benchmarks.streams: every order reads every byte once, none outside. No time is judged."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.streams import CODE_BYTES, ORDERS, PAGE, SCALE_BYTES, TILE_BYTES, Order, main, walks


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("tiles", [1, 18, 19, 100, 1001])
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.name)
def test_every_byte_is_read_once(order: Order, tiles: int, threads: int) -> None:
    begun = []
    for walk in walks(order, PAGE, tiles, threads):
        for first in range(walk.begin, walk.end, walk.step):
            for t in range(first, min(first + walk.run, walk.end)):
                begun.append((walk.codes + t * walk.code_stride, CODE_BYTES))
                begun.append((walk.scales + t * walk.scale_stride, SCALE_BYTES))
    begun.sort()
    assert len(begun) == 2 * tiles
    assert begun[0][0] == PAGE
    assert sum(begun[-1]) <= PAGE + tiles * TILE_BYTES + PAGE
    gaps = [later - (place + size) for (place, size), (later, _) in itertools.pairwise(begun)]
    assert min(gaps) >= 0
    assert sum(gap > 0 for gap in gaps) <= order.apart


def test_a_short_run(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--megabytes", "1", "--threads", "2", "--rounds", "2", "--json", str(file)]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert all(order.name in result.output for order in ORDERS)
    figures = json.loads(file.read_text(encoding="utf-8"))["bytes_per_s"]
    for order in ORDERS:
        assert {threads: len(speeds) for threads, speeds in figures[order.name].items()} == (
            {"2": 2} if order.turns else {"1": 2, "2": 2}
        )
        assert min(min(speeds) for speeds in figures[order.name].values()) > 0
