"""The cache: where it is, what is read from it, and how it heals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from smc.codegen import cache
from smc.folders import cache_folder

ROOT = Path(__file__).parents[2]
KEY, OTHER = cache.key_of("one"), cache.key_of("other")
DATA, FACTS = bytes(range(256)) * 9, {"symbol": "f"}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SMC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SMC_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    assert cache_folder() == tmp_path / "users" / "smc"
    monkeypatch.setenv("SMC_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    assert cache.cache_trouble() is None


def test_what_is_kept_comes_back(folder: Path) -> None:
    assert cache.fetch(KEY) is None
    cache.keep(KEY, DATA, FACTS)
    cache.keep(OTHER, b"")
    assert cache.fetch(KEY) == cache.Entry(FACTS, DATA)
    assert cache.fetch(OTHER) == cache.Entry({}, b"")
    assert cache.cache_state().entries == 2
    assert cache.cache_state().damaged == 0
    assert sorted(path.name for path in (folder / "objects").iterdir()) == sorted([KEY, OTHER])


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def folder_in_place(path: Path) -> None:
    path.unlink()
    (path / "below").mkdir(parents=True)


def pipe_in_place(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_in_place(path: Path, to: str) -> None:
    path.unlink()
    path.symlink_to(to)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut in the head": lambda path: os.truncate(path, 10),
    "cut after the head": lambda path: os.truncate(path, path.read_bytes().index(b"\n") + 1),
    "cut in the data": lambda path: os.truncate(path, path.stat().st_size - 1),
    "a bit of the hash": lambda path: path.write_bytes(flipped(path.read_bytes(), 12)),
    "a bit of the facts": lambda path: path.write_bytes(flipped(path.read_bytes(), 90)),
    "a bit of the data": lambda path: path.write_bytes(flipped(path.read_bytes(), path.stat().st_size - 100)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another entry's": lambda path: path.write_bytes((path.parent / OTHER).read_bytes()[:-1] + b"x"),
    "a folder": folder_in_place,
    "a pipe": pipe_in_place,
    "a link to nothing": lambda path: link_in_place(path, "gone"),
    "a link to itself": lambda path: link_in_place(path, path.name),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_seen_and_mended(folder: Path, damage: Callable[[Path], object]) -> None:
    cache.keep(KEY, DATA, FACTS)
    cache.keep(OTHER, DATA)
    damage(folder / "objects" / KEY)
    assert cache.fetch(KEY) is None
    cache.keep(KEY, DATA, FACTS)
    assert cache.fetch(KEY) == cache.Entry(FACTS, DATA)
    assert cache.fetch(OTHER) == cache.Entry({}, DATA)
    assert cache.cache_state().damaged == 0


def test_health_and_clearing(folder: Path) -> None:
    """Only what is ours goes: SMC_CACHE may name a folder with other things in it."""
    for key in (KEY, OTHER):
        cache.keep(key, DATA)
    (folder / "engine").mkdir()
    (folder / "engine" / "old.o").write_bytes(bytes(100))
    (folder / "mine.txt").write_text("x")
    size = sum(path.stat().st_size for path in (folder / "objects").iterdir()) + 100
    os.truncate(folder / "objects" / KEY, 5)
    size -= len(DATA) + len((folder / "objects" / OTHER).read_bytes()) - len(DATA) - 5
    assert cache.cache_state() == cache.CacheState(2, 1, size)
    assert cache.clear_cache() == size
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    assert cache.clear_cache() == 0


def test_half_written_files_of_killed_processes_are_swept(folder: Path) -> None:
    """Not those of living ones, who hold a lock."""
    script = (
        "import os, signal, sys; from smc.codegen import cache\n"
        "die = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.replace = lambda *_: die() if sys.argv[1] == 'die' else input(print('here'))\n"
        "cache.keep(sys.argv[2], bytes(1000))\n"
    )
    command = [sys.executable, "-c", script]
    assert subprocess.run([*command, "die", KEY], cwd=ROOT, check=False).returncode == -9
    with subprocess.Popen(
        [*command, "wait", OTHER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ}
    ) as living:
        assert living.stdout is not None and living.stdout.readline()
        left = {path.name for path in (folder / "objects").iterdir()}
        assert left == {f"{KEY}.partial", f"{OTHER}.partial"}
        cache.sweep()
        assert {path.name for path in (folder / "objects").iterdir()} == {f"{OTHER}.partial"}
        cache.keep(OTHER, DATA)  # the other process does it
        assert cache.fetch(OTHER) is None
        living.kill()


@pytest.mark.parametrize(
    ("place", "reason"),
    [("file", "Not a directory"), ("file/cache", "Not a directory"), ("n" * 256, "File name too long")],
)
def test_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str, reason: str) -> None:
    """Nothing is kept then, and nothing fails."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SMC_CACHE", str(tmp_path / place))
    assert reason in str(cache.cache_trouble())
    cache.keep(KEY, DATA)
    assert cache.fetch(KEY) is None
    cache.sweep()
    assert cache.cache_state() == cache.CacheState(0, 0, 0)
    assert cache.clear_cache() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("home", ["/proc/nowhere", None])
def test_without_a_home(home: str | None, tmp_path: Path) -> None:
    """Said by `smc doctor`. None: a user whom the system does not know."""
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "SMC_CACHE")}
    environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)} | ({"HOME": home} if home else {})
    unknown = "" if home else "import pwd\npwd.getpwuid = {}.__getitem__\n"
    code = f"{unknown}from smc.cli.main import run\nimport sys\nsys.exit(run(['doctor', '--json']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    check = next(check for check in json.loads(done.stdout)["toolchain"] if check["name"] == "cache")
    assert ("/proc/nowhere/.cache/smc can't be made" if home else "there is no home folder") in check["found"]
    assert check["fix"] == "set SMC_CACHE to a folder that can be written"
    assert list(tmp_path.iterdir()) == []
