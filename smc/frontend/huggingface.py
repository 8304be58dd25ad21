"""Folders in the Hugging Face layout: config.json, safetensors, tokenizer, chat template, generation defaults."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from smc.errors import InputError
from smc.frontend.checkpoint import Checkpoint, IntegerTensor
from smc.frontend.config import Config
from smc.frontend.files import read_json, read_optional_json, read_text
from smc.frontend.folder_tokenizer import folder_tokenizer
from smc.frontend.grids import on_grids
from smc.frontend.prequantized import find_method
from smc.frontend.prequantized.qllama import has_row_scales, qllama
from smc.frontend.safetensors_files import folder_tensors
from smc.generation import GenerationDefaults


def open_folder(folder: Path, name: str | None = None) -> Checkpoint:
    """The checkpoint in `folder`; its weights are read later. `name` is the folder's where none is given.

    Remote code that a config points at (auto_map) is never run. InputError if a part is missing, broken, or
    quantized in a way that is not supported.
    """
    if not (folder / "config.json").is_file():
        raise InputError(_why_no_config(folder))
    config = Config(read_json(folder / "config.json"), str(folder / "config.json"))
    quantization = _quantization(config)
    read = find_method(quantization) if quantization is not None else None
    stored = folder_tensors(folder, config, integers=read is not None)
    changes: tuple[str, ...] = ()
    if quantization is not None and read is not None:
        tensors, method = read(quantization, stored), quantization.text("quant_method")
        if tensors == stored:
            raise InputError(f"{quantization.origin}: no tensor is stored as {method} stores it: remove the section")
        made = [t for n, t in tensors.items() if n not in stored or isinstance(stored[n], IntegerTensor)]
        floats = sum(tensor.coded is None for tensor in made)
        changes = (f"dequantized: {floats} matrices of {method} to floats",) if floats else ()
    elif has_row_scales(stored):
        tensors = qllama(stored)
    else:
        tensors, changes = on_grids(stored)
    tokenizer_config = read_optional_json(folder / "tokenizer_config.json")
    tokenizer = folder_tokenizer(folder, config.text("model_type", ""))
    return Checkpoint(
        name=name or _name(folder),
        format="safetensors" + (f", {quantization.text('quant_method')}" if quantization is not None else ""),
        config=config,
        tensors=tensors,
        tokenizer=tokenizer.text,
        chat_template=_chat_template(folder, tokenizer_config),
        special_tokens=tokenizer.named,
        generation=_generation(folder, config, tokenizer.eos),
        changes=changes,
    )


def _name(folder: Path) -> str:
    """The folder's name; of a snapshot in the hub's cache, which is named by a hash, the model's."""
    place = folder.resolve()
    if place.parent.name == "snapshots" and place.parents[1].name.startswith("models--"):
        return place.parents[1].name.split("--", 2)[-1]
    return place.name


def _why_no_config(folder: Path) -> str:
    if (folder / "adapter_config.json").exists():
        return f"{folder} is a LoRA adapter, not a model: compile its base model with --adapter {folder}"
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        return f"{folder} has no config.json: to load a GGUF file, name the file itself ({ggufs[0]})"
    return f"{folder} has no config.json, so it is no checkpoint in the Hugging Face layout"


def _quantization(config: Config) -> Config | None:
    """How the weights are stored, if they are quantized."""
    for key in ("quantization_config", "compression_config"):
        if config.values.get(key) is not None:
            return config.section(key)
    return None


def _chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """The jinja source: its own file, else a string or the one called "default" in the tokenizer's config."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return read_text(path)
    stored = tokenizer_config.get("chat_template")
    if isinstance(stored, list):
        stored = {t.get("name"): t.get("template") for t in stored if isinstance(t, dict)}.get("default")
    return stored if isinstance(stored, str) else None


def _generation(folder: Path, config: Config, eos: int | None) -> GenerationDefaults:
    """Sampling defaults and token ids; every id that ends a text, wherever it is declared, counts.

    eos: the id of the tokenizer's eos_token.
    """
    origin = folder / "generation_config.json"
    stored = Config(read_optional_json(origin), str(origin))
    defaults, older = GenerationDefaults.read(stored), config.token_ids
    ends = (*defaults.eos_token_ids, *older("eos_token_id"), *([] if eos is None else [eos]))
    own = {name: older(name)[0] for name in ("bos_token_id", "pad_token_id") if older(name)}
    given = {name: value for name in own if (value := getattr(defaults, name)) is not None}
    return replace(defaults, eos_token_ids=tuple(dict.fromkeys(ends)), **{**own, **given})
