"""Quantized matrices written by the tools that formats come from, where these are installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smc.frontend import load_checkpoint
from tests.frontend.test_prequantized import BNB, SIZES, Tensors, compressed, quantize_folder

Make = Callable[..., tuple[Path, Any]]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_four_bits(make_checkpoint: Make, kind: str, nested: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")

    def quantize(module: str, weight: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=nested)
        parts = {f"weight.{name}": values for name, values in state.as_dict(packed=True).items()}
        return {"weight": codes, **parts}, functional.dequantize_4bit(codes, state)

    folder, _ = make_checkpoint("Llama", **{**SIZES, "intermediate_size": 128})
    expected = quantize_folder(folder, BNB, quantize)
    module = load_checkpoint(folder)
    for name, values in expected.items():
        assert not module.parameters[name].encoding.is_float
        torch.testing.assert_close(module.parameters[name].values(), values, rtol=1e-6, atol=1e-7)


def test_bitsandbytes_eight_bits(make_checkpoint: Make) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")

    def quantize(module: str, weight: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
        return {"weight": codes, "SCB": scales}, functional.int8_vectorwise_dequant(codes, scales)

    folder, _ = make_checkpoint("Llama", **SIZES)
    expected = quantize_folder(folder, {"quant_method": "bitsandbytes", "load_in_8bit": True}, quantize)
    module = load_checkpoint(folder)
    for name, values in expected.items():
        assert str(module.parameters[name].encoding) == "int8.row.f32.weight-only"
        torch.testing.assert_close(module.parameters[name].values(), values.float(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (2, 4, 5, 6, 7, 8))])
def test_compressed_tensors_packs(make_checkpoint: Make, bits: int, symmetric: bool) -> None:
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    arguments = QuantizationArgs(num_bits=bits, group_size=32, strategy="group", symmetric=symmetric)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)

    def quantize(module: str, weight: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        groups = len(weight), weight.shape[1] // 32
        zeros = torch.from_numpy(rng.integers(-(1 << bits - 1), 1 << bits - 1, groups).astype(np.int8))
        scales = torch.from_numpy(rng.uniform(0.05, 0.1, groups).astype(np.float32))
        state = {"weight": weight, "weight_scale": scales, **({} if symmetric else {"weight_zero_point": zeros})}
        packed = PackedQuantizationCompressor.compress(state, scheme)
        return packed, PackedQuantizationCompressor.decompress(packed, scheme)["weight"]

    folder, _ = make_checkpoint("Llama", **SIZES)
    expected = quantize_folder(folder, compressed("pack-quantized", bits, 32), quantize)
    module = load_checkpoint(folder)
    for name, values in expected.items():
        assert not module.parameters[name].encoding.is_float
        assert module.parameters[name].values().equal(values)


def test_compressed_tensors_packs_mxfp4(make_checkpoint: Make) -> None:
    from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    arguments = QuantizationArgs(num_bits=4, type="float", group_size=32, strategy="group")
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)

    def quantize(module: str, weight: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        scales = torch.from_numpy(np.exp2(rng.integers(-5, 1, (len(weight), weight.shape[1] // 32))))
        packed = MXFP4PackedCompressor.compress({"weight": weight, "weight_scale": scales.float()}, scheme)
        return packed, MXFP4PackedCompressor.decompress(packed, scheme)["weight"].float()

    folder, _ = make_checkpoint("Llama", **SIZES)
    expected = quantize_folder(folder, compressed("mxfp4-pack-quantized", 4, 32), quantize)
    module = load_checkpoint(folder)
    for name, values in expected.items():
        assert module.parameters[name].values().equal(values)
