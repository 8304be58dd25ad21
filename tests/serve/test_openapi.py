"""schemathesis: requests that the OpenAPI description allows, and such that it does not."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from smc.serve.scheduler import Limits

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "negative_data_rejection,unsupported_method"
)


def test_every_endpoint_is_described(address: str):
    description = json.loads(urllib.request.urlopen(f"{address}/openapi.json").read())
    paths = {"/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/api/chat", "/health"}
    assert paths <= description["paths"].keys()
    chat = description["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"200", "4XX", "5XX"} <= chat.keys() and "422" not in chat
    assert "text/event-stream" in chat["200"]["content"]


@pytest.mark.slow
def test_requests_of_all_kinds(start: Callable[..., str], tmp_path: Path):
    """Slow: about two minutes."""
    pytest.importorskip("schemathesis", reason="schemathesis is not installed (the extra dev has it)")
    address = start(limits=Limits(running=4, waiting=64), sequences=9)
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", "--checks", CHECKS]
    options = ["--max-examples", "60", "--seed", "1", "--request-timeout", "60"]
    options += ["--phases", "examples,coverage,fuzzing"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:]
    assert urllib.request.urlopen(f"{address}/health").status == 200
