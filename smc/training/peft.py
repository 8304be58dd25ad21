"""A trained LoRA in PEFT's layout: https://huggingface.co/docs/peft/developer_guides/checkpoint"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from smc.ir import Module
from smc.passes.training import Training


def write_adapter(folder: Path, module: Module, job: Training, results: Mapping[str, Tensor]) -> bool:
    """Write adapter_config.json and adapter_model.safetensors. If a matrix is a part of a stored tensor, which PEFT
    can't adapt, nothing is written and the result is False. results: from `smc.training.setup.results_of`."""
    names = [key.removesuffix("|a") for key in results if key.endswith("|a")]
    if any("[" in name or not name.endswith(".weight") for name in names):
        return False
    tensors, modules = {}, sorted({name.removesuffix(".weight").rpartition(".")[2] for name in names})
    for name in names:
        path = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{path}.lora_A.weight"] = results[f"{name}|a"].float().contiguous()
        tensors[f"{path}.lora_B.weight"] = results[f"{name}|b"].float().contiguous()
    folder.mkdir(exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": module.facts.name,
        "r": job.rank,
        "lora_alpha": job.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": modules,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return True
