"""How much memory there is: of the machine, and of the cgroups of a container."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import WEIGHTS, compile_fake_program, write_artifact
from .test_phases import FILES, run

MIB = 1 << 20
MACHINE = 8 << 30
V2, V1 = "0::/a/b\n", "9:memory:/a/b\n4:cpu,cpuacct:/\n0::/\n"
UNLIMITED = 0x7FFFFFFFFFFFF000

# ---- files as they are, in folders of our own


def stat(version: int, inactive: int, active: int) -> str:
    """A memory.stat; of version 1 the first numbers are of the group without its children."""
    if version == 2:
        return f"anon 5000\nfile 99999999\ninactive_file {inactive}\nactive_file {active}\nshmem 7\n"
    return f"cache 9\ninactive_file 1\nactive_file 2\ntotal_inactive_file {inactive}\ntotal_active_file {active}\n"


def v2(limit: object, used: int = 0, inactive: int = 0, active: int = 0, at: str = "a/b") -> dict[str, str]:
    return {
        f"{at}/memory.max": f"{limit}\n",
        f"{at}/memory.current": f"{used}\n",
        f"{at}/memory.stat": stat(2, inactive, active),
    }


def v1(limit: object, used: int = 0, inactive: int = 0, active: int = 0, at: str = "memory/a/b") -> dict[str, str]:
    return {
        f"{at}/memory.limit_in_bytes": f"{limit}\n",
        f"{at}/memory.usage_in_bytes": f"{used}\n",
        f"{at}/memory.stat": stat(1, inactive, active),
    }


@pytest.mark.parametrize(
    ("membership", "files", "left"),
    [
        (V2, {}, MACHINE),
        (V2, v2("max", 3000), MACHINE),
        (V2, v2(100 * MIB), 100 * MIB),
        (V2, v2(100 * MIB, 30 * MIB), 70 * MIB),
        (V2, v2(100 * MIB, 90 * MIB, 20 * MIB, 30 * MIB), 60 * MIB),  # what it holds of files counts as free
        (V2, v2(100 * MIB, 120 * MIB), 0),
        (V2, v2(100 * MIB, 10 * MIB, 20 * MIB, 30 * MIB), 100 * MIB),  # the counts are taken one after the other
        (V2, v2("max") | v2(50 * MIB, 10 * MIB, at="a"), 40 * MIB),  # a parent's limit counts
        (V2, v2(60 * MIB) | v2(500 * MIB, 450 * MIB, at="a"), 50 * MIB),  # … with what its other children use
        (V2, v2(16 << 30), MACHINE),
        ("0::/docker/x\n", v2(70 * MIB, at="."), 70 * MIB),  # the mount is the container's own group
        ("0::/g\n", v2(80 * MIB, at="unified/g"), 80 * MIB),
        (V1, v1(UNLIMITED, 5000), MACHINE),
        (V1, v1(100 * MIB, 90 * MIB, 20 * MIB, 30 * MIB), 60 * MIB),
        (V1, v1(UNLIMITED) | v1(40 * MIB, at="memory"), 40 * MIB),
        ("3:cpu,memory:/\n", v1(90 * MIB, at="cpu,memory"), 90 * MIB),
        ("3:cpu,memory:/\n", v1(90 * MIB, at="memory"), 90 * MIB),
        ("nonsense\n0::\n:::\n", {"memory.max": "nonsense\n"}, MACHINE),
        (V2, {"a/b/memory.max": "1000\n"}, 1000),  # and nothing says what is used
    ],
)
def test_the_least_of_machine_and_cgroups(
    driver: Callable[..., Path], tmp_path: Path, membership: str, files: dict[str, str], left: int
) -> None:
    (tmp_path / "cgroup").write_text(membership)
    (tmp_path / "meminfo").write_text(f"MemTotal: 999 kB\nMemAvailable:   {MACHINE // 1024} kB\nBuffers: 1 kB\n")
    root = tmp_path / "mounts"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    program = driver("phases", *FILES)
    assert int(run(program, "memory", tmp_path / "meminfo", tmp_path / "cgroup", root, 1 << 50)) == left
    enough = max(left // 2, 1)  # then what is free at once may do
    assert enough <= int(run(program, "memory", tmp_path / "meminfo", tmp_path / "cgroup", root, enough)) or left == 0


# ---- a cgroup of this machine


@pytest.fixture
def limit_memory() -> Iterator[Callable[[int], Callable[[], None]]]:
    """Makes a cgroup of so many bytes → what puts a child into it."""
    name = f"smc-test-{os.getpid()}"
    for folder, limit in (("memory", "memory.limit_in_bytes"), (".", "memory.max")):
        group = Path("/sys/fs/cgroup") / folder / name
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(1 << 30))
            break
        except OSError:
            group.rmdir()
    else:
        pytest.skip("this process may not make a cgroup with a memory limit")

    def limited(size: int) -> Callable[[], None]:
        (group / limit).write_text(str(size))
        return lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None

    yield limited
    group.rmdir()


CHILD = """
import sys, pathlib
from smc.errors import InputError
from smc.runtime.binding import Engine
from tests.runtime.engine.fake_model import feed, tokens_of

engine = Engine(sys.argv[2], pathlib.Path(sys.argv[1]).read_bytes(), sequences=200, threads=1)
sequence = engine.sequence_create()
feed(engine, [(sequence, tokens_of(64))])
page = engine.sequence_save(sequence)
try:
    for _ in range(int(sys.argv[3])):
        feed(engine, [(engine.sequence_restore(page), [1])])  # two pages
except InputError as error:
    print("told:", error)
print("pages", engine.info().kv_bytes_used // engine.facts.kv_bytes_per_token // 64)
"""


def child(program: Path, artifact: Path, pages: int, enter: Callable[[], None]) -> str:
    """What a process in the cgroup prints; it ends by itself."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(program), str(artifact), str(pages)],
        capture_output=True, text=True, check=False, preexec_fn=enter, timeout=100,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr)  # -9: killed
    return done.stdout


def test_a_cache_that_outgrows_the_cgroup_is_a_sentence(
    artifact: Path, tmp_path: Path, limit_memory: Callable[[int], Callable[[], None]]
) -> None:
    """The process was killed."""
    program = compile_fake_program(tmp_path / "program.so", "-DFAKE_LAYERS=768")  # 6 MiB a page
    output = child(program, artifact, 100, limit_memory(256 * MIB))
    assert "told: the KV cache needs another 6 MiB and there are" in output
    assert 10 < int(output.split()[-1]) < 256 / 6


def test_weights_that_do_not_fit_the_cgroup_stay_mapped(
    tmp_path: Path, limit_memory: Callable[[int], Callable[[], None]]
) -> None:
    """The process was killed."""
    size = 120 * MIB
    program = compile_fake_program(tmp_path / "program.so", f"-DFAKE_WEIGHT_BYTES={size}")
    artifact = write_artifact(tmp_path / "fake.smc", WEIGHTS + bytes(size - len(WEIGHTS)))
    assert child(program, artifact, 2, limit_memory(112 * MIB)).split() == ["pages", "5"]
    artifact.unlink()


