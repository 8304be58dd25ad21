"""LoRA adapters: merged weights are PEFT's own bit for bit; what does not fit is one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from smc.cli import main
from smc.errors import InputError
from smc.frontend import load_checkpoint
from smc.reference import Reference

Make = Callable[..., tuple[Path, Any]]
LINEARS = ["q_proj", "v_proj", "down_proj"]


def save_adapter(folder: Path, place: Path, **options: Any) -> Path:
    """A random adapter for the model in `folder`, with nothing left at zero."""
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    settings: dict[str, Any] = {"r": 3, "lora_alpha": 7, "target_modules": LINEARS, "task_type": "CAUSAL_LM", **options}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, values in adapted.named_parameters():
            if values.requires_grad:
                values += 0.1 * torch.randn_like(values) if "magnitude" not in name else 0.1 * torch.rand_like(values)
    adapted.save_pretrained(place)
    return place


def peft_merge(folder: Path, *adapters: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for adapter in adapters:
        model = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return model


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "all-linear": {"target_modules": "all-linear", "r": 5},
    "regex": {"target_modules": r".*layers\.1\..*(up|gate)_proj"},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 5},
        "alpha_pattern": {"v_proj": 11, "down_proj": 2},
    },
    "modules_to_save": {"modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "embedding-dora": {"target_modules": ["embed_tokens"], "use_dora": True},
    "head": {"target_modules": ["lm_head"], "layers_to_transform": None},
    "bias": {"bias": "all", "lora_bias": True, "target_modules": ["q_proj", "k_proj"]},
    "tokens": {"trainable_token_indices": {"embed_tokens": [5, 0, 95]}},
    "one-layer": {"layers_to_transform": [1]},
}


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, "float32") for kind in KINDS), *((kind, "bfloat16") for kind in ("plain", "dora", "embedding"))],
)
def test_merged_weights_are_those_of_peft(make_checkpoint: Make, tmp_path: Path, kind: str, dtype: str) -> None:
    folder, model = make_checkpoint("Llama", attention_bias=kind == "bias")
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    adapter = save_adapter(folder, tmp_path / "adapter", **KINDS[kind])
    expected = peft_merge(folder, adapter).state_dict()
    before, module = load_checkpoint(folder), load_checkpoint(folder, [adapter])
    assert module.parameters.keys() == expected.keys()
    changed = 0
    for name, parameter in module.parameters.items():
        assert parameter.values().equal(expected[name].float()), name
        changed += not parameter.values().equal(before.parameters[name].values())
    assert changed, "an adapter that changes nothing tests nothing"
    assert "adapter adapter (LoRA, rank" in module.facts.provenance[1]


def test_several_adapters_are_merged_in_order(make_checkpoint: Make, tmp_path: Path) -> None:
    folder, _ = make_checkpoint("Qwen2", head_dim=12)
    first = save_adapter(folder, tmp_path / "first", use_dora=True)
    second = save_adapter(folder, tmp_path / "second", r=2, use_dora=True, target_modules=["q_proj", "up_proj"])
    there = load_checkpoint(folder, [first, second])
    for name, values in peft_merge(folder, first, second).state_dict().items():
        assert there.parameters[name].values().equal(values), name
    back = load_checkpoint(folder, [second, first])
    q = "model.layers.0.self_attn.q_proj.weight"
    assert not there.parameters[q].values().equal(back.parameters[q].values())


@pytest.mark.parametrize("options", [{"target_modules": ["embed_tokens"]}, {"modules_to_save": ["lm_head"]}])
def test_of_a_tied_pair_only_the_trained_one_changes(
    make_checkpoint: Make, tmp_path: Path, options: dict[str, Any]
) -> None:
    """As the adapted model computes; PEFT warns that merging into tied weights is another model."""
    folder, _ = make_checkpoint("Llama", tie_word_embeddings=True)
    adapter = save_adapter(folder, tmp_path / "adapter", **options)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.arange(40) % 96
    with torch.no_grad():
        expected = peft.PeftModel.from_pretrained(base, str(adapter))(tokens[None]).logits[0]
    logits = Reference(load_checkpoint(folder, [adapter])).logits(tokens)
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_fused_matrix_takes_an_adapter(make_checkpoint: Make, tmp_path: Path) -> None:
    folder, _ = make_checkpoint("Phi3", pad_token_id=0)
    adapter = save_adapter(folder, tmp_path / "adapter", target_modules=["qkv_proj", "gate_up_proj"])
    merged = peft_merge(folder, adapter)
    tokens = torch.arange(40) % 96
    with torch.no_grad():
        expected = merged(tokens[None]).logits[0]
    logits = Reference(load_checkpoint(folder, [adapter])).logits(tokens)
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_new_tokens_come_with_the_adapter(make_checkpoint: Make, tmp_path: Path) -> None:
    folder, _ = make_checkpoint("Llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(99)
    settings = peft.LoraConfig(target_modules=LINEARS, modules_to_save=["embed_tokens", "lm_head"])
    adapter = tmp_path / "adapter"
    peft.get_peft_model(model, settings).save_pretrained(adapter)
    module = load_checkpoint(folder, [adapter])
    assert module.facts.vocab_size == 99
    assert module.parameters["lm_head.weight"].values().equal(model.lm_head.weight)


def edit(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(adapter: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def only_pickled(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickled": (only_pickled, "has only pickled weights (adapter_model.bin), which can run code"),
    "no weights": (lambda a: (a / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
    "no config": (lambda a: (a / "adapter_config.json").unlink(), "has no adapter_config.json, so it is not a LoRA"),
    "no JSON": (lambda a: (a / "adapter_config.json").write_text("{"), "is not valid JSON"),
    "another kind": (lambda a: edit(a, peft_type="IA3"), "IA3 adapters are not supported, only LORA"),
    "no kind": (lambda a: edit(a, peft_type=None), "has no peft_type"),
    "rank": (lambda a: edit(a, r=4), "has shape [3, 80], expected [4, 80]"),
    "rank 0": (lambda a: edit(a, r=0), "r must be a positive integer"),
    "alpha": (lambda a: edit(a, lora_alpha="much"), "lora_alpha must be a positive number"),
    "pattern": (lambda a: edit(a, rank_pattern={"(": 3}), "'(' is not a regular expression"),
    "replicated": (lambda a: edit(a, layer_replication=[[0, 2]]), "with layer_replication is not supported"),
    "pissa": (lambda a: edit(a, init_lora_weights="pissa"), "init_lora_weights pissa has also changed the base model"),
    "dora": (lambda a: edit(a, use_dora=True), "lacks lora_magnitude_vector of model.layers.0."),
    "half": (lambda a: edit_tensors(a, lambda t: t.pop(A)), "lacks lora_A of model.layers.0.self_attn.q_proj"),
    "unknown": (
        lambda a: edit_tensors(a, lambda t: t.update(prompt=torch.ones(2))),
        "the tensor prompt does not belong to a LoRA adapter",
    ),
    "NaN": (lambda a: edit_tensors(a, lambda t: t[A].fill_(float("nan"))), "holds NaN or infinite weights"),
    "cut": (
        lambda a: (a / "adapter_model.safetensors").write_bytes((a / "adapter_model.safetensors").read_bytes()[:-8]),
        "is truncated or corrupt",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_one_sentence(make_checkpoint: Make, tmp_path: Path, fault: str) -> None:
    folder, _ = make_checkpoint()
    adapter = save_adapter(folder, tmp_path / "adapter")
    damage, sentence = FAULTS[fault]
    damage(adapter)
    with pytest.raises(InputError) as caught:
        [parameter.load() for parameter in load_checkpoint(folder, [adapter]).parameters.values()]
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adapter_for_another_model(make_checkpoint: Make, tmp_path: Path) -> None:
    small, _ = make_checkpoint()
    wide, _ = make_checkpoint(hidden_size=64)
    deep, _ = make_checkpoint(num_hidden_layers=3)
    other, _ = make_checkpoint("GPTNeoX", hidden_size=64)
    adapter = save_adapter(deep, tmp_path / "adapter")
    for base, sentence in (
        (small, "has no model.layers.2.mlp.down_proj.weight"),
        (wide, "_proj.lora_"),
        (other, "has none of its modules"),
    ):
        with pytest.raises(InputError, match="is an adapter for another model") as caught:
            load_checkpoint(base, [adapter])
        assert sentence in str(caught.value)


def test_the_command_line_merges_and_refuses(
    make_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, _ = make_checkpoint()
    adapter = save_adapter(folder, tmp_path / "adapters" / "one")
    assert main.run(["compile", str(folder), "--adapter", str(adapter.parent)]) == 2
    assert f"its folder one has: give {adapter}" in capsys.readouterr().err
    assert main.run(["compile", str(adapter)]) == 2
    assert f"compile its base model with --adapter {adapter}" in capsys.readouterr().err
    assert main.run(["compile", str(folder), "--quant", "f32", "--adapter", str(adapter), "-o", "out.smc", "-v"]) == 0
    assert "made from: adapter one (LoRA, rank 3)" in capsys.readouterr().err
