"""Numbers of configs changed in every way that JSON allows: a sound module, or one sentence that names the key."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from smc.errors import InputError
from smc.fields import MOST_CONTEXT
from smc.frontend import load_checkpoint
from smc.frontend.config import Config
from smc.frontend.rope import rope_table
from smc.generation import SAMPLING
from smc.ir import Module
from smc.runtime.sampling import SamplingOptions
from tests.frontend.test_gguf import write_gguf
from tests.hostile import NUMBERS, VALUES

Make = Callable[..., tuple[Path, Any]]

KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "attention_bias"),
    *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "eos_token_id", "bos_token_id"),
    *("hidden_act", "model_type", "architectures", "quantization_config", "transformers_weights"),
)
YARN = {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0, "beta_fast": 32.0, "beta_slow": 1.0}
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 64, "truncate": True},
    {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "factor": 2.0},
]


def loaded(source: Path) -> Module | None:
    """The module, or None if it is refused in a sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # numpy's: something overflowed
        try:
            module = load_checkpoint(source)
        except InputError as error:
            sentence = str(error)
        else:
            assert type(module.facts.context_length) is int and 1 <= module.facts.context_length <= MOST_CONTEXT
            return module
    assert "\n" not in sentence and len(sentence) < 600
    return None


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_config_json(make_checkpoint: Make, key: str) -> None:
    folder, _ = make_checkpoint()
    config = json.loads((folder / "config.json").read_text())
    if key == "rope_scaling":
        del config["rope_parameters"]  # which would be read in its place
    refused = 0
    for value in VALUES:
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        refused += loaded(folder) is None
    assert refused


@pytest.mark.parametrize("key", ["eos_token_id", "bos_token_id", "pad_token_id", "do_sample", *SAMPLING])
def test_a_key_of_generation_config_json(make_checkpoint: Make, key: str) -> None:
    """What compiles also runs: nobody is refused at run for an option that he did not give."""
    folder, _ = make_checkpoint()
    refused = 0
    for value in VALUES:
        (folder / "generation_config.json").write_text(json.dumps({key: value}))
        module = loaded(folder)
        refused += module is None
        if module is not None:
            SamplingOptions(**module.facts.generation.sampling())
    assert refused
    for value, part in ((50.0, "top_k must be a whole number"), (-1, "top_k must be"), (True, "top_k must be")):
        (folder / "generation_config.json").write_text(json.dumps({"top_k": value}))
        with pytest.raises(InputError, match=rf"generation_config\.json: {part}"):
            load_checkpoint(folder)


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: str(scaling["rope_type"]))
def test_rotary_embeddings(scaling: dict[str, Any]) -> None:
    """Frequencies that are accepted are finite, and so is an angle at the end of the longest context."""
    for key in ("rope_theta", "original_max_position_embeddings", "max_position_embeddings", *scaling):
        for value in VALUES:
            values = {"rope_parameters": {**scaling, key: value}, "max_position_embeddings": 256}
            if key == "max_position_embeddings":
                values = {"rope_parameters": scaling, key: value}
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                try:
                    table = rope_table(Config(values, "config.json"), 16)
                except InputError:
                    continue
            angles = np.array(table.frequencies, np.float32) * np.float32(MOST_CONTEXT)
            assert np.isfinite(angles).all() and np.isfinite(table.magnitude), (key, value)


@pytest.mark.parametrize("key", ["context_length", "rope.freq_base", "attention.layer_norm_rms_epsilon", "block_count"])
def test_a_number_of_a_gguf(make_checkpoint: Make, tmp_path: Path, key: str) -> None:
    _, model = make_checkpoint()
    refused = 0
    for value in NUMBERS:
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            continue
        kind = gguf.GGUFValueType.FLOAT64 if isinstance(value, float) else gguf.GGUFValueType.INT64
        kind = gguf.GGUFValueType.UINT64 if isinstance(value, int) and value >= 2**63 else kind

        def extra(writer: gguf.GGUFWriter, value: Any = value, kind: Any = kind) -> None:
            writer.kv_data[0].pop(f"llama.{key}")
            writer.add_key_value(f"llama.{key}", value, kind)

        write_gguf(tmp_path / "model.gguf", model, extra=extra)
        refused += loaded(tmp_path / "model.gguf") is None
    assert refused


def test_a_merged_gguf_has_no_parts(make_checkpoint: Make, tmp_path: Path) -> None:
    """llama-gguf-split --merge, which is what the sentence for parts advises, writes 0."""
    _, model = make_checkpoint()
    write_gguf(tmp_path / "model.gguf", model, extra=lambda writer: writer.add_uint16("split.count", 0))
    assert loaded(tmp_path / "model.gguf") is not None
