"""Calibrated quantization: which statistics a method gets, behind which weights, when, and in how much memory."""

from __future__ import annotations

import gc
import tempfile
import weakref
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from smc.errors import InputError
from smc.frontend import load_checkpoint
from smc.ir import Encoding
from smc.passes import Context, QuantizeGPTQ, WeightQuantizer, apply
from smc.reference import CalibrationText

LAYER = "model.layers.{}."


@dataclass(frozen=True)
class Watcher(WeightQuantizer):
    """Rounds to nearest and keeps the statistics that it is given, by the number of the matrix."""

    name: ClassVar[str] = "watcher"
    statistics: ClassVar[frozenset[str]] = frozenset({"second-moments", "maxima", "means"})
    seen: ClassVar[list] = []
    group: int = 16

    def encoding(self):
        return Encoding.of(bits=4, group=self.group, activation="none")

    def quantize(self, groups, statistics):
        self.seen.append(statistics)
        scales = self.round_scales(groups.abs().amax(-1) / 7)
        return (groups / scales[..., None]).round() + 8, scales


@pytest.fixture(autouse=True)
def _forget():
    Watcher.seen.clear()


def windows(count=3, length=50, vocabulary=96):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, vocabulary, (length,), generator=generator) for _ in range(count)]


def context(**options):
    return Context(calibration=CalibrationText(windows()), **options)


def read_inputs(model, tokens):
    """What the matrices of a transformers model are multiplied with: name → [tokens, columns]."""
    found = {}
    handles = [
        part.register_forward_pre_hook(
            lambda _, args, name=name: found.setdefault(name, []).append(args[0].flatten(0, -2))
        )
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear)
    ]
    with torch.no_grad():
        for window in tokens:
            model(window[None])
    for handle in handles:
        handle.remove()
    return {f"{name}.weight": torch.cat(parts) for name, parts in found.items()}


def test_statistics_are_those_of_transformers_behind_quantized_layers(make_checkpoint):
    folder, model = make_checkpoint()
    module = load_checkpoint(folder)
    result = apply(module, [Watcher()], context())
    names = [name for call, _ in module.calls() for name in call.attributes["parameters"].values()]
    matrices = [name for name in names if len(module.parameters[name].shape) == 2]
    assert len(Watcher.seen) == len(matrices) == 16
    seen = dict(zip(matrices, Watcher.seen, strict=True))
    weights = dict(model.named_parameters())

    def is_as_in(name, inputs):
        own = seen[name].inputs
        x = inputs[name]
        assert own.tokens == len(x) == 150
        torch.testing.assert_close(own.second_moments, x.T @ x / len(x), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(own.maxima, x.abs().amax(0), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(own.means, x.mean(0), atol=1e-4, rtol=1e-3)

    def quantize(names):
        for name in names:
            weights[name].data.copy_(result.parameters[name].values())

    assert seen["model.embed_tokens.weight"].inputs is None  # nothing is multiplied with it
    quantize(["model.embed_tokens.weight"])
    for layer in range(2):
        inputs = read_inputs(model, windows())
        here = [name for name in matrices if name.startswith(LAYER.format(layer))]
        assert len(here) == 7
        for name in here:
            is_as_in(name, inputs)
        q, k, v = (seen[f"{LAYER.format(layer)}self_attn.{name}_proj.weight"].inputs for name in "qkv")
        assert q is k is v  # read once, and factored once
        quantize(here)
    is_as_in("lm_head.weight", read_inputs(model, windows()))


def test_a_tied_head_is_rounded_with_what_it_is_multiplied_with(make_checkpoint):
    module = load_checkpoint(make_checkpoint(tie_word_embeddings=True)[0])
    apply(module, [Watcher(include=("head",))], context())
    assert [statistics.inputs.maxima.shape for statistics in Watcher.seen] == [(48,)]


def test_gptq_behind_special_cases_is_deterministic(make_checkpoint):
    module = load_checkpoint(make_checkpoint()[0])
    chain = ["quantize-rtn:bits=8,include=value", QuantizeGPTQ(bits=4, group=16)]
    first, second = (apply(module, chain, context()) for _ in range(2))
    text = {name: str(p.encoding) for name, p in first.parameters.items() if len(p.shape) == 2}
    assert Counter(text.values()) == {"int8.g32": 2, "int4.g16": 14}
    for name, parameter in first.parameters.items():
        assert torch.equal(parameter.values(), second.parameters[name].values())
    assert [parameter.encoding for parameter in first.parameters.values()] == [
        parameter.load().encoding for parameter in first.parameters.values()
    ]


def test_other_texts_give_other_weights(make_checkpoint):
    module = load_checkpoint(make_checkpoint()[0])
    one, other = (
        apply(module, [QuantizeGPTQ(bits=3)], Context(calibration=CalibrationText(windows()[part])))
        for part in (slice(1), slice(1, 3))
    )
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(one.parameters[name].load().codes, other.parameters[name].load().codes)


def test_lazily_it_waits_for_the_first_load_and_runs_once(make_checkpoint):
    module = load_checkpoint(make_checkpoint()[0])
    result = apply(module, [Watcher()], context(lazy=True))
    assert not Watcher.seen
    for name in ("model.layers.1.mlp.up_proj.weight", "lm_head.weight"):
        assert result.parameters[name].load().encoding == result.parameters[name].encoding
        assert len(Watcher.seen) == 16


def test_a_text_is_needed_before_anything_starts_or_when_lazy_at_the_first_load(make_checkpoint):
    module = load_checkpoint(make_checkpoint()[0])
    with pytest.raises(InputError, match="pass watcher needs a calibration text: give one with --calib FILE"):
        apply(module, [Watcher()])
    result = apply(module, [Watcher()], Context(lazy=True))
    assert str(result.parameters["lm_head.weight"].encoding) == "int4.g16.weight-only"
    with pytest.raises(InputError, match="pass watcher needs a calibration text"):
        result.parameters["lm_head.weight"].load()


def test_nothing_runs_where_nothing_is_left(make_checkpoint):
    module = apply(load_checkpoint(make_checkpoint()[0]), ["quantize-rtn"])
    apply(module, [Watcher()], context())
    assert not Watcher.seen


def test_the_files_between_go_with_the_module_and_after_a_failure(make_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "between"))
    (tmp_path / "between").mkdir()
    module = load_checkpoint(make_checkpoint()[0])
    result = apply(module, [Watcher()], context())
    assert len(list((tmp_path / "between").glob("*/*"))) == 16
    del result
    gc.collect()
    assert not list((tmp_path / "between").iterdir())

    def broken(self, groups, statistics):
        raise InputError("it can't be done")

    monkeypatch.setattr(Watcher, "quantize", broken)
    with pytest.raises(InputError, match=r"^model.embed_tokens.weight: it can't be done$"):
        apply(module, [Watcher()], context())
    assert not list((tmp_path / "between").iterdir())


def test_inputs_that_are_not_finite_are_told(make_checkpoint):
    folder, model = make_checkpoint()
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight.fill_(3e38)
    model.save_pretrained(folder)
    with pytest.raises(InputError, match=r"the inputs of .* are not finite on the calibration text"):
        apply(load_checkpoint(folder), [Watcher()], context())


def test_progress_grows_to_one(make_checkpoint):
    module = load_checkpoint(make_checkpoint()[0])
    told: list[float] = []
    apply(module, ["untie", Watcher()], context(progress=told.append))
    assert told == sorted(told)
    assert len(told) > 3
    assert told[-1] == 1


@dataclass(frozen=True)
class Forgetful(Watcher):
    """Keeps nothing."""

    def quantize(self, groups, statistics):
        result = super().quantize(groups, statistics)
        self.seen.clear()
        return result


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made under it held at a time."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage):
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known.add(storage)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, size)

    def _free(self, size):
        self.live -= size


def test_the_peak_of_memory_does_not_grow_with_depth(make_checkpoint, tmp_path: Path):
    """A layer has 1 MB of weights, and second moments of 1.2 MB."""
    peaks = []
    for layers in (2, 4):
        folder, _ = make_checkpoint(hidden_size=128, intermediate_size=512, num_hidden_layers=layers)
        module = load_checkpoint(folder)
        gc.collect()
        with LiveBytes() as counter:
            apply(module, [Forgetful()], context())
        peaks.append(counter.peak)
    assert peaks[0] > 1 << 20
    assert peaks[1] <= peaks[0] * 1.01
