"""Damaged files, drawn at random: loading ends in a module or in an InputError, never in anything else."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smc.errors import InputError
from smc.frontend import load_checkpoint
from tests.frontend.drawn import drawn
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


def damaged_header(header: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A safetensors header with one entry changed, doubled under another name, or gone."""
    name, other = (rng.choice([key for key in header if key != "__metadata__"]) for _ in range(2))
    entry = json.loads(json.dumps(header[name]))
    match rng.randrange(6):
        case 0:
            entry["shape"] = rng.choice(
                [[], [0], [1 << 62, 4], [-1], [2.5], entry["shape"][::-1], header[other]["shape"]]
            )
        case 1:
            entry["data_offsets"] = rng.choice([[0, 1 << 63], [5, 3], header[other]["data_offsets"], [-8, 8], [0]])
        case 2:
            entry["dtype"] = rng.choice(["F64", "U8", "I64", "F8_E4M3", "BOOL", "", 3, "F16"])
        case 3:
            return {key: value for key, value in header.items() if key != name}
        case 4:
            return {**header, name.replace("weight", rng.choice(["scales", "qweight", "bias", "SCB"])): entry}
        case _:
            entry = rng.choice([None, [], 7, "x", {}])
    return {**header, name: entry}


def damaged_config(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A config with one key gone, or of another value."""
    key = rng.choice([*config, "quantization_config", "rope_scaling", "head_dim", "architectures", "auto_map"])
    values = [None, 0, -1, 1 << 40, 0.5, True, "x", [], [1], {}, {"quant_method": rng.choice(["fp8", "gptq", "awq"])}]
    if rng.random() < 0.2:
        return {name: value for name, value in config.items() if name != key}
    return {**config, key: rng.choice(values)}


@pytest.mark.slow
def test_thirty_seconds_of_damaged_headers_and_configs(make_checkpoint: Make) -> None:
    """One or two faults at once, in checkpoints of all families in turn."""
    end, seed = time.monotonic() + 30, 0
    while time.monotonic() < end:
        kind, changes = drawn(seed)
        folder, _ = make_checkpoint(kind, **{**changes, "num_hidden_layers": 2})
        config, path = json.loads((folder / "config.json").read_text()), folder / "model.safetensors"
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        for case in range(40):
            rng = random.Random(f"{seed} {case}")
            text = json.dumps(damaged_header(header, rng)).encode() if rng.random() < 0.6 else data[8 : 8 + size]
            path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
            (folder / "config.json").write_text(json.dumps(damaged_config(config, rng)))
            try:
                load_everything(folder)
            except Exception as error:
                raise AssertionError(f"{kind}, seed {seed}, case {case}") from error
        shutil.rmtree(folder)
        seed += 1
