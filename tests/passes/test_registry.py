"""Names and options of passes: what is accepted, and what the refusals say."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

import pytest

from smc.errors import InputError
from smc.passes import (
    Convert,
    Pass,
    QuantizeRTN,
    Untie,
    load_recipe,
    parse_pass,
    recipe_names,
    register,
    registered_passes,
)
from smc.passes.options import convert


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("untie", Untie()),
        ("untie:", Untie()),
        ("convert:dtype=bf16", Convert(dtype="bf16")),
        ("convert:exclude=", Convert()),
        ("quantize-rtn:bits=8,group=row", QuantizeRTN(bits=8, group="row")),
        ("quantize-rtn:symmetric=no,include=v_proj+o_proj", QuantizeRTN(symmetric=False, include=("v_proj", "o_proj"))),
        ("quantize-rtn:symmetric=true", QuantizeRTN()),
    ],
)
def test_passes_from_text(text, expected):
    assert parse_pass(text) == expected


@pytest.mark.parametrize("step", [Untie(), Convert("f32", exclude=("a*", "b")), QuantizeRTN(group="row", bits=3)])
def test_the_text_of_a_pass_reads_back(step):
    assert parse_pass(str(step)) == step


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantise-rtn", "there is no pass 'quantise-rtn': did you mean quantize-rtn?"),
        ("xyz", "there is no pass 'xyz': use one of "),
        ("quantize-rtn:bit=4", "pass quantize-rtn has no option 'bit': did you mean bits?"),
        ("untie:bits=4", "pass untie has no option 'bits': there are none"),
        ("quantize-rtn:bits=four", "option bits of pass quantize-rtn takes a whole number, not 'four'"),
        ("quantize-rtn:bits=4.5", "option bits of pass quantize-rtn takes a whole number, not '4.5'"),
        ("quantize-rtn:group=column", "option group of pass quantize-rtn takes a whole number or row, not 'column'"),
        ("quantize-rtn:symmetric=maybe", "takes yes or no, not 'maybe'"),
        ("convert:dtype=f8", "takes f32 or f16 or bf16, not 'f8'"),
        ("quantize-rtn:bits=9", "quantize-rtn takes 2 to 8 bits, not 9"),
        ("quantize-rtn:group=24", "quantize-rtn takes groups of 16, 32, 64, 128, row, not 24"),
        ("quantize-rtn:bits", "'bits' in pass 'quantize-rtn:bits' is not of the form option=value"),
        ("quantize-rtn:bits=4,bits=5", "gives option bits twice"),
        ("a:b=c:d", "is not of the form"),
        ("./nowhere.py:a", "there is no file nowhere.py"),
    ],
)
def test_wrong_text_is_refused_in_a_sentence(text, message):
    with pytest.raises(InputError) as caught:
        parse_pass(text)
    assert message in str(caught.value)


def test_every_registered_pass_explains_itself():
    for name, cls in registered_passes().items():
        assert cls.name == name
        assert cls.__doc__
        for option in fields(cls) if cls.__module__.startswith("smc.") else ():
            assert option.name in cls.__doc__, f"{name} does not explain its option {option.name}"


def test_registering_refuses_what_is_no_pass():
    with pytest.raises(InputError, match="kebab-case"):
        register("Bad_Name")(Untie)
    with pytest.raises(InputError, match="two passes named untie"):
        register("untie")(Untie)
    with pytest.raises(InputError, match="must be a Pass"):
        register("no-pass")(int)

    @dataclass(frozen=True)
    class Silent(Pass):
        def run(self, module, context):
            return module

    with pytest.raises(InputError, match="no docstring"):
        register("silent")(Silent)


def test_options_of_every_type():
    assert convert("3", int) == 3
    assert convert("3", float) == 3.0
    assert convert(3, float) == 3.0
    assert convert("none", int | None) is None
    assert convert("8", Literal[4, 8]) == 8
    assert convert(["a"], tuple[str, ...]) == ("a",)
    for value, hint in ((True, int), (1.5, int), (None, str), ("x", float), ({}, tuple[str, ...])):
        with pytest.raises(ValueError):  # noqa: PT011 - the caller words the message
            convert(value, hint)


def test_recipes_that_come_with_smc():
    names = {"f32", "f16", "bf16", "int8", "int4", "int4-plain", "int3", "int2", "ternary", "nf4"}
    names |= {"int4-codebook", "q5", "q4", "q3"}
    assert names == set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description.endswith(".")
        assert recipe.passes
    assert load_recipe("int4-plain").passes == (QuantizeRTN(bits=4, group=32, activation_group=128),)


def test_recipe_from_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    options = "{bits: 8, symmetric: no, include: [q_proj]}"
    file.write_text(f"passes:\n  - untie\n  - convert:dtype=f32\n  - quantize-rtn: {options}\n")
    recipe = load_recipe(file)
    assert recipe.name == "mine"
    assert recipe.passes == (Untie(), Convert("f32"), QuantizeRTN(bits=8, symmetric=False, include=("q_proj",)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("passes: 3", "must have a list named passes"),
        ("[1, 2", "is not YAML"),
        ("passes: []\nother: 1", "unknown key 'other'"),
        ("passes: [4]", "is written name or name: {option: value}, not 4"),
        ("passes: [{untie: {}, convert: {}}]", "is written name"),
        ("passes: [{quantize-rtn: {bits: [4]}}]", "takes a whole number, not [4]"),
        ("passes: [{quantize-rtm: {bits: 4}}]", "did you mean quantize-rtn?"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path, text, message):
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        load_recipe(file)
    assert message in str(caught.value)


def test_unknown_recipes_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no recipe 'int5': did you mean int"):
        load_recipe("int5")
    with pytest.raises(InputError, match="there is no recipe file"):
        load_recipe(tmp_path / "none.yaml")


def test_an_option_without_default_is_demanded():
    @register("test-demanding")
    @dataclass(frozen=True)
    class Demanding(Pass):
        """A test's pass."""

        amount: int = field()

        def run(self, module, context):
            return module

    try:
        with pytest.raises(InputError, match="test-demanding needs its option amount: a whole number"):
            parse_pass("test-demanding")
        assert parse_pass("test-demanding:amount=3") == Demanding(3)
    finally:
        from smc.passes import registry

        del registry._registered["test-demanding"]
