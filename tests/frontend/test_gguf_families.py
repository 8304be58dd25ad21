"""GGUF files of every family: named by the `gguf` package, rows and norms as llama.cpp's converter has them.

The same model gives the same logits as its folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES

from smc.errors import InputError
from smc.frontend import load_checkpoint
from smc.reference import Reference
from tests.frontend.families import CASES, FAMILIES

Q8_0 = gguf.GGMLQuantizationType.Q8_0
Make = Callable[..., tuple[Path, Any]]
TOKENS = torch.randint(0, 96, (60,), generator=torch.Generator().manual_seed(1))

ARCHITECTURES = {
    "Qwen2": MODEL_ARCH.QWEN2,
    "Qwen3": MODEL_ARCH.QWEN3,
    "Gemma": MODEL_ARCH.GEMMA,
    "Gemma2": MODEL_ARCH.GEMMA2,
    "Gemma3": MODEL_ARCH.GEMMA3,
    "StableLm": MODEL_ARCH.STABLELM,
    "Phi3": MODEL_ARCH.PHI3,
    "BitNet": MODEL_ARCH.BITNET,
    "SmolLM3": MODEL_ARCH.SMOLLM3,
    "Granite": MODEL_ARCH.GRANITE,
    "Olmo2": MODEL_ARCH.OLMO2,
    "GPTNeoX": MODEL_ARCH.GPTNEOX,
    "GPT2": MODEL_ARCH.GPT2,
    "Qwen3Moe": MODEL_ARCH.QWEN3MOE,
    "Olmoe": MODEL_ARCH.OLMOE,
    "Mixtral": MODEL_ARCH.LLAMA,
}
PAIRED = ("SmolLM3", "Granite", "Mixtral")
"""Families whose q and k llama.cpp rotates in adjacent pairs."""

NOT_SAID = {
    "use_sliding_window", "layer_types", "query_pre_attn_scalar", "no_rope_layers", "no_rope_layer_interval",
    "decoder_sparse_step", "mlp_only_layers", "scale_attn_by_inverse_layer_idx", "scale_attn_weights",
    "activation_function", "hidden_act",
}  # fmt: skip
"""What GGUF files of these families have no key for: models that differ in it look alike."""

FAST = {**dict.fromkeys(FAMILIES, 0), "Qwen2": 2, "Gemma2": 1, "Phi3": 3, "Granite": 3}
"""One shape of each family, and every scaling of rotary frequencies; the other shapes are for `make test-long`."""

SAID = [
    pytest.param(kind, place, marks=[] if place == FAST[kind] else [pytest.mark.slow])
    for kind, place in CASES
    if not NOT_SAID & set(FAMILIES[kind][place])
]


def sayable(kind: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Changes to a config, but for what files of the family can't say."""
    changes = {"max_position_embeddings": 512, **changes}
    if kind in ("Gemma", "Gemma2", "BitNet"):  # whose files have no place for a head of its own
        changes["tie_word_embeddings"] = True
    if kind in ("Gemma2", "Gemma3"):
        changes["query_pre_attn_scalar"] = changes["head_dim"]
    if kind == "Gemma2":  # without caps the usual ones are meant
        changes = {name: value for name, value in changes.items() if value is not None}
    return changes


def converted(kind: str, config: Any, name: str, values: torch.Tensor) -> torch.Tensor:
    """A tensor as llama.cpp's converter writes it."""
    heads, rows = config.num_attention_heads, values.shape[0]
    if kind.startswith("Gemma") and name.endswith("norm.weight"):
        return values + 1
    if kind in PAIRED and (".q_proj." in name or ".k_proj." in name):
        count = heads if ".q_proj." in name else config.num_key_value_heads
        return values.view(count, 2, rows // count // 2, *values.shape[1:]).transpose(1, 2).reshape(values.shape)
    if kind == "GPT2" and values.dim() == 2 and ".h." in name:
        return values.T
    if "query_key_value" in name:
        apart = values.view(heads, 3, -1, *values.shape[1:])
        return torch.cat([apart[:, part].reshape(rows // 3, *values.shape[1:]) for part in range(3)])
    return values


def add_rope(writer: gguf.GGUFWriter, config: Any, head_dim: int) -> None:
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    kind = rope.get("rope_type", "default")
    if kind in ("yarn", "linear"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if kind == "longrope":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        stretch, original = config.max_position_embeddings, rope["original_max_position_embeddings"]
        logs = torch.tensor([stretch / original, original], dtype=torch.float64).log()
        writer.add_rope_scaling_attn_factors(float((1 + logs[0] / logs[1]).sqrt()))
        for name in ("long", "short"):
            writer.add_tensor(f"rope_factors_{name}.weight", torch.tensor(rope[f"{name}_factor"]).numpy())
    if kind == "llama3":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        scaled, _ = ROPE_INIT_FUNCTIONS[kind](config)
        exponents = torch.arange(0, head_dim, 2).float() / head_dim
        writer.add_tensor("rope_freqs.weight", (1 / rope["rope_theta"] ** exponents / scaled).numpy())


def joined_norms(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """StableLM's norms of heads as one tensor per layer, [heads, head_dim]."""
    result: dict[str, torch.Tensor] = {}
    for name, values in state.items():
        module, found, _ = name.partition(".norms.")
        name, values = (f"{module}.weight", values[None]) if found else (name, values)
        result[name] = torch.cat([result[name], values]) if name in result else values
    return result


def stacks(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' stacks of experts, of which gate and up are one, as llama.cpp's converter has them."""
    result: dict[str, torch.Tensor] = {}
    for name, values in state.items():
        if name.endswith("experts.gate_up_proj"):
            for part, half in zip(("gate_proj", "up_proj"), values.chunk(2, dim=1), strict=True):
                result[name.replace("gate_up_proj", f"{part}.weight")] = half
        elif name.endswith("experts.down_proj"):
            result[f"{name}.weight"] = values
        else:
            result[name] = values
    return result


def write(path: Path, kind: str, model: Any, quantized: bool = False) -> None:
    """quantized: matrices of layers as Q8_0."""
    config, arch = model.config, ARCHITECTURES[kind]
    prefix = MODEL_ARCH_NAMES[arch]
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer = gguf.GGUFWriter(path, prefix)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(
        config.intermediate_size if kind != "GPT2" else config.n_inner or 4 * config.n_embd
    )
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads if kind in ("GPTNeoX", "GPT2") else config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if hasattr(config, "layer_norm_eps"):
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_parallel_residual(config.use_parallel_residual)
    if kind == "GPT2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    if getattr(config, "sliding_window", None) and kind in ("Gemma2", "Gemma3", "Phi3", "Mixtral", "Olmo2"):
        writer.add_sliding_window(config.sliding_window)
    if kind == "Gemma2":
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            if getattr(config, name) is not None:
                writer.add_float32(f"{prefix}.{name}", getattr(config, name))
    if kind == "BitNet":
        writer.add_string(f"{prefix}.hidden_activation", config.hidden_act)
    if kind == "Granite":
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if kind != "GPT2":
        add_rope(writer, config, head_dim)
    if kind in ("Qwen3Moe", "Olmoe", "Mixtral"):
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        if kind == "Qwen3Moe":
            writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        if kind != "Mixtral":
            writer.add_expert_weights_norm(config.norm_topk_prob)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, values in stacks(joined_norms(model.state_dict())).items():
        if (tied and name in ("lm_head.weight", "embed_out.weight")) or "rotary_emb" in name:
            continue
        # The package knows BitNet's sub-norms by the names of the first checkpoints.
        old = name.replace("attn_sub_norm", "inner_attn_ln").replace("ffn_sub_norm", "ffn_layernorm")
        found = names.get_name(old, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        data = converted(kind, config, name, values).contiguous().numpy()
        if quantized and data.ndim > 1:
            writer.add_tensor(found, gguf.quants.quantize(data, Q8_0), raw_dtype=Q8_0)
        else:
            writer.add_tensor(found, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(("kind", "place"), SAID)
def test_logits_equal_those_of_the_folder(make_checkpoint: Make, tmp_path: Path, kind: str, place: int) -> None:
    folder, model = make_checkpoint(kind, **sayable(kind, FAMILIES[kind][place]))
    write(tmp_path / "model.gguf", kind, model)
    expected = Reference(load_checkpoint(folder)).logits(TOKENS)
    module = load_checkpoint(tmp_path / "model.gguf")
    assert module.facts.architecture == type(model).__name__
    logits = Reference(module).logits(TOKENS)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_gemma_3_of_27_billion_scales_scores_by_the_hidden_size(make_checkpoint: Make, tmp_path: Path) -> None:
    """No key says it: llama.cpp knows the model by its 62 layers."""
    folder, model = make_checkpoint("Gemma3", num_hidden_layers=62, head_dim=16, query_pre_attn_scalar=12)
    write(tmp_path / "model.gguf", "Gemma3", model)
    expected = Reference(load_checkpoint(folder)).logits(TOKENS[:9])
    assert Reference(load_checkpoint(tmp_path / "model.gguf")).logits(TOKENS[:9]).equal(expected)


def test_olmo_3_is_refused(make_checkpoint: Make, tmp_path: Path) -> None:
    """Its files name the architecture of OLMo 2."""
    _, model = make_checkpoint("Olmo2", pad_token_id=0)
    model.config.sliding_window = 7
    write(tmp_path / "model.gguf", "Olmo2", model)
    with pytest.raises(InputError, match=r"OLMo with a window \(Olmo 3\) is not supported"):
        load_checkpoint(tmp_path / "model.gguf")


def test_stacks_of_experts_keep_their_codes(make_checkpoint: Make, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_local_experts": 3, "num_hidden_layers": 1}
    _, model = make_checkpoint("Mixtral", **sizes, max_position_embeddings=512)
    write(tmp_path / "model.gguf", "Mixtral", model, quantized=True)
    module = load_checkpoint(tmp_path / "model.gguf")
    state = stacks(model.state_dict())
    for own, other in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
        parameter = module.parameters[f"model.layers.0.block_sparse_moe.experts.{own}.weight"]
        assert str(parameter.encoding) == "int8.g32"
        values = state[f"model.layers.0.mlp.experts.{other}.weight"].numpy()
        stored = gguf.quants.dequantize(gguf.quants.quantize(values, Q8_0), Q8_0)
        assert parameter.values().equal(torch.from_numpy(stored))


def test_every_family_is_written() -> None:
    assert set(ARCHITECTURES) == set(FAMILIES)
    assert set(FAST.items()) <= {case.values for case in SAID}
