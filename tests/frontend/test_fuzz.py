"""Damaged files, drawn at random: loading ends in a module or in an InputError, never in anything else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smc.errors import InputError
from smc.frontend import load_checkpoint
from tests.frontend.test_gguf import write_gguf

Make = Callable[..., tuple[Path, Any]]
FUZZ = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 200) | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=4,
)


def load_everything(path: Path) -> None:
    """Load a checkpoint and all its weights; InputError is an answer, too."""
    with contextlib.suppress(InputError):
        for parameter in load_checkpoint(path).parameters.values():
            parameter.load()


@pytest.fixture
def gguf_file(make_checkpoint: Make, tmp_path: Path) -> Path:
    def extra(writer: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list([chr(33 + i) for i in range(90)] + ["ab", "<s>"])
        writer.add_token_types([1] * 91 + [3])
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(91)

    write_gguf(tmp_path / "model.gguf", make_checkpoint(num_hidden_layers=1)[1], extra=extra)
    return tmp_path / "model.gguf"


def test_gguf_bytes(gguf_file: Path) -> None:
    original = gguf_file.read_bytes()
    load_everything(gguf_file)
    head = original.index(b"output_norm") + 2000

    @FUZZ
    @given(st.lists(st.tuples(st.integers(0, head), st.integers(0, 255)), min_size=1, max_size=3))
    def check(changes: list[tuple[int, int]]) -> None:
        data = bytearray(original)
        for place, value in changes:
            data[place] = value
        gguf_file.write_bytes(data)
        load_everything(gguf_file)

    check()


def test_safetensors_bytes(make_checkpoint: Make) -> None:
    folder, _ = make_checkpoint(num_hidden_layers=1)
    path = folder / "model.safetensors"
    original = path.read_bytes()
    head = int.from_bytes(original[:8], "little") + 8

    @FUZZ
    @given(st.lists(st.tuples(st.integers(0, head), st.integers(0, 255)), min_size=1, max_size=3))
    def check(changes: list[tuple[int, int]]) -> None:
        data = bytearray(original)
        for place, value in changes:
            data[place] = value
        path.write_bytes(data)
        load_everything(folder)

    check()


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_json_values(make_checkpoint: Make, file: str) -> None:
    folder, _ = make_checkpoint(num_hidden_layers=1)
    path = folder / file
    original = json.loads(path.read_text()) if path.exists() else {}
    more = [
        "eos_token_id",
        "eos_token",
        "chat_template",
        "rope_scaling",
        "rope_theta",
        "quantization_config",
        "temperature",
    ]
    keys = sorted({*original, *more})

    @FUZZ
    @given(st.sampled_from(keys), json_values)
    def check(key: str, value: Any) -> None:
        path.write_text(json.dumps({**original, key: value}))
        load_everything(folder)

    check()
