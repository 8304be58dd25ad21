"""Quantized Hugging Face checkpoints, written here in their documented layouts: exact weights, logits of floats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from smc.cli import main
from smc.errors import InputError
from smc.frontend import load_checkpoint
from smc.passes import apply
from smc.reference import Reference

Make = Callable[..., tuple[Path, Any]]
Tensors = dict[str, torch.Tensor]
Quantize = Callable[[str, torch.Tensor, np.random.Generator], tuple[Tensors, torch.Tensor]]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}


def packed(codes: np.ndarray, bits: int) -> torch.Tensor:
    """[n, columns] → int32 [n, words], from the lowest bit of a row on, bit by bit."""
    single = (codes[..., None] >> np.arange(bits) & 1).reshape(len(codes), -1).astype(np.uint8)
    single = np.pad(single, ((0, 0), (0, -single.shape[1] % 32)))
    return torch.from_numpy(np.packbits(single, axis=1, bitorder="little").view(np.int32).copy())


def quantize_folder(folder: Path, config: dict[str, Any], quantize: Quantize) -> dict[str, torch.Tensor]:
    """Replace the matrices of all layers; the values that they stand for by name."""
    tensors, rng, expected = load_file(folder / "model.safetensors"), np.random.default_rng(1), {}
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        module = name.removesuffix(".weight")
        parts, expected[name] = quantize(module, tensors.pop(name), rng)
        tensors.update((f"{module}.{part}", values.contiguous()) for part, values in parts.items())
    save_file(tensors, folder / "model.safetensors")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": config}))
    return expected


def random_groups(shape: torch.Size, size: int, bits: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Codes [rows, columns]; zeros and float16 scales [rows, groups]."""
    rows, columns = shape
    groups = -(-columns // size)
    codes = rng.integers(0, 1 << bits, (rows, columns))
    zeros = rng.integers(0, 1 << bits, (rows, groups))
    return codes, zeros, (rng.uniform(0.5, 1.5, (rows, groups)) * 0.2 / (1 << bits)).astype(np.float16)


def values_of(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, group: np.ndarray) -> torch.Tensor:
    """scale · (code - zero), with the group of every column."""
    return torch.from_numpy(scales.astype(np.float32)[:, group] * (codes - zeros[:, group]).astype(np.float32))


def gptq(bits: int, size: int, plus: int, act_order: bool) -> Quantize:
    def quantize(module: str, weight: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        columns = weight.shape[1]
        codes, zeros, scales = random_groups(weight.shape, columns if size < 0 else size, bits, rng)
        group = np.arange(columns) // (columns if size < 0 else size)
        if act_order:
            group = rng.permutation(group)
        parts = {
            "qweight": packed(codes, bits).T,
            "qzeros": packed((zeros.T - plus) % (1 << bits), bits),
            "scales": torch.from_numpy(scales.T.copy()),
            "g_idx": torch.from_numpy(group.astype(np.int32)),
        }
        return parts, values_of(codes, zeros, scales, group)

    return quantize


def awq(module: str, weight: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
    codes, zeros, scales = random_groups(weight.shape, 32, 4, rng)

    def interleaved(values: np.ndarray) -> torch.Tensor:
        return packed(values.reshape(len(values), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]].reshape(values.shape), 4)

    parts = {
        "qweight": interleaved(codes.T),
        "qzeros": interleaved(zeros.T),
        "scales": torch.from_numpy(scales.T.copy()),
    }
    return parts, values_of(codes, zeros, scales, np.arange(weight.shape[1]) // 32)


def pack_quantized(bits: int, size: int, zero_points: bool, act_order: bool = False) -> Quantize:
    def quantize(module: str, weight: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        columns = weight.shape[1]
        width = columns if size < 0 else size
        codes, zeros, scales = random_groups(weight.shape, width, bits, rng)
        group = np.arange(columns) // width
        if act_order:
            group = rng.permutation(group)
        parts = {
            "weight_packed": packed(codes, bits),
            "weight_scale": torch.from_numpy(scales),
            "weight_shape": torch.tensor(weight.shape),
        }
        if zero_points:
            parts["weight_zero_point"] = packed(zeros.T, bits).T
        else:
            zeros = np.full_like(zeros, 1 << bits - 1)
        if act_order:
            parts["weight_g_idx"] = torch.from_numpy(group.astype(np.int32))
        return parts, values_of(codes, zeros, scales, group)

    return quantize


def int_quantized(module: str, weight: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
    codes, _, scales = random_groups(weight.shape, weight.shape[1], 8, rng)
    zeros = np.full_like(scales, 128, dtype=np.int64)
    parts = {"weight": torch.from_numpy((codes - 128).astype(np.int8)), "weight_scale": torch.from_numpy(scales)}
    return parts, values_of(codes, zeros, scales, np.zeros(weight.shape[1], np.int64))


def mxfp4(transformers: bool) -> Quantize:
    """As transformers has it, or compressed-tensors; values by the table of the specification."""
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)

    def quantize(module: str, weight: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        rows, columns = weight.shape
        codes = rng.integers(0, 16, (rows, columns)).astype(np.uint8)
        exponents = rng.integers(120, 126, (rows, columns // 32)).astype(np.uint8)
        values = np.where(codes & 8, -1, 1) * table[codes & 7] * np.repeat(np.exp2(exponents - 127.0), 32, axis=1)
        octets = torch.from_numpy(codes[:, 0::2] | codes[:, 1::2] << 4)
        scales = torch.from_numpy(exponents)
        if transformers:
            parts = {"weight_blocks": octets.reshape(rows, -1, 16), "weight_scales": scales}
        else:
            parts = {"weight_packed": octets, "weight_scale": scales.view(torch.float8_e8m0fnu)}
        return parts, torch.from_numpy(values.astype(np.float32))

    return quantize


def compressed(layout: str, bits: int, size: int | None, inputs: Any = None) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "strategy": "group" if size else "channel", "group_size": size}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": group}}


PER_TOKEN = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}


def gptq_config(bits: int, size: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": size, **more}


V2 = {"checkpoint_format": "gptq_v2"}
FORMATS: dict[str, tuple[dict[str, Any], Quantize]] = {
    "gptq-4": (gptq_config(4, 32), gptq(4, 32, 1, False)),
    "gptq-2": (gptq_config(2, 16), gptq(2, 16, 1, False)),
    "gptq-3-v2": (gptq_config(3, 32, **V2), gptq(3, 32, 0, False)),
    "gptq-8-row": (gptq_config(8, -1), gptq(8, -1, 1, False)),
    "gptq-4-act-order": (gptq_config(4, 32, desc_act=True), gptq(4, 32, 1, True)),
    "gptq-3-act-order-v2": (gptq_config(3, 16, desc_act=True, **V2), gptq(3, 16, 0, True)),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, awq),
    "pack-4": (compressed("pack-quantized", 4, 32), pack_quantized(4, 32, False)),
    "pack-4-zeros": (compressed("pack-quantized", 4, 32), pack_quantized(4, 32, True)),
    "pack-3": (compressed("pack-quantized", 3, 32), pack_quantized(3, 32, True)),
    "pack-8-row": (compressed("pack-quantized", 8, None), pack_quantized(8, -1, False)),
    "pack-4-act-order": (compressed("pack-quantized", 4, 16), pack_quantized(4, 16, True, True)),
    "mxfp4": ({"quant_method": "mxfp4"}, mxfp4(True)),
    "mxfp4-packed": (compressed("mxfp4-pack-quantized", 4, 32), mxfp4(False)),
    "int-8": (compressed("int-quantized", 8, None, PER_TOKEN), int_quantized),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_codes_are_kept_and_stand_for_the_same_weights(make_checkpoint: Make, kind: str) -> None:
    config, quantize = FORMATS[kind]
    folder, model = make_checkpoint("Llama", **SIZES)
    expected = quantize_folder(folder, config, quantize)
    module = load_checkpoint(folder)
    state = model.state_dict()
    for name, values in expected.items():
        parameter = module.parameters[name]
        assert not parameter.encoding.is_float
        assert parameter.encoding.transform.permuted == ("act-order" in kind)
        assert parameter.values().equal(values), name
        state[name] = values
    model.load_state_dict(state)
    tokens = torch.arange(40) % 96
    with torch.no_grad():
        floats = model(tokens[None]).logits[0]
    logits = Reference(apply(module, ["activations:inputs=float"])).logits(tokens)
    assert (logits - floats).abs().max() <= 2e-3 * floats.abs().max()


def test_a_config_says_how_inputs_are_rounded(make_checkpoint: Make) -> None:
    folder, _ = make_checkpoint("Llama", **SIZES)
    quantize_folder(folder, *FORMATS["int-8"])
    encodings = {p.encoding.input_group for p in load_checkpoint(folder).parameters.values() if not p.encoding.is_float}
    assert encodings == {"token"}


def test_a_fused_matrix_keeps_its_codes(make_checkpoint: Make) -> None:
    folder, _ = make_checkpoint("Phi3", pad_token_id=0, **SIZES)
    expected = quantize_folder(folder, *FORMATS["gptq-4-act-order"])
    module = load_checkpoint(folder)
    name = "model.layers.0.self_attn.qkv_proj.weight"
    parts = [p for n, p in module.parameters.items() if n.startswith(name)]
    assert len(parts) == 3
    assert all(not part.encoding.is_float for part in parts)
    assert torch.cat([part.values() for part in parts]).equal(expected[name])


@pytest.mark.parametrize("kind", ["gptq-4-act-order", "pack-4-zeros", "int-8", "mxfp4"])
def test_experts_keep_their_codes(make_checkpoint: Make, kind: str) -> None:
    """Matrix by matrix as they are stored, each with an order of its columns of its own where it has one."""
    config, quantize = FORMATS[kind]
    sizes = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    folder, _ = make_checkpoint("Qwen3Moe", **{**SIZES, **sizes})
    expected = quantize_folder(folder, config, quantize)
    module = load_checkpoint(folder)
    for name in ("gate_proj", "up_proj", "down_proj"):
        parameter = module.parameters[f"model.layers.0.mlp.experts.{name}.weight"]
        assert not parameter.encoding.is_float
        for number, values in enumerate(parameter.values()):
            assert values.equal(expected[f"model.layers.0.mlp.experts.{number}.{name}.weight"])
    floats = apply(module, ["convert:dtype=f32"])
    tokens = torch.arange(40) % 96
    logits = Reference(apply(module, ["activations:inputs=float"])).logits(tokens)
    torch.testing.assert_close(logits, Reference(floats).logits(tokens))


def ternary(kind: str, scale: float) -> Quantize:
    def quantize(module: str, weight: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        rows, _ = weight.shape
        signs = torch.from_numpy(rng.integers(-1, 2, weight.shape).astype(np.float32))
        octets = torch.zeros(rows // 4, weight.shape[1], dtype=torch.uint8)
        for place in range(4):
            octets += (signs[place * rows // 4 : (place + 1) * rows // 4] + 1).to(torch.uint8) << 2 * place
        factor = torch.tensor([scale])
        return {"weight": octets, "weight_scale": factor}, signs * (1 / factor if kind == "bitlinear" else factor)

    return quantize


@pytest.mark.parametrize("half", [0.5, -0.5])
def test_bonsai_rounds_its_floats_to_even_and_scales_rows(make_checkpoint: Make, half: float) -> None:
    """QLlama: no method says so in the config, the class's name does and the scales are there."""
    folder, model = make_checkpoint("Llama", **SIZES)

    def quantize(module: str, weight: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        latent = torch.from_numpy(rng.normal(size=weight.shape).astype(np.float16))
        latent[:, 0], latent[:, 1] = half, 3 * half  # to 0, and beyond the clamp
        scales = torch.from_numpy(rng.uniform(0.01, 0.2, len(weight)).astype(np.float16))
        rounded = torch.where(latent.float().abs() > 0.5, latent.float().sign(), 0)
        return {"weight": latent, "scales": scales}, rounded * scales.float()[:, None]

    expected = quantize_folder(folder, {}, quantize)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]
    path.write_text(
        json.dumps({**config, "architectures": ["QLlamaForCausalLM"], "auto_map": {"AutoModel": "code.py"}})
    )
    module = load_checkpoint(folder)
    for name, values in expected.items():
        assert str(module.parameters[name].encoding) == "base3.row.weight-only"
        assert module.parameters[name].values().equal(values)
    model.load_state_dict({**model.state_dict(), **expected})
    tokens = torch.arange(40) % 96
    with torch.no_grad():
        floats = model(tokens[None]).logits[0]
    assert (Reference(module).logits(tokens) - floats).abs().max() <= 1e-4 * floats.abs().max()


def fp8(block: int | None, part: str) -> Quantize:
    def quantize(module: str, weight: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        values = torch.from_numpy(rng.normal(size=weight.shape).astype(np.float32)).to(torch.float8_e4m3fn)
        rows, columns = weight.shape
        shape = (-(-rows // block), -(-columns // block)) if block else (rows, 1)
        scales = torch.from_numpy(rng.uniform(0.05, 0.2, shape).astype(np.float32))
        spread = scales
        if block:
            spread = scales.repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :columns]
        return {"weight": values, part: scales}, values.float() * spread

    return quantize


def four_bits(size: int, nested: bool) -> Quantize:
    """nf4 in bitsandbytes' layout, its levels made up: what they are stands in the file."""

    def quantize(module: str, weight: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        count = weight.numel()
        codes, blocks = rng.integers(0, 16, count), -(-count // size)
        levels = np.sort(rng.uniform(-1, 1, 16)).astype(np.float32)
        octets = (codes[0::2] << 4 | codes[1::2]).astype(np.uint8)
        state: dict[str, Any] = {
            "quant_type": "nf4",
            "blocksize": size,
            "shape": list(weight.shape),
            "dtype": "float16",
        }
        absmax = rng.uniform(0.1, 0.3, blocks).astype(np.float32)
        parts = {"weight": torch.from_numpy(octets)[:, None], "weight.quant_map": torch.from_numpy(levels)}
        if nested:
            inner, outer = rng.integers(0, 256, blocks).astype(np.uint8), rng.uniform(0.1, 0.2, -(-blocks // 256))
            table, outer = np.linspace(-1, 1, 256).astype(np.float32), outer.astype(np.float32)
            absmax = table[inner] * np.repeat(outer, 256)[:blocks] + np.float32(0.25)
            state |= {"nested_blocksize": 256, "nested_offset": 0.25, "nested_dtype": "float32"}
            parts |= {"weight.absmax": torch.from_numpy(inner), "weight.nested_absmax": torch.from_numpy(outer)}
            parts["weight.nested_quant_map"] = torch.from_numpy(table)
        else:
            parts["weight.absmax"] = torch.from_numpy(absmax)
        text = json.dumps(state).encode()
        parts["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
        values = levels[codes] * np.repeat(absmax, size)[:count]
        return parts, torch.from_numpy(values.reshape(weight.shape))

    return quantize


def eight_bits(module: str, weight: torch.Tensor, rng: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
    codes = torch.from_numpy(rng.integers(-127, 128, weight.shape).astype(np.int8))
    scales = torch.from_numpy(rng.uniform(1, 9, len(weight)).astype(np.float32))
    return {"weight": codes, "SCB": scales}, codes.float() * (scales / 127)[:, None]


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
FP8 = {"quant_method": "fp8", "fmt": "e4m3"}
OTHERS: dict[str, tuple[dict[str, Any], Quantize, str | None]] = {
    "fp8-blocks": ({**FP8, "weight_block_size": [40, 40]}, fp8(40, "weight_scale_inv"), None),
    "fp8-rows": (compressed("float-quantized", 8, None), fp8(None, "weight_scale"), None),
    "nf4": (BNB, four_bits(32, False), "levels16.f32.g32.f32.weight-only"),
    "nf4-nested": (BNB, four_bits(32, True), "levels16.f32.g32.f32.weight-only"),
    "nf4-across-rows": (BNB, four_bits(128, False), None),
    "int8": (BNB, eight_bits, "int8.row.f32.weight-only"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_no_encoding_says_is_dequantized(
    make_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """fp8, and blocks of scales that cross rows; the summary says so. The rest keep codes."""
    config, quantize, encoding = OTHERS[kind]
    folder, _ = make_checkpoint("Llama", **SIZES)
    expected = quantize_folder(folder, config, quantize)
    module = load_checkpoint(folder)
    for name, values in expected.items():
        assert module.parameters[name].values().equal(values), name
        assert str(module.parameters[name].encoding) == (encoding or "f32")
    if encoding is None:
        method = config["quant_method"]
        assert module.facts.provenance[1] == f"dequantized: {len(expected)} matrices of {method} to floats"


@pytest.mark.parametrize(("kind", "scale"), [("bitlinear", 7.3), ("autobitlinear", 0.13)])
def test_bitnet_is_ternary_with_the_scale_in_its_sense(make_checkpoint: Make, kind: str, scale: float) -> None:
    folder, _ = make_checkpoint("BitNet", **SIZES)
    config = {"quant_method": "bitnet", "linear_class": kind, "quantization_mode": "offline"}
    expected = quantize_folder(folder, config, ternary(kind, scale))
    module = load_checkpoint(folder)
    for name, values in expected.items():
        assert module.parameters[name].values().equal(values)
        assert str(module.parameters[name].encoding) == "int2.tensor.zero1.f32.a8-token"


def test_online_bitnet_rounds_as_transformers_does(make_checkpoint: Make) -> None:
    from transformers.integrations.bitnet import WeightQuant

    folder, _ = make_checkpoint("BitNet", **SIZES)
    floats = load_file(folder / "model.safetensors")
    path = folder / "config.json"
    config = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": config}))
    module = load_checkpoint(folder)
    name = "model.layers.0.mlp.down_proj.weight"
    with torch.compiler.set_stance("force_eager"):  # it would be compiled for a minute
        expected = WeightQuant.apply(floats[name])
    torch.testing.assert_close(module.parameters[name].values(), expected, rtol=1e-6, atol=0)
    assert module.parameters["lm_head.weight"].encoding.is_float


Q = "model.layers.0.self_attn.q_proj"


def pop(part: str) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.pop(f"{Q}.{part}")


def put(part: str, values: torch.Tensor) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({f"{Q}.{part}": values})


FAULTS: list[tuple[str, dict[str, Any], Callable[[Tensors], Any], str]] = [
    ("gptq-4", {"quant_method": "spqr"}, len, "quantized with spqr are not supported; supported are awq, bitnet"),
    ("gptq-4", {"bits": 5}, len, "bits must be 2, 3, 4 or 8, not 5"),
    ("gptq-4", {"bits": 8}, len, "where the quantization_config makes it"),
    ("gptq-4", {"group_size": 64}, len, "where the quantization_config makes it"),
    ("gptq-4", {"checkpoint_format": "marlin"}, len, "the GPTQ layout marlin is not supported"),
    ("gptq-4", {"dynamic": {"-:.*": {}}}, len, "(dynamic) is not supported"),
    ("gptq-4", {}, pop("scales"), f"{Q} lacks scales"),
    ("gptq-4", {}, pop("qweight"), f"{Q} lacks qweight"),
    ("gptq-4", {}, put("qweight", torch.zeros(8, 64)), f"{Q}.qweight is stored as f32, expected I32"),
    ("gptq-4", {}, put("scales", torch.full((2, 64), torch.inf)), "holds NaN or infinite|NaN or infinite scales"),
    ("gptq-4", {}, put("g_idx", torch.zeros(64, dtype=torch.int32)), "has no groups of 32 columns each"),
    ("awq", {"version": "gemv"}, len, "the AWQ layout gemv is not supported"),
    ("awq", {"bits": 8}, len, "bits must be 4, not 8"),
    ("mxfp4", {}, pop("weight_scales"), f"{Q}.weight lacks {Q}.weight_scales"),
    ("mxfp4", {}, put("weight_scales", torch.zeros(64, 3, dtype=torch.uint8)), "its scales [64, 3]"),
    ("mxfp4", {}, put("weight_scales", torch.full((64, 2), 255, dtype=torch.uint8)), "NaN or infinite scales"),
    ("pack-4", {"format": "nvfp4-pack-quantized"}, len, "the format nvfp4-pack-quantized of compressed-tensors"),
    ("pack-4", {"config_groups": {}}, len, "is quantized, but no group of the quantization_config names it"),
    ("pack-4", {}, put("weight_shape", torch.tensor([64, 65])), "where the quantization_config makes it"),
]


@pytest.mark.parametrize("place", range(len(FAULTS)))
def test_what_contradicts_is_one_sentence(make_checkpoint: Make, place: int) -> None:
    kind, changes, damage, sentence = FAULTS[place]
    config, quantize = FORMATS[kind]
    folder, _ = make_checkpoint("Llama", **SIZES)
    quantize_folder(folder, {**config, **changes}, quantize)
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError) as caught:
        [parameter.load() for parameter in load_checkpoint(folder).parameters.values()]
    assert any(part in str(caught.value) for part in sentence.split("|")), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["gptq-4-act-order", "int-8"])
def test_a_quantized_source_keeps_its_codes_unless_an_option_says_else(
    make_checkpoint: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, _ = make_checkpoint("Llama", **SIZES)
    quantize_folder(folder, *FORMATS[kind])
    assert main.run(["compile", str(folder), "-o", "kept.smc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quantized"].startswith("kept the checkpoint's codes, and 2 matrices")
    assert main.run(["compile", str(folder), "-o", "again.smc", "--quant", "int8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quantized"] == "again, by --quant int8"
    assert main.run(["compile", str(folder), "-p", "quantize-rtn:bits=8,include=head", "-o", "h.smc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quantized"].startswith("kept the checkpoint's codes, the rest by -p")
