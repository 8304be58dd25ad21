"""Troubles of the machine, each real: every one ends in an artifact or in a sentence, never as a bug of smc's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

PASSES = '''
import sys
from dataclasses import dataclass, replace

from smc.passes import Pass, register


@register("wrong")
@dataclass(frozen=True)
class Wrong(Pass):
    """Goes wrong in many ways."""

    how: str

    def __post_init__(self):
        if self.how == "option":
            raise KeyError("no such option")

    def run(self, module, context):
        if self.how == "exit":
            sys.exit(0)
        if self.how == "recursion":
            return self.run(module, context)
        if self.how == "file":
            open("/nowhere/at/all")
        if self.how == "nothing":
            return None
        result = module.copy()
        for name, parameter in module.parameters.items():
            load = late if self.how == "late" else lambda: 3
            result.parameters[name] = replace(parameter, load=load)
        return result


def late():
    raise ZeroDivisionError("too late")
'''

COMPILE = "smc compile checkpoint --quant int8 -o out.smc"
TWO = "error: "
"""The status is 2, and the last line begins so."""

QUICK = {
    "full output": ("smc targets >/dev/full", "not enough disk space: standard output"),
    "closed output": ("smc targets >&-", "standard output is closed"),
    "full error": ("smc compile nothing 2>/dev/full", None),
    "closed error": ("smc compile nothing 2>&-", None),
    "closed input, output and error": ("smc targets <&- >&- 2>&-", None),
    "deep YAML": (
        """echo "passes: $(printf '[%.0s' {1..30000})" >deep.yaml; smc compile checkpoint --recipe deep.yaml""",
        "deep.yaml is nested too deeply",
    ),
    "a recipe that is a folder": ("mkdir r.yaml; smc compile checkpoint --recipe r.yaml", "no recipe file r.yaml"),
    "a pass in a file that exits": ("echo 'exit(0)' >p.py; smc compile checkpoint -p ./p.py:x", "it called exit (0)"),
    "a pass with a wrong option": ("smc compile checkpoint -p ./passes.py:wrong:how=option", "failed in line 17"),
}
"""Command, and what the sentence says; None if nobody can read it."""

LONG: dict[str, tuple[str, str | None]] = {
    "no trouble": (COMPILE, ""),
    "a file may not be so long": (f"ulimit -f 100; {COMPILE}", "the file is too large"),
    "few descriptors": (f"ulimit -n 16; {COMPILE}", TWO),
    "some descriptors": (f"ulimit -n 64; {COMPILE}", TWO),
    "no memory": (f"ulimit -v 150000; {COMPILE}", "memory"),
    "little memory": (f"ulimit -v 400000; {COMPILE}", "memory"),
    "some memory": (f"ulimit -v 500000; {COMPILE}", "memory"),
    "a name too long": ("smc compile checkpoint -o $(printf 'n%.0s' {1..300})", "File name too long"),
    "the name of a model too long": ("smc compile $(printf 'n%.0s' {1..300})", "File name too long"),
    "listings onto a file": (f"touch f; {COMPILE} --emit c f", "f is not a folder"),
    "listings below a file": (f"touch f; {COMPILE} --emit c f/g", "f is not a folder"),
    "listings where nothing can be made": (f"{COMPILE} --emit c /proc/listings", TWO),
    "records that are a folder": (f"{COMPILE} --records .", "is a folder"),
    "records that are a pipe": (f"mkfifo p; {COMPILE} --records p", "not a regular file"),
    "records below a file": (f"touch f; SMC_RECORDS=f/records {COMPILE}", ""),
    "a cache that is a file": (f"touch f; SMC_CACHE=f {COMPILE}", ""),
    "a cache below a file": (f"touch f; SMC_CACHE=f/cache {COMPILE}", ""),
    "no home": (f"unset HOME; {COMPILE}", ""),
    "a home that can't be": (f"HOME=/proc/nowhere SMC_CACHE= {COMPILE}", ""),
    "no working directory": ("mkdir g; cd g; rmdir ../g; smc compile ../checkpoint -o out.smc", TWO),
    "no temporary folder": (f"TMPDIR=/nowhere {COMPILE}", ""),
    "no path": (f"PATH= {COMPILE}", ""),
    "closed error": (f"{COMPILE} 2>&-", ""),
    "full error": (f"{COMPILE} 2>/dev/full", ""),
    "full output": (f"{COMPILE} >/dev/full", "not enough disk space: standard output"),
    "a pass that exits": ("smc compile checkpoint -p ./passes.py:wrong:how=exit", "it called exit (0)"),
    "a pass without an end": ("smc compile checkpoint -p ./passes.py:wrong:how=recursion", "RecursionError"),
    "a pass that misses a file": ("smc compile checkpoint -p ./passes.py:wrong:how=file", "passes.py failed in line"),
    "a pass that gives nothing": ("smc compile checkpoint -p ./passes.py:wrong:how=nothing", "must return a Module"),
    "a pass that fails late": ("smc compile checkpoint -p ./passes.py:wrong:how=late", "too late"),
    "a pass that gives a number": ("smc compile checkpoint -p ./passes.py:wrong:how=int", "returns int for"),
}
"""The same; an empty text: an artifact is made all the same."""

MOUNTED = {
    "a cache that can only be read": (
        f"mount --bind cache cache && mount -o remount,ro,bind cache cache && {COMPILE}",
        "",
    ),
    "a cache without space": (f"mkdir m; mount -t tmpfs -o size=64k none m && SMC_CACHE=m {COMPILE}", ""),
    "an output without space": (
        "mkdir m; mount -t tmpfs -o size=700k none m && smc compile checkpoint --quant int8 -o m/out.smc",
        "there is not enough disk space",
    ),
}
"""The same, in a space of mounts of its own."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, a file of passes and a cache."""
    import torch
    import transformers

    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("troubles")
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY)).save_pretrained(folder / "checkpoint")
    (folder / "passes.py").write_text(PASSES)
    return folder


def result(place: Path, script: str, *before: str) -> subprocess.CompletedProcess[bytes]:
    """A script of bash in `place`, in which `smc` is a command; what it leaves there is removed by the next."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SMC_CACHE": str(place / "cache")}
    define = f'smc() {{ "{sys.executable}" -m smc "$@"; }}\n'
    command = [*before, "bash", "-c", define + script]
    return subprocess.run(command, capture_output=True, cwd=place, env=environment, check=False)


def check(place: Path, script: str, sentence: str | None, *before: str) -> None:
    kept = {place / "checkpoint", place / "passes.py", place / "cache"}
    done = result(place, script, *before)
    said = done.stderr.decode()
    for word in ("Traceback", "bug in smc", "panicked"):
        assert word not in said
    assert [path.name for path in place.iterdir() if path.name.startswith(".")] == []
    if sentence == "":
        assert done.returncode == 0, said
        assert zipfile.is_zipfile(place / "out.smc")
    else:
        assert done.returncode == 2, said
        if sentence is not None:
            assert said.splitlines()[-1].startswith("error: ")
            assert sentence in said.splitlines()[-1]
    for path in set(place.iterdir()) - kept:
        subprocess.run(["rm", "-r", str(path)], check=True)


@pytest.mark.parametrize("trouble", QUICK)
def test_quick(place: Path, trouble: str) -> None:
    check(place, *QUICK[trouble])


@pytest.mark.slow
@pytest.mark.parametrize("trouble", LONG)
def test_compiling(place: Path, trouble: str) -> None:
    check(place, *LONG[trouble])


@pytest.mark.slow
@pytest.mark.parametrize("trouble", MOUNTED)
def test_file_systems(place: Path, trouble: str) -> None:
    spaces = ("unshare", "--map-root-user", "--mount")
    if subprocess.run([*spaces, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mounts of one's own here")
    check(place, COMPILE, "")  # the cache is complete
    check(place, *MOUNTED[trouble], *spaces)


# ---------------------------------------------------------------- caches


def entries(place: Path) -> list[Path]:
    return sorted((place / "cache" / "objects").iterdir())


def cut(path: Path, size: Callable[[int], int]) -> None:
    os.truncate(path, size(path.stat().st_size))


def flip(path: Path, part: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * part)] ^= 4
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: cut(path, lambda size: 0),
    "cut in half": lambda path: cut(path, lambda size: size // 2),
    "cut by a byte": lambda path: cut(path, lambda size: size - 1),
    "longer": lambda path: cut(path, lambda size: size + 1),
    "a bit at the start": lambda path: flip(path, 0),
    "a bit near the start": lambda path: flip(path, 0.02),
    "a bit in the middle": lambda path: flip(path, 0.5),
    "a bit near the end": lambda path: flip(path, 0.99),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "text": lambda path: path.write_text('{"symbol": "f"}'),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("nothing")),
}


@pytest.mark.slow
def test_every_kind_of_damage_to_a_cache_heals(place: Path) -> None:
    """All kinds at once, each on some entries of kernels, engine and libraries. The artifact stays the same."""
    shutil.rmtree(place / "cache", ignore_errors=True)  # of what other tests compiled nothing would be read
    assert result(place, COMPILE).returncode == 0
    artifact = (place / "out.smc").read_bytes()
    for shift in (0, 5):
        for number, path in enumerate(entries(place)):
            list(DAMAGE.values())[(number + shift) % len(DAMAGE)](path)
        done = result(place, COMPILE)
        assert done.returncode == 0, done.stderr.decode()
        assert (place / "out.smc").read_bytes() == artifact
        assert b"damaged" not in result(place, "smc doctor --json").stdout
