"""Hugging Face folders: tiny random transformers models of every variant, their structure and their weights."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from smc.errors import InputError, Notice
from smc.frontend import load_checkpoint
from smc.generation import GenerationDefaults
from smc.ir import BF16, F16, F32, Module, verify

Make = Callable[..., tuple[Path, Any]]


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; a value of `...` removes the key."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def assert_same_weights(module: Module, model: Any, tied: bool = False) -> None:
    """Every parameter of the module has the values of the transformers parameter of the same name, and none is left."""
    expected = {name: values for name, values in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    assert set(module.parameters) == set(expected)
    for name, parameter in module.parameters.items():
        assert torch.equal(parameter.values(), expected[name].float()), name


def block_attributes(module: Module, op: str, function: str = "block") -> dict[str, Any]:
    """The attributes of the first node of this op in a block."""
    return dict(next(node.attributes for node in module.functions[function].nodes() if node.op == op))


VARIANTS = {
    "llama": ("Llama", {}),
    "attention bias": ("Llama", {"attention_bias": True}),
    "mlp bias": ("Llama", {"mlp_bias": True}),
    "both biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "multi-query": ("Llama", {"num_key_value_heads": 1}),
    "multi-head": ("Llama", {"num_key_value_heads": 4}),
    "head_dim": ("Llama", {"head_dim": 18}),
    "odd widths": ("Llama", {"vocab_size": 97, "intermediate_size": 77, "hidden_size": 40}),
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "mistral": ("Mistral", {}),
    "mistral without window": ("Mistral", {"sliding_window": None}),
    "mistral with head_dim": ("Mistral", {"head_dim": 16, "sliding_window": 5}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_and_shapes(make_checkpoint: Make, variant: str) -> None:
    kind, changes = VARIANTS[variant]
    folder, model = make_checkpoint(kind, **changes)
    module = load_checkpoint(folder)
    verify(module)
    config = model.config
    assert_same_weights(module, model, tied=config.tie_word_embeddings)
    assert [call.name for call in module.layer_calls()] == ["layer_0", "layer_1"]
    assert set(module.functions) == {"main", "embed", "block", "head"}
    attention = block_attributes(module, "attention")
    assert attention["heads"] == config.num_attention_heads
    assert attention["kv_heads"] == config.num_key_value_heads
    assert attention["head_dim"] == config.head_dim
    assert attention["scale"] == config.head_dim**-0.5
    assert attention["window"] == getattr(config, "sliding_window", None)
    assert block_attributes(module, "rms_norm")["eps"] == config.rms_norm_eps
    biases = {name for name in module.parameters if name.endswith(".bias")}
    assert len(biases) == 2 * (4 * getattr(config, "attention_bias", False) + 3 * getattr(config, "mlp_bias", False))
    assert module.facts.context_length == config.max_position_embeddings
    assert module.facts.vocab_size == config.vocab_size


def test_tied_head_is_one_parameter(make_checkpoint: Make) -> None:
    folder, _ = make_checkpoint(tie_word_embeddings=True)
    module = load_checkpoint(folder)
    uses = module.uses("model.embed_tokens.weight")
    assert [(call.name, slot) for call, slot, _ in uses] == [("embed", "embed_tokens"), ("logits", "lm_head")]


@pytest.mark.parametrize(("dtype", "encoding"), [("float32", F32), ("float16", F16), ("bfloat16", BF16)])
def test_matrices_keep_their_dtype_and_vectors_are_f32(make_checkpoint: Make, dtype: str, encoding: object) -> None:
    folder, model = make_checkpoint(attention_bias=True)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    module = load_checkpoint(folder)
    for parameter in module.parameters.values():
        assert parameter.encoding == (encoding if len(parameter.shape) == 2 else F32), parameter.name
        stored = parameter.load().values
        assert stored is not None
        assert stored.dtype == (getattr(torch, dtype) if len(parameter.shape) == 2 else torch.float32)
    assert_same_weights(module, model)


def test_sharded(make_checkpoint: Make) -> None:
    folder, model = make_checkpoint()
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert_same_weights(load_checkpoint(folder), model)


def left_out(folder: Path) -> tuple[Module, list[str]]:
    """The module, and what notices say about files."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = load_checkpoint(folder)
    return module, [str(warning.message) for warning in caught if warning.category is Notice]


def test_files_that_contradict_each_other(make_checkpoint: Make) -> None:
    """transformers' choice: the single file before an index, and what the config names before both."""
    from transformers import AutoModelForCausalLM

    folder, model = make_checkpoint()
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    shards = {path.name for path in folder.glob("*.safetensors")}
    torch.save({"never": "read"}, folder / "pytorch_model.bin")
    assert left_out(folder)[1] == []
    newer, other = make_checkpoint()[0], folder / "other.safetensors"
    for values in model.parameters():
        values.data.mul_(2)
    model.save_pretrained(newer)
    shutil.copy(newer / "model.safetensors", folder)
    module, notes = left_out(folder)
    assert_same_weights(module, AutoModelForCausalLM.from_pretrained(folder))
    assert_same_weights(module, model)
    assert notes == [
        f"the weights are those of {folder / 'model.safetensors'}; left out: model.safetensors.index.json, "
        f"{min(shards)} and {len(shards) - 1} more"
    ]
    (folder / min(shards)).unlink()  # a shard is missing, and nobody minds
    assert_same_weights(left_out(folder)[0], model)
    for values in model.parameters():
        values.data.mul_(2)
    model.save_pretrained(newer)
    shutil.copy(newer / "model.safetensors", other)
    edit_config(folder, transformers_weights=other.name)
    module, notes = left_out(folder)
    assert_same_weights(module, model)
    assert "model.safetensors" in notes[0].partition("left out")[2]
    for wrong in ("other.bin", "../x.safetensors", 3):
        edit_config(folder, transformers_weights=wrong)
        with pytest.raises(InputError, match=r"transformers_weights|outside its folder"):
            load_checkpoint(folder)


def test_a_snapshot_of_the_hub_is_named_by_its_model(make_checkpoint: Make, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--org--Some--Model-1B" / "snapshots" / ("0123456789abcdef" * 2)
    shutil.copytree(make_checkpoint()[0], snapshot)
    assert load_checkpoint(snapshot).facts.name == "Some--Model-1B"
    (tmp_path / "link").symlink_to(snapshot)
    assert load_checkpoint(tmp_path / "link").facts.name == "Some--Model-1B"


def test_layers_of_different_ffn_widths_share_a_block(make_checkpoint: Make) -> None:
    from safetensors.torch import load_file, save_file

    folder, _ = make_checkpoint()
    tensors = load_file(folder / "model.safetensors")
    for name in ("gate_proj", "up_proj"):
        key = f"model.layers.1.mlp.{name}.weight"
        tensors[key] = tensors[key][:33].contiguous()
    tensors["model.layers.1.mlp.down_proj.weight"] = tensors["model.layers.1.mlp.down_proj.weight"][:, :33].contiguous()
    save_file(tensors, folder / "model.safetensors")
    edit_config(folder, intermediate_size=[80, 33])
    module = load_checkpoint(folder)
    assert set(module.functions) == {"main", "embed", "block", "head"}
    assert module.parameters["model.layers.0.mlp.up_proj.weight"].shape == (80, 48)
    assert module.parameters["model.layers.1.mlp.up_proj.weight"].shape == (33, 48)


def test_head_stored_twice(make_checkpoint: Make) -> None:
    """Equal: one parameter. Different: the config is wrong, they are two, as transformers decides."""
    from safetensors.torch import load_file, save_file

    folder, _ = make_checkpoint(tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert "lm_head.weight" not in load_checkpoint(folder).parameters
    tensors["lm_head.weight"][3, 5] += 1
    save_file(tensors, folder / "model.safetensors")
    assert "lm_head.weight" in load_checkpoint(folder).parameters
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors")
    module = load_checkpoint(folder)
    assert "model.embed_tokens.weight" not in module.parameters
    assert torch.equal(module.parameters["lm_head.weight"].values(), tensors["lm_head.weight"])


def test_old_checkpoints_store_rotary_frequencies(make_checkpoint: Make) -> None:
    from safetensors.torch import load_file, save_file

    folder, model = make_checkpoint()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    save_file(tensors, folder / "model.safetensors")
    assert_same_weights(load_checkpoint(folder), model)


def test_transformers_4_spelling(make_checkpoint: Make) -> None:
    folder, model = make_checkpoint()
    edit_config(
        folder,
        rope_parameters=...,
        dtype=...,
        head_dim=...,
        torch_dtype="float32",
        rope_theta=500000.0,
        rope_scaling={"type": "linear", "factor": 4.0},
    )
    module = load_checkpoint(folder)
    rope = block_attributes(module, "rope")
    assert str(rope["table"]) == "theta 500000, linear(4)"
    assert_same_weights(module, model)


def test_names_of_the_architecture(make_checkpoint: Make) -> None:
    folder, _ = make_checkpoint("Mistral")
    edit_config(folder, architectures=...)
    assert load_checkpoint(folder).facts.architecture == "MistralForCausalLM"
    folder, _ = make_checkpoint()
    edit_config(folder, architectures=["LLaMAForCausalLM"])
    assert load_checkpoint(folder).facts.architecture == "LlamaForCausalLM"


def test_mistral_defaults_differ_from_null(make_checkpoint: Make) -> None:
    """A missing window means 4096, null none: the class's defaults, which a shortened config.json relies on."""
    folder, _ = make_checkpoint("Mistral", num_attention_heads=8, num_key_value_heads=8, head_dim=6)
    edit_config(folder, sliding_window=..., num_key_value_heads=...)
    attention = block_attributes(load_checkpoint(folder), "attention")
    assert (attention["window"], attention["kv_heads"]) == (4096, 8)
    edit_config(folder, sliding_window=None, num_key_value_heads=None)
    attention = block_attributes(load_checkpoint(folder), "attention")
    assert (attention["window"], attention["kv_heads"]) == (None, 8)


def test_remote_code_is_not_run(make_checkpoint: Make) -> None:
    folder, model = make_checkpoint()
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    edit_config(folder, auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"})
    assert_same_weights(load_checkpoint(folder), model)
    assert not (folder / "ran").exists()


def test_loading_reads_no_weights(make_checkpoint: Make) -> None:
    """A module is built from the heads of the files; a weight is read when it is loaded, as it is then."""
    folder, _ = make_checkpoint()
    module = load_checkpoint(folder)
    path = folder / "model.safetensors"
    status = path.stat()
    data = path.read_bytes()
    path.write_bytes(data[:-4] + b"\0\0\x80\x3f")  # the last value becomes 1.0
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    last = max(module.parameters)  # the file is sorted by name
    before = torch.frombuffer(bytearray(data[-4:]), dtype=torch.float32).item()
    assert module.parameters[last].values().flatten()[-1] == 1.0 != before


def save_tokenizer(folder: Path, **special: str) -> None:
    """A tokenizer of five words."""
    from tokenizers import Tokenizer, models

    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "<|end|>": 3, "word": 4}
    Tokenizer(models.WordLevel(words, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(special))


def test_facts(make_checkpoint: Make) -> None:
    folder, _ = make_checkpoint(eos_token_id=2, bos_token_id=1)
    save_tokenizer(folder, bos_token="<s>", eos_token={"content": "<|end|>", "special": True}, chat_template="{{ a }}")
    generation = {"eos_token_id": [2, 0], "temperature": 0.6, "top_p": 0.9, "do_sample": True, "max_length": 20}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    facts = load_checkpoint(folder).facts
    assert facts.name == folder.name
    assert facts.tokenizer is not None
    listed = json.loads(facts.tokenizer)["added_tokens"]
    assert [(token["id"], token["content"], token["special"]) for token in listed] == [
        (1, "<s>", True),
        (3, "<|end|>", True),
    ]
    assert facts.special_tokens == {"bos_token": "<s>", "eos_token": "<|end|>"}
    assert facts.generation == GenerationDefaults((2, 0, 3), bos_token_id=1, temperature=0.6, top_p=0.9, do_sample=True)
    assert facts.chat_template == "{{ a }}"


def test_chat_template_of_several_or_a_file(make_checkpoint: Make) -> None:
    folder, _ = make_checkpoint()
    save_tokenizer(folder)
    assert load_checkpoint(folder).facts.chat_template is None
    named = [{"name": "tool_use", "template": "tool"}, {"name": "default", "template": "plain"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert load_checkpoint(folder).facts.chat_template == "plain"
    (folder / "chat_template.jinja").write_text("from its file")
    assert load_checkpoint(folder).facts.chat_template == "from its file"
