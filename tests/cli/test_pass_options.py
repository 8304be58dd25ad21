"""The passes that a command line names, in which order they run, and which contradict each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import smc
from smc.cli import main
from smc.cli.pass_options import read_requests, run_requests
from smc.errors import InputError
from smc.passes import load_recipe

MakeCheckpoint = Callable[..., tuple[Path, Any]]


def names(*arguments: Any) -> list[str]:
    return [step.name for request in read_requests(*arguments) for step in request.passes]


def test_without_a_choice_the_recipe_is_int4() -> None:
    (request,) = read_requests((), None, None)
    assert request.passes == load_recipe("int4").passes


def test_passes_come_before_the_recipe() -> None:
    assert names(("untie",), "int8", None) == ["untie", *(step.name for step in load_recipe("int8").passes)]


def test_passes_alone_add_no_recipe() -> None:
    assert names(("untie",), None, None) == ["untie"]


@pytest.mark.parametrize(
    ("passes", "quant"),
    [
        (["quantize-rtn:bits=4"], "int8"),
        (["untie", "quantize-rtn:bits=4"], "int8"),
        (["quantize-rtn:bits=4", "quantize-rtn:bits=8"], None),
        (["quantize-rtn:bits=4", "quantize-nf4"], None),
    ],
)
def test_contradictions(make_checkpoint: MakeCheckpoint, passes: list[str], quant: str | None) -> None:
    folder, _ = make_checkpoint()
    last = f"--quant {quant}" if quant else f"-p {passes[-1]}"
    with pytest.raises(InputError, match=f"^{last} contradicts -p .*quantize-rtn:bits=4, which leaves no matrix to it"):
        run_requests(smc.load_checkpoint(folder), read_requests(passes, quant, None))


@pytest.mark.parametrize(
    ("passes", "quant", "bits"),
    [
        (["quantize-rtn:bits=8,include=v_proj"], "int4-plain", {4, 8}),
        (["quantize-rtn:bits=8,exclude=v_proj", "quantize-rtn:bits=4"], None, {4, 8}),
        (["convert:dtype=f16"], "f16", {16}),  # says the same twice
        (["untie"], "int8", {8}),
        (["convert:dtype=f16", "quantize-rtn:bits=4"], None, {4}),
    ],
)
def test_what_goes_together(
    make_checkpoint: MakeCheckpoint, passes: list[str], quant: str | None, bits: set[int]
) -> None:
    folder, _ = make_checkpoint()
    module = run_requests(smc.load_checkpoint(folder), read_requests(passes, quant, None))
    assert {p.encoding.bits for p in module.parameters.values() if len(p.shape) > 1} == bits


def test_a_contradiction_is_one_sentence(make_checkpoint: MakeCheckpoint, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = make_checkpoint()
    capsys.readouterr()
    for command in (["compile", "-o", str(folder.parent / "out.smc")], ["tune"]):
        assert main.run([*command, str(folder), "-p", "quantize-rtn:bits=4", "--quant", "int8", "-q"]) == 2
        message = capsys.readouterr().err
        assert "--quant int8 contradicts -p quantize-rtn:bits=4" in message and message.count("\n") == 1
