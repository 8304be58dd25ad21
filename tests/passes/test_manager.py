"""The pass manager on a small model: order, checks, records, and passes from a user's file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from smc.errors import InputError
from smc.frontend import load_checkpoint
from smc.ir import VerifyError, print_module
from smc.passes import Context, Convert, Pass, QuantizeRTN, Untie, apply, load_recipe, parse_pass
from smc.reference import Reference

NEAR_ZERO = '''
"""A method of a user's own."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from smc.ir import Encoding
from smc.passes import WeightQuantizer, register

LEVELS = torch.tensor([-1, -0.7, -0.5, -0.35, -0.25, -0.15, -0.08, 0, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.7, 1])


@register("near-zero")
@dataclass(frozen=True)
class NearZero(WeightQuantizer):
    """4-bit codebook, levels denser near zero."""

    group: int = 64

    def encoding(self) -> Encoding:
        return Encoding.of(bits=4, codebook=LEVELS, group=self.group, scale_dtype="f16")

    def quantize(self, groups, statistics):
        scales = groups.abs().amax(-1)
        codes = (groups / scales[..., None])[..., None].sub(LEVELS).abs().argmin(-1)
        return codes, scales
'''


@dataclass(frozen=True)
class Recorder(Pass):
    """Notes that it ran."""

    name: ClassVar[str] = "recorder"
    ran: ClassVar[list[str]] = []

    def run(self, module, context):
        self.ran.append("run")
        context.report("seen")
        return module


@pytest.fixture
def module(make_checkpoint):
    return load_checkpoint(make_checkpoint(tie_word_embeddings=True)[0])


def test_statistics_and_provenance(module):
    lines: list[str] = []
    result = apply(module, ["quantize-rtn:bits=8", Recorder(), "untie"], Context(report=lines.append))
    assert lines[0].startswith("quantize-rtn: 15 matrices to int8.g32; 32.00 → ")
    assert lines[0].endswith(" bits per weight")
    assert lines[1] == "recorder: seen"
    assert lines[2].startswith("untie: untied: lm_head.weight; ")
    assert result.facts.provenance[-3:] == (str(QuantizeRTN(bits=8)), "recorder", "untie")
    assert module.facts.provenance == result.facts.provenance[:-3]


def test_nothing_starts_when_a_later_pass_is_impossible(module):
    @dataclass(frozen=True)
    class Needy(Recorder):
        """Needs a text."""

        needs: ClassVar[frozenset[str]] = frozenset({"calibration"})

    Recorder.ran.clear()
    for chain, message in (
        ([Recorder(), "no-such-pass"], "no pass"),
        ([Recorder(), Needy()], "needs a calibration text"),
        ([Recorder(), type("Taught", (Needy,), {"needs": {"training"}})()], "needs training"),
    ):
        with pytest.raises(InputError, match=message):
            apply(module, chain)
    assert not Recorder.ran


@pytest.mark.parametrize(("module_name", "kind"), [("smc.passes.mine", VerifyError), ("mine", InputError)])
def test_a_pass_that_breaks_the_ir_is_named(module, module_name, kind):
    """Ours is a bug, a user's is not."""

    @dataclass(frozen=True)
    class Breaker(Recorder):
        """Drops a parameter that is in use."""

        def run(self, module, context):
            result = module.copy()
            result.parameters.popitem()
            return result

    Breaker.__module__ = module_name
    with pytest.raises(kind, match=r"pass recorder.*: main: call .* is not a parameter of the module"):
        apply(module, [Breaker()])


def test_a_pass_that_gives_no_module_is_named(module):
    @dataclass(frozen=True)
    class Forgetful(Recorder):
        """Forgets to return."""

        def run(self, module, context):
            return None

    with pytest.raises(InputError, match="pass recorder must return a Module, not NoneType"):
        apply(module, [Forgetful()])


def test_convert(module):
    result = apply(module, [Convert("bf16", exclude=("*.layers.0.*",))])
    for name, parameter in result.parameters.items():
        kept = len(parameter.shape) < 2 or ".layers.0." in name
        assert str(parameter.encoding) == ("f32" if kept else "bf16")
        expected = module.parameters[name].values()
        expected = expected if kept else expected.bfloat16().float()
        assert torch.equal(parameter.values(), expected)
        assert parameter.load().encoding == parameter.encoding


def test_convert_decodes_what_is_quantized(module):
    quantized = apply(module, [QuantizeRTN(bits=4)])
    result = apply(quantized, load_recipe("f32").passes)
    for name, parameter in result.parameters.items():
        assert str(parameter.encoding) == "f32"
        assert torch.equal(parameter.values(), quantized.parameters[name].values())


def test_convert_names_the_tensor_that_overflows(module):
    broken = module.copy()
    name = "model.layers.1.mlp.up_proj.weight"
    tensor = broken.parameters[name].load()
    broken.parameters[name] = replace(broken.parameters[name], load=lambda: replace(tensor, values=tensor.values + 1e6))
    with pytest.raises(InputError, match=f"{name}: .* too large for f16"):
        apply(broken, [Convert("f16")]).parameters[name].load()


def test_untie(module):
    result = apply(module, [Untie()])
    assert result.weight_count() == module.weight_count() + 96 * 48
    text = print_module(result)
    assert "embed_tokens=model.embed_tokens.weight" in text
    assert "lm_head=lm_head.weight" in text
    head, table = result.parameters["lm_head.weight"], module.parameters["model.embed_tokens.weight"]
    assert torch.equal(head.values(), table.values())
    tokens = torch.arange(20)
    assert torch.equal(Reference(result).logits(tokens), Reference(module).logits(tokens))
    mixed = apply(result, [QuantizeRTN(bits=8, include=("lm_head",))])
    assert str(mixed.parameters["lm_head.weight"].encoding) == "int8.g32"
    assert str(mixed.parameters["model.embed_tokens.weight"].encoding) == "f32"
    again = apply(result, [Untie()])
    assert print_module(again).replace("# untie\n", "") == print_module(result).replace("# untie\n", "")


def test_special_cases_first_make_mixed_precision(module):
    chain = ["quantize-rtn:bits=8,include=v_proj+model.layers.1.*", "quantize-rtn:bits=4,exclude=o_proj"]
    result = apply(module, chain)
    encodings = {name: str(p.encoding) for name, p in result.parameters.items() if len(p.shape) == 2}
    for name, encoding in encodings.items():
        if "v_proj" in name or ".layers.1." in name:
            assert encoding == "int8.g32"
        else:
            assert encoding == ("f32" if "o_proj" in name else "int4.g32")


def test_a_pattern_that_matches_nothing_is_a_slip(module):
    with pytest.raises(InputError, match="'v_porj' matches no matrix of the model: did you mean v_proj"):
        apply(module, ["quantize-rtn:include=v_porj"])


def test_a_users_file(module, tmp_path):
    file = tmp_path / "near_zero.py"
    file.write_text(NEAR_ZERO)
    result = apply(module, [f"{file}:near-zero:group=16"])
    name = "model.layers.0.mlp.down_proj.weight"
    parameter = result.parameters[name]
    assert str(parameter.encoding) == "levels16.f32.g16.weight-only"
    values = module.parameters[name].values()
    scales = values.view(48, 5, 16).abs().amax(-1, keepdim=True)
    # No level is further than 0.15 from its neighbour's middle, times the scale; f16 rounds the scale.
    assert ((parameter.values() - values).view(48, 5, 16) <= 0.151 * scales).all()
    assert torch.isfinite(Reference(result).logits(torch.arange(10))).all()
    assert parse_pass(f"{file}:near-zero") == parse_pass("near-zero")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("passes: [./near_zero.py:near-zero:group=32, {near-zero: {group: 16}}]")
    assert [step.group for step in load_recipe(recipe).passes] == [32, 16]


@pytest.mark.parametrize(
    ("text", "message"),
    [("import nothing_of_this_name", "can't be loaded: ModuleNotFound"), ("x = 1", "there is no pass 'some-pass'")],
)
def test_a_users_file_that_fails(tmp_path, text, message):
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        parse_pass(f"{file}:some-pass")


def test_a_users_file_without_the_name_of_a_pass(tmp_path):
    file = tmp_path / "empty.py"
    file.write_text("")
    with pytest.raises(InputError, match="names a file but no pass in it"):
        parse_pass(str(file))
