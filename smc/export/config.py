"""config.json of a module: the checkpoint's own, with the changes of passes, which follow from the ir."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from smc.errors import InputError
from smc.frontend.architectures import architectures
from smc.frontend.architectures.decoder import Decoder
from smc.frontend.architectures.gpt2 import KEYS as GPT2_KEYS
from smc.frontend.checkpoint import Checkpoint
from smc.frontend.config import Config
from smc.ir import Function, Module

LEFT_OUT = ("quantization_config", "compression_config", "auto_map", "transformers_weights", "torch_dtype")
"""Keys that are about the files of the checkpoint that was read."""

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def config_of(module: Module) -> dict[str, Any]:
    """The config. InputError if the module was built by hand and has none."""
    facts = module.facts
    known = architectures().get(facts.architecture)
    if known is None or not facts.config:
        raise InputError(f"{facts.name} has no config that a checkpoint could be written with")
    values = {key: value for key, value in facts.config.items() if key not in LEFT_OUT}
    layers, old_count = module.layer_calls(), facts.config.get("num_hidden_layers")
    functions = [module.functions[call.attributes["function"]] for call in layers]
    origins = module.layer_map()
    for key, value in values.items():
        if isinstance(value, list) and len(value) == old_count and None not in origins:
            values[key] = [value[origin] for origin in origins if origin is not None]
    attentions = [next(function.attentions()).attributes for function in functions]
    windows = [attention["window"] is not None for attention in attentions]
    if "layer_types" in values or len(set(windows)) > 1:
        values["layer_types"] = ["sliding_attention" if window else "full_attention" for window in windows]
    first = attentions[0]
    downs = [call.attributes["parameters"][_down(f)] for call, f in zip(layers, functions, strict=True)]
    widths = [shape[1] for shape in (module.parameters[name].shape for name in downs) if len(shape) == 2]
    hidden = module.main.node(layers[0].inputs[0]).tensor.shape[1]
    values |= {
        "architectures": [facts.architecture],
        "model_type": known.model_type,
        "num_hidden_layers": len(layers),
        "hidden_size": hidden,
        "num_attention_heads": first["heads"],
        "num_key_value_heads": first["kv_heads"],
        "vocab_size": facts.vocab_size,
        "tie_word_embeddings": module.parameters_of("embedding") == module.parameters_of("head"),
        "dtype": DTYPES[dtype_of(module)],
    }
    if widths:  # those of experts do not change
        values["intermediate_size"] = widths[0] if len(set(widths)) == 1 else widths
    if "head_dim" in values or first["heads"] * first["head_dim"] != hidden:
        values["head_dim"] = first["head_dim"]
    ends = list(facts.generation.eos_token_ids)
    if ends:
        values["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    for key, usual in GPT2_KEYS.items() if "n_embd" in values else ():
        values[key] = values.pop(usual, values.get(key))
    return values


def dtype_of(module: Module) -> str:
    """The dtype of most float weights; f16 if all weights are quantized."""
    counts: dict[str, int] = {}
    for parameter in module.parameters.values():
        if parameter.encoding.is_float and len(parameter.shape) > 1:
            dtype = parameter.encoding.float_dtype
            counts[dtype] = counts.get(dtype, 0) + math.prod(parameter.shape)
    return max(counts, key=counts.__getitem__) if counts else "f16"


def _down(function: Function) -> str:
    """The slot of the matrix that ends the feed-forward."""
    return next(slot.name for slot in function.parameters() if slot.attributes["role"] == "down")


def decoder_of(module: Module, config: dict[str, Any]) -> Decoder:
    """Check that the architecture makes this model from the config. InputError if it makes another one."""
    facts = module.facts
    checkpoint = Checkpoint(facts.name, "", Config(config, "the config to be written"), {})
    built = architectures()[facts.architecture].build(checkpoint)
    blocks = [built.embed, *built.layers, built.head]
    calls = list(module.calls())
    if len(blocks) != len(calls):
        raise _unsayable(module, f"{len(calls)} calls")
    for (call, function), block in zip(calls, blocks, strict=True):
        if not _alike(function, block.function):
            raise _unsayable(module, call.name)
    return replace(built, embed=blocks[0], layers=blocks[1:-1], head=blocks[-1])


def _unsayable(module: Module, what: str) -> InputError:
    return InputError(
        f"the config of {module.facts.architecture} can't describe what the passes did to {what}: compile the "
        "model instead"
    )


def _alike(a: Function, b: Function) -> bool:
    """Whether two functions compute the same, apart from scales that were rounded to a checkpoint's dtype."""
    own, other = list(a.nodes()), list(b.nodes())
    if len(own) != len(other) or a.outputs != b.outputs:
        return False
    return all(
        (x.name, x.op, x.inputs, x.type) == (y.name, y.op, y.inputs, y.type)
        and x.attributes.keys() == y.attributes.keys()
        and all(_close(x.attributes[key], y.attributes[key]) for key in x.attributes)
        for x, y in zip(own, other, strict=True)
    )


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-2)
    return bool(a == b)
