"""`smc bench`: the figures are there and add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from smc.cli.bench import bench
from smc.errors import InputError


def invoke(artifact: Path, *arguments: str) -> str:
    return CliRunner().invoke(bench, [str(artifact), *arguments], catch_exceptions=False).stdout


def test_json(artifact: Path):
    arguments = ["--prompt-tokens", "20", "--decode-tokens", "4", "--depth", "3", "--repeat", "3", "--threads", "1"]
    report = json.loads(invoke(artifact, *arguments, "--json"))
    assert report["prefill"]["slowest"] <= report["prefill"]["tokens_per_s"] <= report["prefill"]["fastest"]
    # 48 bytes of weights per token; steps at depth 3 … 6 read 4 … 7 tokens' K and V, 16 dimensions each, 2 bytes
    assert report["decode"]["bytes_per_token"] == 48 + 64 * 5.5
    assert report["decode"]["gb_per_s"] == pytest.approx(report["decode"]["tokens_per_s"] * 400 / 1e9)
    assert (report["threads"], report["level"], report["depth"]) == (1, "best", 3)
    assert report["kv_bytes_used"] == 64 * 64  # one page of 64 tokens
    assert report["peak_memory_bytes"] > 1 << 20
    assert 0 < report["load_seconds"] < 60


def test_table_and_parts_left_out(artifact: Path):
    table = invoke(artifact, "--prompt-tokens", "0", "--decode-tokens", "3", "--repeat", "1")
    assert "decode" in table
    assert "prefill" not in table
    assert "prefill" in invoke(artifact, "--prompt-tokens", "3", "--decode-tokens", "0", "--repeat", "1")


def test_more_than_the_context(artifact: Path):
    with pytest.raises(InputError, match="201 tokens do not fit the context of 200"):
        invoke(artifact, "--prompt-tokens", "1", "--decode-tokens", "151", "--depth", "50")


def test_several_sequences_share_the_weights(artifact: Path):
    arguments = ["--prompt-tokens", "0", "--decode-tokens", "4", "--depth", "3", "--repeat", "1", "--sequences", "3"]
    report = json.loads(invoke(artifact, *arguments, "--json"))
    assert report["sequences"] == 3
    assert report["decode"]["tokens"] == 12
    assert report["decode"]["bytes_per_token"] == 48 // 3 + 64 * 5.5
    assert report["kv_bytes_used"] == 3 * 64 * 64  # a page each
    assert "12 tokens of 3 sequences after 3" in invoke(artifact, *arguments)
