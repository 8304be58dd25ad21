"""GPTQ and AWQ checkpoints that gptqmodel quantized itself: its dequantized weights exactly, and logits of floats.

gptqmodel 7.7 wants a later torch than smc does, so it has an environment of its own: `pip install gptqmodel pytest
gguf`, and from the clone `python -m pytest tests/frontend/test_gptqmodel.py`. It needs no GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from smc.frontend import load_checkpoint
from smc.passes import apply
from smc.reference import Reference

Make = Callable[..., tuple[Path, Any]]
SIZES = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 1}
CASES = [
    *(("gptq", layout, *case) for layout in ("gptq", "gptq_v2") for case in itertools.product((2, 3, 4, 8), (0, 1))),
    ("awq", "gemm", 4, 0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "layout", "bits", "act_order"), CASES)
def test_weights_and_logits(
    make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch, method: str, layout: str, bits: int, act_order: int
) -> None:
    """Asymmetric, so that zeros are stored."""
    monkeypatch.setenv("GPTQMODEL_CPU_WORKERS", "2")  # it needs two, and takes one on two cores
    gptqmodel = pytest.importorskip("gptqmodel")
    folder, model = make_checkpoint("Llama", **SIZES)
    monkeypatch.chdir(folder.parent)  # where it writes logs
    out = folder.with_name("quantized")
    more = {"desc_act": bool(act_order)} if method == "gptq" else {}
    quantize(gptqmodel, folder, out, method=method, format=layout, bits=bits, group_size=32, sym=False, **more)
    loaded = gptqmodel.GPTQModel.load(str(out), device="cpu", backend="torch", dtype=torch.float16).model
    module = load_checkpoint(out)
    state = {name: values.float() for name, values in load_file(out / "model.safetensors").items()}
    layers = {name: m for name, m in loaded.named_modules() if hasattr(m, "qweight")}
    assert len(layers) == 7
    for name, layer in layers.items():
        parameter = module.parameters[f"{name}.weight"]
        assert str(parameter.encoding).startswith(f"int{bits}.g32.asymmetric")
        assert parameter.encoding.transform.permuted == bool(act_order)
        values = parameter.values()
        with torch.no_grad():  # sums of one product each
            theirs = layer(torch.eye(values.shape[1], dtype=torch.float16)).T
        assert values.half().equal(theirs), name
        state[f"{name}.weight"] = values
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    tokens = torch.arange(40) % 96
    with torch.no_grad():
        floats = model(tokens[None]).logits[0]
    logits = Reference(apply(module, ["activations:inputs=float"])).logits(tokens)
    assert (logits - floats).abs().max() <= 2e-3 * floats.abs().max()


def quantize(gptqmodel: Any, folder: Path, out: Path, **settings: Any) -> None:
    """By random tokens, on the CPU."""
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"t{token}": token for token in range(96)}, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", eos_token="t1").save_pretrained(folder)
    config = gptqmodel.QuantizeConfig(**settings, device="cpu", offload_to_disk=False)
    model = gptqmodel.GPTQModel.load(str(folder), config)
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(0, 96, (64,), generator=generator).tolist() for _ in range(16)]
    model.quantize([{"input_ids": text, "attention_mask": [1] * len(text)} for text in texts], batch_size=4)
    model.save(str(out))
