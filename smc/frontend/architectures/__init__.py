"""The architectures that can be read: one module each, from a config to the functions of the ir."""

from __future__ import annotations

from collections.abc import Callable

from smc.errors import InputError
from smc.frontend.architectures import llama, mistral
from smc.frontend.architectures.decoder import Decoder, assemble
from smc.frontend.checkpoint import Checkpoint
from smc.ir import Module

ARCHITECTURES: dict[str, Callable[[Checkpoint], Decoder]] = {
    "LlamaForCausalLM": llama.decoder,
    "MistralForCausalLM": mistral.decoder,
}
MODEL_TYPES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
ALIASES = {"LLaMAForCausalLM": "LlamaForCausalLM"}  # the spelling of the first conversions of Llama 1 and Alpaca


def build_module(checkpoint: Checkpoint) -> Module:
    """The ir of a checkpoint; InputError where its architecture is not supported or its tensors do not fit it."""
    name = architecture_name(checkpoint)
    return assemble(ARCHITECTURES[name](checkpoint), checkpoint, name)


def architecture_name(checkpoint: Checkpoint) -> str:
    """The checkpoint's architecture, a key of ARCHITECTURES; from `model_type` where an old config names no class."""
    config = checkpoint.config
    classes = config.values.get("architectures")
    if classes:
        if not isinstance(classes, list) or not isinstance(classes[0], str):
            raise config.fault("architectures", "a list of class names")
        name = ALIASES.get(classes[0], classes[0])
    else:
        model_type = config.text("model_type")
        name = MODEL_TYPES.get(model_type, model_type)
    supported = f"supported are {', '.join(ARCHITECTURES)}"
    scales = next((tensor for tensor in checkpoint.tensors if tensor.endswith(".scales")), None)
    if name.startswith("QLlama") or (name in ARCHITECTURES and scales):
        seen = f" (it has the tensor {scales})" if scales else ""
        raise InputError(f"{config.origin}: this is QLlama, a ternary Llama with code of its own{seen}; {supported}")
    if name not in ARCHITECTURES:
        raise InputError(f"{config.origin}: {name} is not supported; {supported}")
    return name
