"""A module as a folder in the Hugging Face layout."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from smc.errors import InputError
from smc.export import quantized
from smc.export.card import card
from smc.export.config import config_of, decoder_of, dtype_of
from smc.export.shards import SHARD_BYTES, write_shards
from smc.export.tensors import Place, Stored, places_of
from smc.ir import Encoding, Module


def write_checkpoint(
    module: Module,
    folder: Path,
    *,
    quality: Mapping[str, Any] | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Write weights, config, tokenizer, chat template, generation config and a model card. The folder gets its name
    when it is complete.

    Integers are written as compressed-tensors, ternary matrices as BitNet stores them, or, with a scale per row and
    float inputs, as QLlama. Other codes, and those of embedding and head, are decoded to floats; the result has a
    sentence for each. quality: figures for the card.
    InputError if the folder exists already, if the disk has no room, or if no config can describe the model.
    """
    _check_new(folder)
    config = config_of(module)
    places = places_of(module, decoder_of(module, config))
    dtype = dtype_of(module).upper()
    coded, write, changes = _quantization(module, places)
    others = [place for place in places if place not in coded]
    tensors: list[Stored] = [place.dense(dtype) for place in others]
    for place in coded:
        tensors += write(place)
    config |= changes
    notes = _decoded([p.parts[0][1].encoding for p in others])
    if isinstance(config.get("intermediate_size"), list):
        notes.append("layers have feed-forwards of different widths, which smc can load and transformers can't")
    _check_space(folder, tensors)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write_shards(partial, tensors, progress, shard_bytes)
        _write_rest(module, partial, config)
        (partial / "README.md").write_text(card(module, quality or {}, notes), encoding="utf-8")
        if folder.is_dir():
            folder.rmdir()
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return notes


def _quantization(
    module: Module, places: Sequence[Place]
) -> tuple[list[Place], Callable[[Place], list[Stored]], dict[str, Any]]:
    """The matrices that go out as codes in the one format that a checkpoint can have, how, and what the config says."""

    def others(coded: Sequence[Place]) -> list[Place]:
        return [place for place in places if place not in coded]

    ternary = quantized.packed_ternary(places)
    if ternary:
        return ternary, quantized.ternary_tensors, {"quantization_config": quantized.ternary_config(others(ternary))}
    latent = quantized.latent_ternary(places) if module.facts.architecture == "LlamaForCausalLM" else []
    if latent:
        return latent, quantized.latent_tensors, {"architectures": [quantized.QLLAMA]}
    integers = quantized.packed_integers(places)
    said = {"quantization_config": quantized.integer_config(integers, others(integers))} if integers else {}
    return integers, quantized.integer_tensors, said


def _check_new(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise InputError(f"{folder} exists already: name a new folder")
    if not folder.absolute().parent.is_dir():
        raise InputError(f"there is no folder {folder.absolute().parent} to write {folder.name} into: create it first")
    if not os.access(folder.absolute().parent, os.W_OK | os.X_OK):
        raise InputError(f"the folder {folder.absolute().parent} can't be written: choose another for {folder.name}")


def _check_space(folder: Path, tensors: list[Stored]) -> None:
    needed, free = sum(tensor.bytes for tensor in tensors), shutil.disk_usage(folder.absolute().parent).free
    if free < needed:
        raise InputError(f"no room for {folder}: it needs {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free")


def _decoded(encodings: list[Encoding]) -> list[str]:
    """The sentences about quantized matrices that are written as floats."""
    found: dict[str, int] = {}
    for encoding in encodings:
        if not encoding.is_float:
            found[str(encoding)] = found.get(str(encoding), 0) + 1
    return [f"{count} matrices of {encoding} are written as floats" for encoding, count in found.items()]


def _write_rest(module: Module, folder: Path, config: Mapping[str, Any]) -> None:
    facts = module.facts

    def write(name: str, content: Mapping[str, Any]) -> None:
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    write("config.json", config)
    generation = facts.generation.to_json()
    if generation:
        write("generation_config.json", generation)
    if facts.tokenizer is not None:
        (folder / "tokenizer.json").write_text(facts.tokenizer, encoding="utf-8")
        limit = {"model_max_length": facts.context_length, "clean_up_tokenization_spaces": False}
        write("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **limit, **facts.special_tokens})
    if facts.chat_template is not None:
        (folder / "chat_template.jinja").write_text(facts.chat_template, encoding="utf-8")
