"""What the framework does around a quantization method: padding, masks, guards, checks, laziness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from smc.errors import InputError
from smc.frontend import load_checkpoint
from smc.ir import F16, Encoding
from smc.passes import Context, QuantizeRTN, WeightQuantizer, apply
from smc.passes import weight_quantizer as framework


@dataclass(frozen=True)
class Plain(WeightQuantizer):
    """Divides by the largest weight, as a user would write it, and keeps what it was given."""

    name: ClassVar[str] = "plain"
    seen: ClassVar[list[tuple[torch.Tensor, torch.Tensor]]] = []
    stored: Encoding = Encoding.of(bits=4, group=16)
    answer: object = None

    def encoding(self):
        return self.stored

    def quantize(self, groups, statistics):
        self.seen.append((groups.clone(), statistics.mask))
        if self.answer is not None:
            return self.answer(groups)
        scales = self.round_scales(groups.abs().amax(-1) / 7)
        return (groups / scales[..., None]).round() + 8, scales


@pytest.fixture(autouse=True)
def _forget():
    Plain.seen.clear()


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 41, 64])
def test_short_groups_are_padded_with_zeros_and_masked(columns):
    weights = torch.randn(3, columns)
    tensor = Plain().encode(weights)
    (groups, mask), count = Plain.seen[0], -(-columns // 16)
    assert groups.shape == tensor.codes.shape == (3, count, 16)
    assert mask.shape == (count, 16)
    assert mask.sum() == columns
    assert torch.equal(groups[:, mask], weights)
    assert (groups[:, ~mask] == 0).all()
    assert tensor.decode().shape == weights.shape
    assert ((tensor.decode() - weights).abs() <= tensor.scales.max() * 0.5001).all()


def test_rows_come_in_chunks_and_the_result_does_not_depend_on_them(monkeypatch):
    weights = torch.randn(13, 40)
    whole = Plain().encode(weights)
    Plain.seen.clear()
    monkeypatch.setattr(framework, "CHUNK_WEIGHTS", 100)
    chunked = Plain().encode(weights)
    assert [groups.shape[0] for groups, _ in Plain.seen] == [2] * 6 + [1]
    assert torch.equal(whole.codes, chunked.codes)
    assert torch.equal(whole.scales, chunked.scales)


@pytest.mark.parametrize("kind", [{}, {"zero": "stored"}, {"minimum": True}])
def test_groups_of_zeros_are_guarded_and_decode_to_zeros(kind):
    stored = Encoding.of(bits=4, group=16, **kind)
    weights = torch.randn(2, 48)
    weights[0, 16:32] = 0
    weights[1] = 0

    def answer(groups):
        scales = groups.abs().amax(-1) / 15
        assert (scales > 0).all()
        third = () if stored.constant_zero is not None else (scales * 0 + 3,)
        return (groups.abs() / scales[..., None]).round().clamp(0, 15), scales, *third

    decoded = Plain(stored=stored, answer=answer).encode(weights).decode()
    assert (decoded[0, 16:32] == 0).all()
    assert (decoded[1] == 0).all()
    assert (decoded[0, :16] != 0).any()


@pytest.mark.parametrize(("group", "shape"), [("row", (3, 1, 20)), ("tensor", (1, 1, 60))])
def test_rows_and_tensors_as_one_group(group, shape):
    weights = torch.randn(3, 20)
    tensor = Plain(stored=Encoding.of(bits=4, group=group)).encode(weights)
    assert Plain.seen[0][0].shape == shape
    assert tensor.codes.shape == (3, 1, 20)
    assert tensor.scales.shape == shape[:2]
    assert ((tensor.decode() - weights).abs() <= tensor.scales.max() * 0.501).all()


def test_three_dims_are_rows(monkeypatch):
    experts = torch.randn(2, 3, 40)
    tensor = Plain().encode(experts)
    assert tensor.codes.shape == (6, 3, 16)
    assert torch.equal(tensor.decode().view(6, 40), Plain().encode(experts.view(6, 40)).decode())


def test_scales_are_stored_in_their_dtype():
    scales = Plain(stored=Encoding.of(bits=4, group=16, scale_dtype="bf16")).encode(torch.randn(3, 16)).scales
    assert scales.dtype == torch.float32
    assert torch.equal(scales.bfloat16().float(), scales)


@pytest.mark.parametrize("super_group", [None, 4])
def test_scales_too_small_for_f16_are_told(super_group):
    """Weights far below the others become 0 and nobody minds; a whole matrix of them would be lost in silence."""
    weights = torch.randn(3, 128)
    method = QuantizeRTN(bits=4, super_group=super_group)
    with pytest.raises(InputError, match="too small for f16: use scale_dtype f32 or bf16"):
        method.encode(weights * 1e-7)
    assert not method.encode(weights * 0).decode().any()
    weights[1] *= 1e-9
    assert torch.equal(method.encode(weights).decode()[1], torch.zeros(128))
    for scale_dtype in ("bf16", "f32"):
        tiny = weights[:1] * 1e-7
        decoded = QuantizeRTN(bits=8, super_group=super_group, scale_dtype=scale_dtype).encode(tiny).decode()
        torch.testing.assert_close(decoded, tiny, rtol=0, atol=3e-9)


def shaped(codes, scales, *rest):
    return lambda groups: (torch.full_like(groups, codes), torch.full(groups.shape[:2], scales), *rest)


@pytest.mark.parametrize(
    ("stored", "answer", "message"),
    [
        (Encoding.of(bits=4), shaped(16, 1.0), "codes from 16 to 16, not 0 to 15"),
        (Encoding.of(bits=4), shaped(-1, 1.0), "codes from -1 to "),
        (Encoding.of(bits=4), shaped(0.5, 1.0), "codes that are not whole numbers"),
        (Encoding.of(bits=4), shaped(float("nan"), 1.0), "codes from nan"),
        (Encoding.of("base3"), shaped(3, 1.0), "codes from 3 to 3, not 0 to 2"),
        (Encoding.of(bits=4, codebook=(-1, 0, 1)), shaped(3, 1.0), "codes from 3 to 3"),
        (Encoding.of(bits=4), shaped(1, 1e6), "scales beyond the range of f16: use scale_dtype f32 or bf16"),
        (Encoding.of(bits=4), shaped(1, float("nan")), "scales beyond the range"),
        (Encoding.of(bits=4), shaped(1, 1.0, 3), "returned 3 tensors, but int4.g32 needs 2"),
        (Encoding.of(bits=4, zero="stored"), shaped(1, 1.0), "returned 2 tensors, but int4.g32.asymmetric needs 3"),
        (
            Encoding.of(bits=4),
            lambda groups: (groups[0], groups[..., 0]),
            "returned codes of shape [1, 32], not [2, 1, 32]",
        ),
    ],
)
def test_wrong_results_are_refused(stored, answer, message):
    with pytest.raises(InputError) as caught:
        Plain(stored=stored, answer=answer).encode(torch.ones(2, 32))
    assert message in str(caught.value)


@pytest.mark.parametrize("stored", [F16, Encoding.of(bits=4, permuted=True)])
def test_encodings_of_another_kind_are_refused(make_checkpoint, stored):
    module = load_checkpoint(make_checkpoint()[0])
    with pytest.raises(InputError, match="pass plain can't make "):
        Plain(stored=stored).run(module, Context())


def test_nothing_is_computed_before_a_parameter_is_loaded(make_checkpoint):
    module = load_checkpoint(make_checkpoint()[0])
    result = apply(module, [Plain(include=("q_proj",))])
    assert not Plain.seen
    name = "model.layers.0.self_attn.q_proj.weight"
    first, second = result.parameters[name].load(), result.parameters[name].load()
    assert len(Plain.seen) == 2
    assert torch.equal(first.codes, second.codes)
    assert first.encoding == result.parameters[name].encoding
    assert first.shape == result.parameters[name].shape


def test_a_failure_names_the_parameter(make_checkpoint):
    module = load_checkpoint(make_checkpoint()[0])
    result = apply(module, [Plain(answer=shaped(99, 1.0))])
    with pytest.raises(InputError, match=r"model.layers.1.mlp.up_proj.weight: pass plain returned codes"):
        result.parameters["model.layers.1.mlp.up_proj.weight"].load()


def test_matrices_already_quantized_are_left_alone(make_checkpoint):
    module = apply(load_checkpoint(make_checkpoint()[0]), [QuantizeRTN(bits=8, include=("v_proj",))])
    name = "model.layers.0.self_attn.v_proj.weight"
    assert apply(module, [QuantizeRTN(bits=4)]).parameters[name] is module.parameters[name]


def test_torch_keeps_its_threads():
    before = torch.get_num_threads()
    Plain().encode(torch.randn(2, 16))
    assert torch.get_num_threads() == before
