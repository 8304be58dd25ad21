"""Models that nobody has trained: the tensors of transformers' own, in shape and number."""

from __future__ import annotations

import pytest
import torch
import transformers

from smc.errors import InputError
from smc.export import write_checkpoint
from smc.frontend.fresh import new_model
from smc.reference import Reference
from tests.conftest import TINY


@pytest.mark.parametrize("kind", ["Llama", "Phi3", "GPTNeoX", "Gemma2", "BitNet"])
def test_tensors_are_those_of_transformers(tmp_path, kind):
    changes = {"hidden_size": 64, "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(**{**TINY, **changes})
    module = new_model({**config.to_dict(), "architectures": [f"{kind}ForCausalLM"]}, "new", seed=3)
    tokens = torch.arange(30)
    expected = Reference(module).logits(tokens)
    write_checkpoint(module, tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(tokens[None]).logits[0], expected, rtol=0, atol=1e-4)
    matrices = [p.values() for n, p in module.parameters.items() if len(p.shape) == 2 and "norm" not in n]
    deviation = torch.cat([m.flatten() for m in matrices]).std().item()
    assert deviation == pytest.approx(config.initializer_range, rel=0.05)


def test_a_seed_says_all(tmp_path):
    config = {**TINY, "model_type": "llama"}
    one, same, other = (new_model(config, "new", seed=seed) for seed in (1, 1, 2))
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(one.parameters[name].values(), same.parameters[name].values())
    assert not torch.equal(one.parameters[name].values(), other.parameters[name].values())


def test_a_config_that_is_none():
    with pytest.raises(InputError, match="the config of new"):
        new_model({"model_type": "llama"}, "new")
