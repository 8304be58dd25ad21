"""benchmarks.placement: rounds go where the CPUs were. No time is judged."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import llama_cpp, placement
from benchmarks.placement import Figures, markdown, measure
from benchmarks.reads import place


def test_a_round_in_which_the_cpus_moved_has_no_place() -> None:
    assert place([1e-7, 2e-7, 1e-7]) == "near"
    assert place([5e-7, 7e-7]) == "far"
    assert place([1e-7, 7e-7]) is place([7e-7, 1e-7, 7e-7]) is None


def test_figures_are_of_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    trips = iter([1e-7, 1e-7, 1e-7, 5e-7, 5e-7, 5e-7, 1e-7, 5e-7, 1e-7])
    speeds = iter([(300.0, 100.0), (800.0, 200.0), (7.0, 7.0)])
    (row,) = [row for row in llama_cpp.rows(2) if row.key == "smollm2-decode"]

    def run(*, swapped: bool, between: Callable[[], object]) -> None:
        between()
        own, other = next(speeds)
        row.smc.append(own)
        row.llama_cpp.append(other)

    monkeypatch.setattr(row, "measure", run)
    monkeypatch.setattr(placement.Reads, "round_trip", lambda self, pool: next(trips))
    found = measure([row], 3)
    assert found["smollm2-decode"] == {"near": Figures([300.0], [100.0]), "far": Figures([800.0], [200.0])}
    line = markdown([row], found).splitlines()[-1]
    assert line.endswith("| 1 | 300 / 100 | 3.00× (3.00 – 3.00) | 1 | 800 / 200 | 4.00× (4.00 – 4.00) |")


def test_no_rounds_and_shares_have_cells_too() -> None:
    assert Figures().cells() == "0 | | |"
    assert Figures([90.0, 94.0]).cells() == "2 | | 92.0 % |"
