"""A GGUF file of mixed block types (as Q4_K_M has them) keeps its codes all the way into the compiled program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

import smc
from smc.ir import Module
from smc.passes import ChangeActivations
from smc.reference import ExactReference
from tests.frontend.test_gguf import KEPT, SCALES, adjacent_pairs, gguf_name, write_gguf
from tests.levels import usable_levels

Make = Callable[..., tuple[Path, Any]]
TOKENS = torch.randint(0, 96, (70,), generator=torch.Generator().manual_seed(1)).tolist()
KINDS = {
    "embed_tokens": "Q4_K",
    "lm_head": "Q6_K",
    "q_proj": "Q4_K",
    "k_proj": "Q5_K",
    "v_proj": "Q6_K",
    "o_proj": "Q3_K",
    "gate_proj": "Q2_K",
    "up_proj": "IQ4_XS",
    "down_proj": "Q6_K",
}


def random_blocks(kind: str, rows: int, columns: int, seed: int) -> np.ndarray:
    """uint8 [rows, bytes]: any codes, scales that make weights of about 0.05."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[Type[kind]]
    rng, count = np.random.default_rng(seed), rows * columns // block
    raw = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    for place in SCALES[kind]:
        raw[:, place : place + 2] = np.full(count, 1, np.float16)[:, None].view(np.uint8)
    size = np.abs(gguf.quants.dequantize(raw.reshape(rows, -1), Type[kind])).mean()
    for place in SCALES[kind]:
        scales = (rng.uniform(0.5, 1.5, count) * 0.05 / size).astype(np.float16)
        raw[:, place : place + 2] = scales[:, None].view(np.uint8)
    return raw.reshape(rows, -1)


def mixed_file(model: Any, path: Path) -> None:
    """The model gets random weights that its file's block types can say."""
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    blocks: dict[str, tuple[np.ndarray, str]] = {}
    for seed, (name, values) in enumerate(model.named_parameters()):
        if values.dim() == 2:
            module = name.split(".")[-2]
            raw = random_blocks(kind := KINDS[module], *values.shape, seed)
            values.data = torch.from_numpy(gguf.quants.dequantize(raw, Type[kind]))
            blocks[gguf_name(name)] = adjacent_pairs(raw, heads[module]) if module in heads else raw, kind

    def extra(writer: gguf.GGUFWriter) -> None:
        for name, (raw, kind) in blocks.items():
            writer.add_tensor(name, raw, raw_dtype=Type[kind])

    write_gguf(path, model, extra=extra, tensors={n: v for n, v in model.state_dict().items() if v.dim() == 1})


def encodings_of(module: Module) -> set[str]:
    return {str(p.encoding) for p in module.parameters.values() if len(p.shape) == 2}


def test_mixed_types(make_checkpoint: Make, tmp_path: Path) -> None:
    _, model = make_checkpoint(hidden_size=256, intermediate_size=512, num_attention_heads=8)
    mixed_file(model, tmp_path / "mixed.gguf")
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0].numpy()
    module = smc.load_checkpoint(tmp_path / "mixed.gguf")
    assert encodings_of(module) == {KEPT[kind] for kind in KINDS.values()}

    floats = smc.apply(module, [ChangeActivations("float")])
    smc.compile(floats, out=tmp_path / "float.smc")
    with smc.load(tmp_path / "float.smc", kv_dtype="f32") as compiled:
        assert np.abs(compiled.logits(TOKENS) - expected).max() <= 2e-3 * np.abs(expected).max()

    smc.compile(module, out=tmp_path / "int8.smc")
    exact = ExactReference(module, "f16").logits(torch.tensor(TOKENS)).numpy()
    for level in usable_levels():
        with smc.load(tmp_path / "int8.smc", level=level) as compiled:
            np.testing.assert_array_equal(compiled.logits(TOKENS), exact)
            with compiled.new_sequence() as sequence:
                steps = [sequence.extend([token], logits="all").copy() for token in TOKENS[:6]]
            np.testing.assert_array_equal(np.concatenate(steps), exact[:6])
