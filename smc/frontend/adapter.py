"""LoRA adapters in PEFT's layout, merged into a checkpoint's tensors as they are read.

Hu et al., "LoRA" (2021); Kalajdzievski, "rsLoRA" (2023); Liu et al., "DoRA" (2024). Names and layout are those of
PEFT's checkpoint format: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from smc.errors import InputError
from smc.fields import COUNT, Fields
from smc.frontend.checkpoint import Checkpoint, StoredTensor
from smc.frontend.config import Config
from smc.frontend.files import read_json
from smc.frontend.folder_tokenizer import FILE, folder_tokenizer
from smc.frontend.safetensors_files import PICKLED, file_tensors
from smc.ir import F32

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

KEY = re.compile(
    r"base_model\.model\.(?P<module>.+?)\.(?:"
    r"(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.weight)?|"
    r"(?P<bias>lora_B\.bias)|"
    r"(?P<tokens>token_adapter\.trainable_tokens_delta)|"
    r"(?:modules_to_save\.|base_layer\.)?(?P<whole>weight|bias))"
)
"""A tensor of an adapter."""

UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
"""Kinds of LoRA that are not a sum of a matrix and a product, by the key that turns them on."""

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin a training (`init_lora_weights`) that change the base model's weights too."""

ENDS = (("model.embed_tokens.weight", "lm_head.weight"), ("gpt_neox.embed_in.weight", "embed_out.weight"))
"""The embedding and the head; a tied checkpoint stores one of them."""


def merged(checkpoint: Checkpoint, folders: Iterable[Path]) -> Checkpoint:
    """The checkpoint with adapters merged in order, each into the result of those before it, in the dtype of its
    weights.

    The result is the model that was trained: a head that is tied to an embedding keeps its own weights if only the
    other one was trained. InputError if an adapter is damaged, of another kind, or made for another model.
    """
    for folder in folders:
        checkpoint = _Adapter.open(folder).merged_into(checkpoint)
    return checkpoint


@dataclass
class _Update:
    """The tensors of an adapter for one module, by their part ("lora_A", …, "weight", "bias")."""

    module: str
    parts: dict[str, StoredTensor] = field(default_factory=dict)

    def get(self, name: str) -> Tensor | None:
        """A part in float32: PEFT computes in it whatever is stored."""
        return self.parts[name].values().float() if name in self.parts else None

    @property
    def factors(self) -> tuple[str, str] | None:
        """The names of the two factors, of a matrix or of an embedding."""
        for names in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
            if any(name in self.parts for name in names):
                return names
        return None


@dataclass(frozen=True)
class _Adapter:
    folder: Path
    config: Config
    updates: dict[str, _Update]

    @classmethod
    def open(cls, folder: Path) -> _Adapter:
        """Read config and header; InputError if the folder is not a LoRA adapter."""
        if not (folder / CONFIG).is_file():
            raise InputError(_why_no_config(folder))
        config = Config(read_json(folder / CONFIG), str(folder / CONFIG))
        _check_kind(config)
        path = folder / WEIGHTS
        if not path.is_file():
            pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
            if pickled:
                raise InputError(
                    f"{folder} has only pickled weights ({pickled[0]}), which can run code: convert to safetensors"
                )
            raise InputError(f"{folder} has no {WEIGHTS}")
        updates: dict[str, _Update] = {}
        for tensor in file_tensors(path):
            if ".original_module." in tensor.name:
                continue  # what a module of `modules_to_save` was before
            found = KEY.fullmatch(tensor.name)
            if found is None:
                raise InputError(f"{path}: the tensor {tensor.name} does not belong to a LoRA adapter")
            update = updates.setdefault(found["module"], _Update(found["module"]))
            part = found["part"] or found["bias"] or ("tokens" if found["tokens"] else found["whole"])
            update.parts[part] = tensor
        return cls(folder, config, updates)

    def merged_into(self, base: Checkpoint) -> Checkpoint:
        """The checkpoint with every tensor that the adapter changes."""
        if base.applied:
            raise InputError(f"{self.folder} can't be merged into a GGUF file of this family: give the folder")
        base = self._with_vocabulary(base)
        tensors = {**base.tensors, **self._untied(base)}
        if not self.updates.keys() & {name.rpartition(".")[0] for name in tensors}:
            raise InputError(f"{self.folder} is an adapter for another model: {base.name} has none of its modules")
        for update in self.updates.values():
            tensors.update((t.name, t) for t in self._updated(update, tensors, base))
        rank = self.config.integer("r", 8)
        return replace(
            base, tensors=tensors, changes=(*base.changes, f"adapter {self.folder.resolve().name} (LoRA, rank {rank})")
        )

    def _updated(self, update: _Update, tensors: dict[str, StoredTensor], base: Checkpoint) -> Iterable[StoredTensor]:
        """The module's weight and bias, where they change."""
        for kind in ("weight", "bias"):
            changing = {"weight": set(update.parts) - {"bias", "lora_B.bias"}, "bias": {"bias", "lora_B.bias"}}[kind]
            if not changing & set(update.parts):
                continue
            stored = tensors.get(f"{update.module}.{kind}")
            if stored is None:
                raise InputError(
                    f"{self.folder} is an adapter for another model: {base.name} has no {update.module}.{kind}"
                )
            if kind in update.parts:
                whole = update.parts[kind]
                self._check_shape(whole, stored.shape)
                stored = replace(whole, name=stored.name)
            if kind == "weight":
                yield self._weight(update, stored, base)
            elif "lora_B.bias" in update.parts:
                self._check_shape(update.parts["lora_B.bias"], stored.shape)
                yield _changed(stored, partial(_plus_bias, update, self._scaling(update.module)))
            else:
                yield stored

    def _weight(self, update: _Update, stored: StoredTensor, base: Checkpoint) -> StoredTensor:
        """The module's matrix."""
        if "tokens" in update.parts:
            ids = self._token_ids(update.module)
            self._check_shape(update.parts["tokens"], (len(ids), *stored.shape[1:]))
            if ids and max(ids) >= stored.shape[0]:
                raise InputError(
                    f"{self.config.origin}: the token {max(ids)} is not one of the {stored.shape[0]} of {base.name}"
                )
            stored = _changed(stored, partial(_with_tokens, update, ids))
        names = update.factors
        if names is None:
            return stored
        rank = self._pattern("rank_pattern", update.module) or self.config.integer("r", 8)
        is_embedding = names[0] == "lora_embedding_A"
        transposed = is_embedding or (
            self.config.flag("fan_in_fan_out", False) and base.config.values.get("model_type") == "gpt2"
        )
        for name, wanted in zip(names, _factor_shapes(stored.shape, rank, transposed), strict=True):
            if name not in update.parts:
                raise InputError(f"{self.folder / WEIGHTS} lacks {name} of {update.module}")
            self._check_shape(update.parts[name], wanted)
        if self.config.flag("use_dora", False) and "lora_magnitude_vector" not in update.parts:
            raise InputError(f"{self.folder / WEIGHTS} lacks lora_magnitude_vector of {update.module}")
        return _changed(stored, partial(_plus_product, update, names, self._scaling(update.module), transposed))

    def _scaling(self, module: str) -> float:
        """The factor of the product: alpha / r, for rsLoRA alpha / sqrt(r)."""
        rank = self._pattern("rank_pattern", module) or self.config.integer("r", 8)
        found = self._pattern("alpha_pattern", module)
        alpha = self.config.number("lora_alpha", 8.0) if found is None else found
        return alpha / (math.sqrt(rank) if self.config.flag("use_rslora", False) else rank)

    def _pattern(self, key: str, module: str) -> int | None:
        """The value for a module of an object whose keys are regular expressions on the ends of names."""
        section = self.config.section(key)
        for pattern in section.values:
            try:
                found = re.match(rf"(.*\.)?({pattern})$", module)
            except re.error as error:
                raise InputError(f"{section.origin}: {pattern!r} is not a regular expression: {error}") from None
            if found:
                return section.integer(pattern, within=COUNT)
        return None

    def _token_ids(self, module: str) -> tuple[int, ...]:
        """The rows of an embedding that the adapter has."""
        if isinstance(self.config.values.get("trainable_token_indices"), dict):
            section = self.config.section("trainable_token_indices")
            name = next((n for n in section.values if module == n or module.endswith(f".{n}")), None)
            return section.token_ids(name) if name else ()
        return self.config.token_ids("trainable_token_indices")

    def _check_shape(self, tensor: StoredTensor, wanted: tuple[int, ...]) -> None:
        if tensor.shape != wanted:
            raise InputError(
                f"{self.folder} is an adapter for another model, or its config does not fit it: "
                f"{tensor.name} has shape {list(tensor.shape)}, expected {list(wanted)}"
            )

    def _untied(self, base: Checkpoint) -> dict[str, StoredTensor]:
        """The embedding or head that a tied checkpoint does not store, where training one left the other as it was."""
        if self.config.flag("ensure_weight_tying", False):
            return {}
        for names in ENDS:
            stored = [name for name in names if name in base.tensors]
            parts = [self.updates.get(name.rpartition(".")[0]) for name in names]
            trained = [part is not None and set(part.parts) != {"tokens"} for part in parts]
            if len(stored) == 1 and any(trained) and base.config.values.get("tie_word_embeddings") is not False:
                return {name: replace(base.tensors[stored[0]], name=name) for name in names}
        return {}

    def _with_vocabulary(self, base: Checkpoint) -> Checkpoint:
        """The checkpoint with the adapter's tokenizer and as many tokens as it has embeddings for."""
        tensors, sizes = dict(base.tensors), set()
        for name in (name for names in ENDS for name in names if name in base.tensors):
            update = self.updates.get(name.rpartition(".")[0])
            whole = update.parts.get("weight") if update else None
            if whole is not None and whole.shape[1:] == tensors[name].shape[1:]:
                tensors[name] = replace(whole, name=name)
                sizes.add(whole.shape[0])
        config: Fields = base.config
        if sizes and sizes != {config.integer("vocab_size")}:
            if len(sizes) > 1:
                raise InputError(f"{self.folder / WEIGHTS}: embedding and head have different numbers of tokens")
            config = replace(config, values={**config.values, "vocab_size": sizes.pop()})
        if not (self.folder / FILE).is_file():
            return replace(base, tensors=tensors, config=config)
        found = folder_tokenizer(self.folder, config.text("model_type", ""))
        named = {**base.special_tokens, **found.named}
        return replace(base, tensors=tensors, config=config, tokenizer=found.text, special_tokens=named)


def _check_kind(config: Config) -> None:
    """InputError for adapters that are not LoRA, or of a kind that can't be merged."""
    kind = config.text("peft_type")
    if kind != "LORA":
        raise InputError(f"{config.origin}: {kind} adapters are not supported, only LORA")
    for key in UNSUPPORTED:
        if config.values.get(key):
            raise InputError(f"{config.origin}: a LoRA adapter with {key} is not supported")
    start = str(config.values.get("init_lora_weights"))
    if start.lower().startswith(CHANGES_BASE):
        raise InputError(
            f"{config.origin}: init_lora_weights {start} has also changed the base model: convert it to a plain LoRA"
        )


def _why_no_config(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no adapter folder {folder}"
    others = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if others:
        return f"{folder} has no {CONFIG}, its folder {others[0].name} has: give {others[0]}"
    return f"{folder} has no {CONFIG}, so it is not a LoRA adapter"


def _factor_shapes(shape: tuple[int, ...], rank: int, transposed: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of A and B for a matrix of this shape."""
    rows, columns = shape[::-1] if transposed else shape
    return (rank, columns), (rows, rank)


def _changed(stored: StoredTensor, change: partial[Tensor]) -> StoredTensor:
    """The tensor with its values changed, in the dtype that it is stored in."""

    def read() -> Tensor:
        values = stored.values()
        return change(values).to(values.dtype)

    encoding = stored.encoding if stored.encoding.is_float else F32
    return replace(stored, encoding=encoding, read=read, coded=None)


def _plus_product(
    update: _Update, names: tuple[str, str], scaling: float, transposed: bool, values: Tensor
) -> Tensor:
    """W + scaling · B A; of DoRA with every row (of a transposed one: column) at its stored length."""
    import torch

    a, b = update.get(names[0]), update.get(names[1])
    assert a is not None and b is not None
    product = b @ a
    delta = (product.T if transposed else product) * scaling
    magnitude = update.get("lora_magnitude_vector")
    if magnitude is None:  # PEFT rounds what it adds to an embedding to the embedding's dtype, and nothing else
        return values + (delta.to(values.dtype) if names[0] == "lora_embedding_A" else delta)
    dim = 0 if transposed else 1
    norms = torch.linalg.norm(values + delta, dim=dim)
    return (magnitude.flatten() / norms).unsqueeze(dim) * (values + delta)


def _plus_bias(update: _Update, scaling: float, values: Tensor) -> Tensor:
    bias = update.get("lora_B.bias")
    assert bias is not None
    return values + bias * scaling


def _with_tokens(update: _Update, ids: tuple[int, ...], values: Tensor) -> Tensor:
    """The embedding with the rows of these tokens replaced."""
    import torch

    rows = update.get("tokens")
    assert rows is not None
    return values.index_copy(0, torch.tensor(ids, dtype=torch.long), rows.to(values.dtype))
