"""The thread pool and its phases, driven by phases.c on more threads than this machine has, too."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

FILES = ("pool.c", "phase.c", "placement.c", "profile.c", "cgroup.c", "memory.c", "clock.c")
Driver = Callable[..., Path]


def run(program: Path, *arguments: object, **variables: str) -> str:
    done = subprocess.run(
        [str(program), *map(str, arguments)], capture_output=True, text=True, timeout=120, env=variables, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("sanitizer", ["", "thread", "address,undefined"])
def test_every_block_runs_once_and_phases_keep_their_order(driver: Driver, threads: int, sanitizer: str) -> None:
    program = driver("phases", *FILES, sanitizer=sanitizer)
    run(program, "stress", threads, 30 if sanitizer else 150, threads + 1)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 3, 5, 16, 64])
def test_long_stress(driver: Driver, threads: int) -> None:
    run(driver("phases", *FILES), "stress", threads, 4000, threads)
    run(driver("phases", *FILES, sanitizer="thread"), "stress", threads, 200, threads)


def test_stress_without_pinning(driver: Driver) -> None:
    run(driver("phases", *FILES), "stress", 2, 100, 5, SMC_PIN="0")


@pytest.mark.parametrize("threads", [2, 4])
def test_nobody_waits_for_a_thread_that_holds_no_block(driver: Driver, threads: int) -> None:
    run(driver("phases", *FILES, sanitizer="thread"), "late", threads)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_short_shares_are_taken_whole_unless_threads_are_uneven(driver: Driver, threads: int) -> None:
    run(driver("phases", *FILES, sanitizer="thread"), "uneven", threads)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_cancelled_step_ends_and_the_next_one_is_whole(driver: Driver, threads: int) -> None:
    run(driver("phases", *FILES, sanitizer="thread"), "cancel", threads, 20)


@pytest.mark.parametrize("threads", [1, 2, 3, 12])
def test_a_thread_that_waits_asks_for_its_share_of_the_next_phase(driver: Driver, threads: int) -> None:
    run(driver("phases", *FILES, sanitizer="thread"), "prefetch", threads)


def test_workers_keep_off_the_callers_cpu(driver: Driver) -> None:
    cpus = len(os.sched_getaffinity(0))
    if cpus == 1:
        pytest.skip("one CPU: there is nowhere to go")
    for threads in {2, cpus}:
        run(driver("phases", *FILES), "place", threads)


@pytest.mark.parametrize(
    ("membership", "files", "cpus"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 0),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),  # rounded up
        ("0::/\n", {"cpu.max": "20000 100000\n"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),  # a parent's limit counts
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000\n", "a/cpu.max": "300000 100000\n"}, 1),
        ("0::/docker/x\n", {"cpu.max": "400000 100000\n"}, 4),  # the mount is the container's own group
        ("4:cpu,cpuacct:/\n", {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 0),
        (
            "9:memory:/x\n4:cpu,cpuacct:/g\n0::/\n",
            {"cpu,cpuacct/g/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/g/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "25000\n"}, 2),
        ("5:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "50000\n", "cpuset/cpu.cfs_period_us": "25000\n"}, 0),
        ("nonsense\n0::\n:::\n", {"cpu.max": "nonsense\n"}, 0),
        ("0::/\n", {}, 0),
    ],
)
def test_cgroup_quota(driver: Driver, tmp_path: Path, membership: str, files: dict[str, str], cpus: int) -> None:
    (tmp_path / "cgroup").write_text(membership)
    root = tmp_path / "mounts"
    root.mkdir()
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    assert int(run(driver("phases", *FILES), "quota", tmp_path / "cgroup", root)) == cpus


@pytest.mark.parametrize(
    ("capacities", "fast"),
    [
        ([1024] * 4, [0, 1, 2, 3]),
        ([381] * 4 + [1024] * 2, [4, 5]),  # RK3399
        ([1024] * 4 + [397] * 4, [0, 1, 2, 3]),
        ([325] * 3 + [770] * 4 + [1024], [3, 4, 5, 6, 7]),  # a phone's three kinds
        ([325, 325, None, 1024], [0, 1, 2, 3]),  # nothing is known of one
        ([None] * 3, [0, 1, 2]),
        ([0, 0], [0, 1]),
    ],
)
def test_fast_cpus(driver: Driver, tmp_path: Path, capacities: list[int | None], fast: list[int]) -> None:
    for cpu, capacity in enumerate(capacities):
        (tmp_path / f"cpu{cpu}").mkdir()
        if capacity is not None:
            (tmp_path / f"cpu{cpu}" / "cpu_capacity").write_text(f"{capacity}\n")
    kept = run(driver("phases", *FILES), "fast", tmp_path, len(capacities))
    assert [int(cpu) for cpu in kept.split()] == fast
