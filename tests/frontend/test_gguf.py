"""GGUF files: written with the `gguf` package from transformers models, read back with equal weights and config."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from smc.errors import InputError
from smc.frontend import load_checkpoint
from smc.frontend.gguf_file import TYPES
from smc.generation import GenerationDefaults
from smc.ir import F32, Module, RopeTable, print_function

Make = Callable[..., tuple[Path, Any]]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
SIZES = {"hidden_size": 64, "intermediate_size": 96}  # rows of whole blocks of 32


def gguf_name(name: str) -> str:
    """The GGUF name of a Hugging Face tensor."""
    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        layer, _, module = stem.removeprefix("model.layers.").partition(".")
        return f"blk.{layer}.{NAMES[module]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def adjacent_pairs(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k as GGUF wants them: channel i of a head's first half beside channel i of its second half."""
    halves = values.reshape(heads, 2, -1, *values.shape[1:])
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(values.shape)


def write_gguf(
    path: Path,
    model: Any,
    kind: Type = Type.F32,
    extra: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    arch: str = "llama",
    tensors: dict[str, torch.Tensor] | None = None,
    widths: list[int] | None = None,
) -> dict[str, torch.Tensor]:
    """Write the model; returns the values that the file stands for, by Hugging Face name.

    tensors: instead of the model's; widths: of the feed-forward, a layer each, instead of the config's.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(widths or config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    extra(writer)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    expected = {}
    for name, tensor in (tensors or model.state_dict()).items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        stored = kind if values.ndim == 2 else Type.F32
        encoded = values.astype(np.float16) if stored == Type.F16 else gguf.quants.quantize(values, stored)
        decoded = encoded.astype(np.float32) if stored == Type.F16 else gguf.quants.dequantize(encoded, stored)
        expected[name] = torch.from_numpy(decoded)
        rotary = next((count for part, count in heads.items() if part in name), None)
        writer.add_tensor(
            gguf_name(name), encoded if rotary is None else adjacent_pairs(encoded, rotary), raw_dtype=stored
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def assert_same(module: Module, expected: dict[str, torch.Tensor]) -> None:
    assert set(module.parameters) == set(expected)
    for name, parameter in module.parameters.items():
        assert torch.equal(parameter.values(), expected[name]), name


KEPT = {
    "Q8_0": "int8.g32",
    "Q4_0": "int4.g32",
    "Q4_1": "int4.g32.offset",
    "Q5_0": "int5.g32",
    "Q5_1": "int5.g32.offset",
    "Q2_K": "int2.g16.offset2.super16",
    "Q3_K": "int3.g16.signed16",
    "Q4_K": "int4.g32.offset2.super8",
    "Q5_K": "int5.g32.offset2.super8",
    "Q6_K": "int6.g16.signed16",
    "IQ4_NL": "levels16.i8.g32",
    "IQ4_XS": "levels16.i8.g32.signed8",
    "TQ1_0": "int2.g256.zero1",
    "TQ2_0": "int2.g256.zero1",
}
"""The encoding that says a type exactly."""


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_types(make_checkpoint: Make, tmp_path: Path, kind: str) -> None:
    _, model = make_checkpoint(**SIZES)
    expected = write_gguf(tmp_path / "model.gguf", model, Type[kind])
    module = load_checkpoint(tmp_path / "model.gguf")
    assert_same(module, expected)
    matrix = module.parameters["model.layers.0.mlp.up_proj.weight"]
    assert str(matrix.encoding) == {"F32": "f32", "F16": "f16", "BF16": "bf16", **KEPT}[kind]
    assert module.parameters["model.norm.weight"].encoding == F32
    assert module.facts.provenance == (f"checkpoint model (GGUF with {', '.join(sorted({'F32', kind}))})",)


SCALES = {
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ1_S": [0], "IQ2_XXS": [0],
    "IQ2_XS": [0], "IQ2_S": [0], "IQ3_XXS": [0], "IQ3_S": [0], "IQ4_NL": [0], "IQ4_XS": [0], "TQ1_0": [52],
    "TQ2_0": [64],
}  # fmt: skip
"""Where a block has f16 scales."""


def test_every_type_that_gguf_decodes_is_read() -> None:
    decoded = {t.name for t in gguf.quants._type_traits}
    assert decoded | {"F32", "F16"} == set(TYPES)


@pytest.mark.parametrize("kind", SCALES)
def test_k_quants(tmp_path: Path, make_checkpoint: Make, kind: str) -> None:
    """`gguf` can't quantize to most of these, so the bytes are random; only the f16 scales are kept finite."""
    _, model = make_checkpoint(hidden_size=256, intermediate_size=256)
    block, block_bytes = gguf.GGML_QUANT_SIZES[Type[kind]]
    rng, count = np.random.default_rng(0), 256 * 256 // block
    raw = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    for place in SCALES[kind]:
        raw[:, place : place + 2] = rng.uniform(0.001, 0.1, count).astype(np.float16)[:, None].view(np.uint8)
    raw = raw.reshape(256, -1)
    expected = gguf.quants.dequantize(raw, Type[kind])

    name = "model.layers.0.mlp.up_proj.weight"
    write_gguf(
        tmp_path / "model.gguf",
        model,
        extra=lambda writer: writer.add_tensor("blk.0.ffn_up.weight", raw, raw_dtype=Type[kind]),
        tensors={key: values for key, values in model.state_dict().items() if key != name},
    )
    module = load_checkpoint(tmp_path / "model.gguf")
    assert torch.equal(module.parameters[name].values(), torch.from_numpy(expected))
    assert str(module.parameters[name].encoding) == KEPT.get(kind, "f32")


@pytest.mark.parametrize("changes", [{}, {"vocab_size": 6000}], ids=["most", "some"])
def test_codes_are_kept_where_most_weights_have_some(
    tmp_path: Path, make_checkpoint: Make, changes: dict[str, Any]
) -> None:
    """A matrix of a type without an encoding stays in floats beside them; where these are many, all are floats."""
    _, model = make_checkpoint(hidden_size=256, intermediate_size=256, **changes)
    odd = "model.layers.0.mlp.up_proj.weight" if not changes else "model.embed_tokens.weight"
    rows = 256 if not changes else 6000
    raw = np.zeros((rows, 98), np.uint8)
    write_gguf(
        tmp_path / "model.gguf",
        model,
        Type.Q8_0,
        extra=lambda writer: writer.add_tensor(
            "blk.0.ffn_up.weight" if not changes else "token_embd.weight", raw, raw_dtype=Type.IQ3_XXS
        ),
        tensors={n: v for n, v in model.state_dict().items() if n != odd and n != "lm_head.weight"},
    )
    module = load_checkpoint(tmp_path / "model.gguf")
    assert str(module.parameters[odd].encoding) == "f32"
    assert ("int8.g32" in {str(p.encoding) for p in module.parameters.values()}) == (not changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 1},
        {"head_dim": 20},
        {"attention_bias": True, "mlp_bias": True},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 123456.0}},
        {"hidden_size": 40, "vocab_size": 97, "intermediate_size": 77},
    ],
)
def test_equals_the_hugging_face_folder(make_checkpoint: Make, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder, model = make_checkpoint(**changes)
    expected = write_gguf(tmp_path / "model.gguf", model)
    ours, theirs = load_checkpoint(tmp_path / "model.gguf"), load_checkpoint(folder)
    assert_same(ours, expected)
    for name, function in theirs.functions.items():
        assert print_function(ours.functions[name]) == print_function(function)


def test_layers_of_different_widths(make_checkpoint: Make, tmp_path: Path) -> None:
    _, model = make_checkpoint()
    state = dict(model.state_dict())
    for name in ("gate_proj", "up_proj"):
        state[f"model.layers.1.mlp.{name}.weight"] = state[f"model.layers.1.mlp.{name}.weight"][:33]
    state["model.layers.1.mlp.down_proj.weight"] = state["model.layers.1.mlp.down_proj.weight"][:, :33].contiguous()
    expected = write_gguf(tmp_path / "model.gguf", model, tensors=state, widths=[80, 33])
    assert_same(load_checkpoint(tmp_path / "model.gguf"), expected)


def rope_of_block(module: Module) -> RopeTable:
    return next(node.attributes["table"] for node in module.functions["block"].nodes() if node.op == "rope")


@pytest.mark.parametrize("said", [True, False])
def test_linear_rope_scaling(make_checkpoint: Make, tmp_path: Path, said: bool) -> None:
    """A factor without a type is linear, as llama.cpp has it."""
    folder, model = make_checkpoint(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0})

    def extra(writer: gguf.GGUFWriter) -> None:
        if said:
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    write_gguf(tmp_path / "model.gguf", model, extra=extra)
    assert rope_of_block(load_checkpoint(tmp_path / "model.gguf")) == rope_of_block(load_checkpoint(folder))


def test_no_rope_scaling_whatever_the_factor(make_checkpoint: Make, tmp_path: Path) -> None:
    folder, model = make_checkpoint()

    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        writer.add_rope_scaling_factor(4.0)

    write_gguf(tmp_path / "model.gguf", model, extra=extra)
    assert rope_of_block(load_checkpoint(tmp_path / "model.gguf")) == rope_of_block(load_checkpoint(folder))


@pytest.mark.parametrize(
    ("keys", "same_as"),
    [
        ({}, {}),
        ({"yarn_beta_fast": 8.0, "yarn_beta_slow": 2.0}, {"beta_fast": 8.0, "beta_slow": 2.0}),
        ({"yarn_attn_factor": 1.5}, {"attention_factor": 1.5}),
        ({"attn_factor": 0.5}, {"attention_factor": 0.5 * (0.1 * math.log(4) + 1)}),
    ],
)
def test_yarn_rope_scaling(
    make_checkpoint: Make, tmp_path: Path, keys: dict[str, float], same_as: dict[str, float]
) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    folder, model = make_checkpoint(rope_parameters={**rope, **same_as})

    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(64)
        for name, value in keys.items():
            writer.add_float32(f"llama.rope.scaling.{name}", value)

    write_gguf(tmp_path / "model.gguf", model, extra=extra)
    found, wanted = (rope_of_block(load_checkpoint(path)) for path in (tmp_path / "model.gguf", folder))
    assert found.frequencies == wanted.frequencies
    assert found.magnitude == pytest.approx(wanted.magnitude)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_rope_scaling(make_checkpoint: Make, tmp_path: Path, factor: float) -> None:
    """GGUF keeps it as divisors of the frequencies; here they come from transformers' frequencies."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(head_dim=64, max_position_embeddings=131072, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
    plain = 500000.0 ** -(np.arange(0, 64, 2) / 64)
    divisors = (plain / scaled.numpy()).astype(np.float32)
    _, model = make_checkpoint(head_dim=64, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    write_gguf(tmp_path / "a.gguf", model, extra=lambda writer: writer.add_tensor("rope_freqs.weight", divisors))
    table = rope_of_block(load_checkpoint(tmp_path / "a.gguf"))
    np.testing.assert_allclose(table.frequencies, scaled.numpy(), rtol=1e-6)
    write_gguf(tmp_path / "b.gguf", model, extra=lambda writer: writer.add_tensor("rope_freqs.weight", divisors[1:]))
    with pytest.raises(InputError, match="divisors must be a list of 32 positive numbers"):
        load_checkpoint(tmp_path / "b.gguf")


def test_sliding_window(make_checkpoint: Make, tmp_path: Path) -> None:
    _, model = make_checkpoint()
    write_gguf(tmp_path / "model.gguf", model, extra=lambda writer: writer.add_sliding_window(32))
    module = load_checkpoint(tmp_path / "model.gguf")
    assert module.facts.architecture == "MistralForCausalLM"
    assert {n.attributes["window"] for n in module.functions["block"].nodes() if n.op == "attention"} == {32}


def test_facts(make_checkpoint: Make, tmp_path: Path) -> None:
    _, model = make_checkpoint()

    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_chat_template("{{ messages }}")
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_eot_token_id(7)

    write_gguf(tmp_path / "tiny-q.gguf", model, extra=extra)
    facts = load_checkpoint(tmp_path / "tiny-q.gguf").facts
    assert (facts.name, facts.context_length, facts.vocab_size) == ("tiny-q", 256, 96)
    assert facts.chat_template == "{{ messages }}"
    assert facts.generation == GenerationDefaults(eos_token_ids=(2, 7), bos_token_id=1)
    assert facts.tokenizer is None


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.fixture
def file(make_checkpoint: Make, tmp_path: Path) -> Path:
    write_gguf(tmp_path / "model.gguf", make_checkpoint()[1])
    return tmp_path / "model.gguf"


def test_cut_anywhere(file: Path) -> None:
    """Whatever the length to which a file is cut, it is refused in a sentence."""
    data = file.read_bytes()
    cut = file.with_name("cut.gguf")
    for length in [*range(1, 400, 7), *range(400, len(data), 9973), len(data) - 40]:
        cut.write_bytes(data[:length])
        assert_refused(cut, "is incomplete")
    cut.write_bytes(b"")
    assert_refused(cut, "is empty")


@pytest.mark.parametrize(
    ("place", "patch", "message"),
    [
        (0, b"GGML", "is not a GGUF file"),
        (4, (1).to_bytes(4, "little"), "is of GGUF version 1; versions 2 and 3, little-endian, can be read"),
        (4, (4).to_bytes(4, "little"), "is of GGUF version 4"),
        (4, (3).to_bytes(4, "big"), "is big-endian"),
        (8, b"\xff" * 8, "is incomplete"),
        (16, b"\xff" * 8, "is incomplete"),
        (24, b"\xff" * 8, "is incomplete"),
    ],
)
def test_damaged_head(file: Path, place: int, patch: bytes, message: str) -> None:
    data = bytearray(file.read_bytes())
    data[place : place + len(patch)] = patch
    file.write_bytes(data)
    assert_refused(file, message)


def test_another_architecture(make_checkpoint: Make, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", make_checkpoint()[1], arch="lama")
    for message in ("architecture lama are not supported; supported are bitnet", "(the nearest is llama)"):
        assert_refused(tmp_path / "model.gguf", message)


def extrapolated(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_yarn_ext_factor(0.5)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (lambda w: w.add_uint16("split.count", 3), "one of 3 parts"),
        (lambda w: w.add_expert_count(8), "lacks the tensor model.layers.0.block_sparse_moe.gate.weight"),
        (lambda w: w.add_value_length(10), "llama.attention.value_length 10 differs from the head_dim 12"),
        (lambda w: w.add_string("llama.rope.scaling.type", "spiral"), "rope type spiral is not supported"),
        (extrapolated, "llama.rope.scaling.yarn_ext_factor must be 1, others are not supported, not 0.5"),
        (lambda w: w.add_tensor("blk.0.extra.weight", np.zeros(3, np.float32)), "no place for the tensor blk.0.extra"),
        (
            lambda w: w.add_tensor("blk.0.x.weight", np.zeros((3, 292), np.uint8), raw_dtype=Type.Q8_K),
            "tensor blk.0.x.weight is of type Q8_K; supported are F32, F16, BF16, Q8_0",
        ),
        (lambda w: w.add_tokenizer_model("bert"), "tokenizers of the kind bert are not supported, only gpt2 and llama"),
    ],
)
def test_unsupported(make_checkpoint: Make, tmp_path: Path, extra: Any, message: str) -> None:
    write_gguf(tmp_path / "model.gguf", make_checkpoint()[1], extra=extra)
    assert_refused(tmp_path / "model.gguf", message)


def test_weights_that_are_no_numbers(make_checkpoint: Make, tmp_path: Path) -> None:
    _, model = make_checkpoint()
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[3, 4] = float("nan")
    write_gguf(tmp_path / "model.gguf", model)
    module = load_checkpoint(tmp_path / "model.gguf")
    with pytest.raises(InputError, match=r"tensor model\.layers\.1\.self_attn\.k_proj\.weight holds NaN"):
        module.parameters["model.layers.1.self_attn.k_proj.weight"].load()
