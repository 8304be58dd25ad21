"""Checkpoints that are written: transformers and smc load them, with the same numbers."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from smc.errors import InputError
from smc.export import write_checkpoint
from smc.export.shards import write_shards
from smc.export.tensors import Stored
from smc.frontend import load_checkpoint
from smc.ir import print_function
from smc.passes import Context, PruneWidth, QuantizeRTN, QuantizeTernary, apply, load_recipe
from smc.reference import CalibrationText, Reference
from tests.passes.test_reshape import TOKENS, byte_tokenizer, windows

FAMILIES = {
    "Llama": {},
    "Gemma2": {"sliding_window": 9, "num_hidden_layers": 4},
    "GPTNeoX": {"hidden_size": 64},
    "GPT2": {"n_layer": 3, "n_embd": 48, "n_head": 4, "n_positions": 128, "bos_token_id": 0, "eos_token_id": 0},
    "Phi3": {"pad_token_id": 0},
    "Granite": {"residual_multiplier": 0.5, "logits_scaling": 3.0},
    "SmolLM3": {"num_hidden_layers": 4, "pad_token_id": 0},
    "Qwen3": {"tie_word_embeddings": True},
    "Mixtral": {"num_local_experts": 3},
    "Qwen3Moe": {"head_dim": 12, "moe_intermediate_size": 40, "num_experts": 4, "num_experts_per_tok": 2},
}


def transformers_logits(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(TOKENS[None]).logits[0]


@pytest.mark.parametrize("kind", FAMILIES)
def test_reshaped_models_load_in_transformers(make_checkpoint, tmp_path, kind):
    folder, _ = make_checkpoint(kind, **FAMILIES[kind])
    module = load_checkpoint(folder)
    count = len(module.layer_calls())
    result = apply(module, [f"map-layers:layers=0-{count - 1}+1-{count - 1}", "drop-layers:layers=1"])
    write_checkpoint(result, tmp_path / "out")
    expected = Reference(result).logits(TOKENS)
    again = load_checkpoint(tmp_path / "out")
    torch.testing.assert_close(Reference(again).logits(TOKENS), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(transformers_logits(tmp_path / "out"), expected, rtol=0, atol=1e-3)
    assert [print_function(f) for f in again.functions.values() if f.name != "main"] == [
        print_function(f) for f in result.functions.values() if f.name != "main"
    ]


@pytest.mark.parametrize("kind", ["Llama", "Phi3", "Qwen3"])
def test_narrower_models_load_in_transformers(make_checkpoint, tmp_path, kind):
    folder, _ = make_checkpoint(kind, **FAMILIES[kind])
    step = PruneWidth(ffn=50, kv_heads=1, hidden=40)
    result = apply(load_checkpoint(folder), [step], Context(calibration=CalibrationText(windows())))
    write_checkpoint(result, tmp_path / "out")
    torch.testing.assert_close(
        transformers_logits(tmp_path / "out"), Reference(result).logits(TOKENS), rtol=0, atol=1e-3
    )


def test_unchanged_weights_are_the_same_bits(make_checkpoint, tmp_path):
    from safetensors.torch import load_file

    for kind in ("Llama", "Phi3", "GPTNeoX"):
        folder, model = make_checkpoint(kind, **FAMILIES[kind])
        write_checkpoint(load_checkpoint(folder), tmp_path / kind)
        written = load_file(tmp_path / kind / "model.safetensors")
        state = model.state_dict()
        for name, values in written.items():
            assert torch.equal(values, state[name.replace("embed_out", "lm_head")]), name
        assert len(written) == len(state)


@pytest.mark.parametrize(
    "passes",
    [
        [QuantizeRTN(bits=4, group=16)],
        [QuantizeRTN(bits=8, group="row", include=("value", "down")), QuantizeRTN(bits=4, group=16, symmetric=False)],
        [QuantizeRTN(bits=8, group=16, scale_dtype="bf16")],
        [QuantizeRTN(bits=3, group=16, symmetric=False)],
    ],
    ids=["int4", "mixed", "int8", "int3"],
)
@pytest.mark.parametrize("tied", [True, False])
def test_integers_load_in_transformers(make_checkpoint, tmp_path, passes, tied):
    """The same weights: transformers multiplies with floats, so the reference does too."""
    folder, _ = make_checkpoint(tie_word_embeddings=tied, num_hidden_layers=1)
    module = apply(load_checkpoint(folder), [*passes, "activations:inputs=float"])
    notes = write_checkpoint(module, tmp_path / "out")
    again = load_checkpoint(tmp_path / "out")
    for name, parameter in module.parameters.items():
        other = again.parameters[name]
        if "_proj" in name:
            own, read = parameter.load(), other.load()
            assert torch.equal(own.codes, read.codes)
            assert torch.equal(own.scales, read.scales)
            assert own.zeros is None or torch.equal(own.zeros, read.zeros)
        else:
            torch.testing.assert_close(parameter.values(), other.values(), rtol=1e-3, atol=1e-3)
    assert "are written as floats" in notes[0]
    expected = Reference(apply(again, ["activations:inputs=float"])).logits(TOKENS)
    torch.testing.assert_close(transformers_logits(tmp_path / "out"), expected, rtol=0, atol=2e-2)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"


@pytest.mark.parametrize("kind", ["Llama", "BitNet"])
def test_ternary_comes_back_exactly(make_checkpoint, tmp_path, kind):
    folder, _ = make_checkpoint(kind, tie_word_embeddings=True)
    module = apply(load_checkpoint(folder), [QuantizeTernary(exclude=("head", "embedding"))])
    write_checkpoint(module, tmp_path / "out")
    again = load_checkpoint(tmp_path / "out")
    for name, parameter in module.parameters.items():
        own, read = parameter.load(), again.parameters[name].load()
        if own.codes is not None:
            assert torch.equal(own.codes, read.codes)
            assert torch.equal(own.scales, read.scales)
        assert torch.equal(own.decode(), read.decode())
    assert torch.equal(Reference(again).logits(TOKENS), Reference(module).logits(TOKENS))


@pytest.mark.parametrize("scale_dtype", ["f16", "f32"])
def test_row_scaled_ternary_goes_out_as_qllama(make_checkpoint, tmp_path, scale_dtype):
    """The formula of QLlama's own layer on what was written, and smc's loader, give the module's values."""
    from safetensors.torch import load_file

    folder, _ = make_checkpoint()
    step = QuantizeTernary(group="row", scale_dtype=scale_dtype, exclude=("head", "embedding"))
    module = apply(load_checkpoint(folder), [step, "activations:inputs=float"])
    notes = write_checkpoint(module, tmp_path / "out")
    assert notes == []
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["QLlamaForCausalLM"] and "quantization_config" not in config
    again, stored = load_checkpoint(tmp_path / "out"), load_file(tmp_path / "out" / "model.safetensors")
    for name, parameter in module.parameters.items():
        own, read = parameter.load(), again.parameters[name].load()
        if own.codes is not None:
            latent, scales = stored[name].float(), stored[name.replace("weight", "scales")].float()
            assert torch.equal(latent.clamp(-1, 1).round() * scales[:, None], own.decode())
            assert torch.equal(own.codes, read.codes) and torch.equal(own.scales, read.scales)
        assert torch.equal(own.decode(), read.decode())
    assert torch.equal(Reference(again).logits(TOKENS), Reference(module).logits(TOKENS))
    write_checkpoint(again, tmp_path / "again")  # and so once more
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()


def test_other_codes_become_floats(make_checkpoint, tmp_path):
    module = apply(load_checkpoint(make_checkpoint()[0]), load_recipe("nf4").passes)
    notes = write_checkpoint(module, tmp_path / "out")
    assert len(notes) == 1 and "16 matrices of levels16" in notes[0]
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    again = load_checkpoint(tmp_path / "out")
    for name, parameter in module.parameters.items():
        torch.testing.assert_close(again.parameters[name].values(), parameter.values(), atol=1e-3, rtol=1e-3)


def test_tokenizer_generation_config_and_card(make_checkpoint, tmp_path):
    folder, _ = make_checkpoint(vocab_size=260)
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>"}))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.3, "do_sample": True}))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}</s>{% endfor %}")
    module = load_checkpoint(folder)
    result = apply(module, ["up-scale:remove=1"])
    write_checkpoint(result, tmp_path / "out", quality={"perplexity": "12.30"})
    again = load_checkpoint(tmp_path / "out")
    for name in ("tokenizer", "chat_template", "special_tokens", "generation", "context_length"):
        assert getattr(again.facts, name) == getattr(module.facts, name)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded.apply_chat_template([{"role": "user", "content": "Ah"}])["input_ids"] == [
        *byte_tokenizer().encode("Ah").ids, 257,
    ]  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert "2. `up-scale:remove=1`" in card
    assert "| perplexity | 12.30 |" in card


def test_shards(make_checkpoint, tmp_path):
    folder, _ = make_checkpoint()
    module = load_checkpoint(folder)
    write_checkpoint(module, tmp_path / "out", shard_bytes=30_000)
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 3
    assert all(shard.stat().st_size < 35_000 for shard in shards)
    expected = Reference(module).logits(TOKENS)
    torch.testing.assert_close(transformers_logits(tmp_path / "out"), expected, rtol=0, atol=1e-3)


def test_one_tensor_is_in_memory(tmp_path):
    """The tensors are told apart by when they are loaded: never two before one is written."""
    path, seen = tmp_path / "model.safetensors", []

    def load(index):
        seen.append(path.stat().st_size if path.exists() else 0)
        return torch.full((1000, 100), float(index))

    write_shards(tmp_path, [Stored(f"t{i}", (1000, 100), "F32", lambda i=i: load(i)) for i in range(5)])
    from safetensors.torch import load_file

    assert [int(values[0, 0]) for values in load_file(path).values()] == list(range(5))
    assert len(seen) == 5
    assert seen == sorted(seen)
    assert seen[-1] >= 3 * 400_000


def test_what_no_config_can_say_is_refused(make_checkpoint, tmp_path):
    folder, _ = make_checkpoint("GPTNeoX", hidden_size=64)
    narrow = apply(
        load_checkpoint(folder), [PruneWidth(kv_heads=2)], Context(calibration=CalibrationText(windows()))
    )
    with pytest.raises(InputError, match="GPTNeoXForCausalLM can't describe what the passes did to layer_0"):
        write_checkpoint(narrow, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_kept(make_checkpoint, tmp_path):
    module = load_checkpoint(make_checkpoint()[0])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(InputError, match="exists already: name a new folder"):
        write_checkpoint(module, tmp_path / "out")
    with pytest.raises(InputError, match="there is no folder"):
        write_checkpoint(module, tmp_path / "nowhere" / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


PEAK = """
import sys
from smc.cli.main import run
from smc.runtime.memory import peak_memory_bytes
assert run(["optimize", sys.argv[1], "-p", "up-scale:remove=1", "-o", sys.argv[2], "-q"]) == 0
print(peak_memory_bytes())
"""


@pytest.mark.slow
def test_the_peak_of_memory_is_far_below_the_checkpoint(tmp_path):
    """Four layers of a 7B model become six: 2.2 GB are read and 3.1 GB are written."""
    import subprocess
    import sys

    from benchmarks.models import TINYLLAMA_CONFIG, random

    shape = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32}
    random(tmp_path / "model", {**TINYLLAMA_CONFIG, **shape, "num_hidden_layers": 4})
    command = [sys.executable, "-c", PEAK, tmp_path / "model", tmp_path / "out"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert written > 2.9e9
    assert int(done.stdout.splitlines()[-1]) < 1.6e9
