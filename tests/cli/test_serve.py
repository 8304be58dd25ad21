"""`smc serve` as a process: it says where it listens, answers, and ends in an orderly way."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "smc", "serve", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_until_a_signal(artifact: Path, number: signal.Signals):
    process = start(str(artifact), "--port", "0", "--threads", "1", "--api-key", "k", "--parallel", "2")
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+) \(process \d+\)\n", line)
    assert found, line + process.stderr.read()
    headers = {"Authorization": "Bearer k"}
    with urllib.request.urlopen(urllib.request.Request(f"{found[1]}/v1/models", headers=headers)) as answer:
        assert json.loads(answer.read())["data"][0]["id"] == "counting"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{found[1]}/v1/models")
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors
    assert process.returncode == 128 + number


def refused(*arguments: str) -> str:
    process = start(*arguments)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (2, "")
    assert errors.count("\n") == 1, errors
    return errors


def test_what_can_not_be_served_is_one_sentence(artifact: Path, tmp_path: Path):
    assert "does not exist" in refused(str(tmp_path / "none.smc"))
    assert "two artifacts have the same name" in refused(str(artifact), str(artifact))
    (tmp_path / "broken.smc").write_bytes(b"nothing")
    assert "is not an smc artifact" in refused(str(tmp_path / "broken.smc"), "--port", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"can't listen at 127.0.0.1, port {port}" in refused(str(artifact), "--port", str(port))
