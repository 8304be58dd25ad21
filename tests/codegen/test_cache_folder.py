"""Where the cache is, also where it can't be made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smc.codegen.objects import cache_folder
from smc.errors import Notice

ROOT = Path(__file__).parents[2]


def test_it_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SMC_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    assert cache_folder() == tmp_path / "users" / "smc"
    assert cache_folder().is_dir()
    monkeypatch.setenv("SMC_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def test_where_it_cannot_be_made_a_temporary_one_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SMC_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(Notice, match=r"file/cache can't be made \(Not a directory\)"):
        folder = cache_folder()
    assert folder.is_dir() and list(folder.iterdir()) == []
    assert cache_folder() == folder


@pytest.mark.parametrize("home", ["/proc/nowhere", None])
def test_without_a_home(home: str | None, tmp_path: Path) -> None:
    """Told once, on standard error; the folder goes with the process. None: a user whom the system does not know."""
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "SMC_CACHE")}
    environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)} | ({"HOME": home} if home else {})
    unknown = "" if home else "import pwd\npwd.getpwuid = {}.__getitem__\n"
    code = f"{unknown}from smc.cli.main import run\nimport sys\nsys.exit(run(['doctor', '--json']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    cache = next(check for check in json.loads(done.stdout)["toolchain"] if check["name"] == "cache")
    assert "a temporary one takes its place" in cache["found"]
    assert cache["fix"] == "set SMC_CACHE to a folder that can be made"
    assert list(tmp_path.iterdir()) == []
