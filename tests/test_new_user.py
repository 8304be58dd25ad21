"""A new user's way, as a script in a clean environment: install, compile, chat, serve, call."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.models import random
from tests.runtime.conftest import CHAT_TEMPLATE, byte_tokenizer
from tests.test_distribution import LEFT_OUT
from tests.test_llama import CONFIG

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_new_users_way(tmp_path: Path):
    """Slow: pip installs the compiler; some minutes."""
    checkpoint, folder = tmp_path / "tiny", tmp_path / "user"
    random(checkpoint, CONFIG)
    byte_tokenizer().save(str(checkpoint / "tokenizer.json"))
    (checkpoint / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    folder.mkdir()
    shutil.copytree(ROOT, tmp_path / "clone", ignore=LEFT_OUT)  # pip builds in it
    environment = {**os.environ, "PYTHON": sys.executable}
    command = [ROOT / "tests" / "new_user.sh", tmp_path / "clone", checkpoint, folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "the server says:" in done.stdout
