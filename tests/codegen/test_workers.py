"""Worker processes: every job is done once, a dead worker is named, and nobody outlives the caller."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smc.codegen.workers import Worker, WorkerDiedError, run_in_workers
from smc.errors import InputError
from smc.targets import find_target


def test_every_job_is_done_once(tmp_path: Path) -> None:
    jobs = [(str(tmp_path / str(i)),) for i in range(7)]
    assert sorted(run_in_workers(os.mkdir, jobs, workers=2)) == list(range(7))
    assert len(list(tmp_path.iterdir())) == 7


def test_a_worker_that_dies_is_named() -> None:
    with pytest.raises(WorkerDiedError, match="status 3") as death:
        list(run_in_workers(os._exit, [(3,)], workers=2))
    assert death.value.job == 0


def test_idle_workers_wait_for_the_next_jobs() -> None:
    spare: list[Worker] = []
    list(run_in_workers(time.sleep, [(0,), (0,)], 2, spare))
    first = {worker.process.pid for worker in spare}
    list(run_in_workers(time.sleep, [(0,)], 2, spare))
    with pytest.raises(RuntimeError, match="TypeError"):
        list(run_in_workers(time.sleep, [("no number",)], 2, spare))
    assert {worker.process.pid for worker in spare} == first and len(first) == 2
    places = run_in_workers(time.sleep, [(0,), (600,)], 2, spare)
    next(places)
    places.close()  # one is busy
    [left] = spare
    left.process.kill()
    left.process.wait()
    assert list(run_in_workers(time.sleep, [(0,)], 1, spare)) == [0]
    [fresh] = spare
    assert fresh.process.pid not in first
    fresh.close()


def test_faults_come_back() -> None:
    with pytest.raises(InputError, match="unknown target 'riscv'"):
        list(run_in_workers(find_target, [("riscv",)], workers=1))
    with pytest.raises(FileNotFoundError, match="/nowhere/at-all"):
        list(run_in_workers(os.rmdir, [("/nowhere/at-all",)], workers=1))
    with pytest.raises(RuntimeError, match=r"Traceback(.|\n)*ValueError: embedded null byte"):
        list(run_in_workers(os.rmdir, [("\0",)], workers=1))


def test_memory_that_is_limited_explains_odd_faults() -> None:
    script = (
        "import os, resource\n"
        "from smc.codegen.workers import run_in_workers\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 34, 1 << 34))\n"
        "list(run_in_workers(os.rmdir, [('\\0',)], workers=1))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert "InputError: a worker process failed: probably for lack of memory" in run.stderr


def test_workers_end_with_the_generator(tmp_path: Path) -> None:
    script = tmp_path / "without_a_guard.py"
    script.write_text(
        "import os, time\n"
        "from smc.codegen.workers import run_in_workers\n"
        "places = run_in_workers(time.sleep, [(0,), (600,)], 2)\n"
        "print(next(places))\n"
        "places.close()\n"
        "try:\n"
        "    os.waitpid(-1, 0)\n"
        "except ChildProcessError:\n"
        "    print('no children')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=60)
    assert run.stdout.split("\n") == ["0", "no children", ""], run.stderr
