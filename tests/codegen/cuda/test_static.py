"""Static checks of machine code: a program in SmolLM2's shape passes them, and what is wrong is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from smc.cli.bench import bench
from smc.codegen.cuda import static
from smc.codegen.cuda.static import FunctionFacts, LevelFacts, StaticFacts
from smc.errors import InputError

Make = Callable[..., tuple[Path, Any]]
SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}


def test_a_program_without_faults(make_checkpoint: Make) -> None:
    folder, _ = make_checkpoint(num_hidden_layers=1, **SMOLLM2)
    result = CliRunner().invoke(bench, [str(folder), "--target", "cuda-sm_80", "--static", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    [level] = report["levels"]
    assert report["faults"] == [] and level["spill_bytes"] == 0
    assert 32 < level["registers"] <= 128 and level["blocks_per_multiprocessor"] >= 2
    assert 1.0 <= report["token_bytes"] / report["least_bytes"] <= 1.1
    assert {"smc_run", "kernel_merge_h9_kv3_d64"} <= {function["name"] for function in level["functions"]}


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = FunctionFacts("smc_multiply_integers E_int4_g32 1", "", spill_bytes=8, others=2)
    facts = StaticFacts(1024, 130, 100, [LevelFacts("sm_90", 255, 1, 9, [slow])], frozenset({"E_int4_g32"}))
    assert [fault.split(":")[-1].strip() for fault in facts.faults()] == [
        "a token moves 1.30 times the bytes that it must",
        "a thread has 255 registers",
        "a multiprocessor holds 1 block of threads",
        "8 bytes of registers go to memory",
        "2 loads of less than 16 bytes through the read-only cache",
        "weights are not loaded by 16 bytes",
    ]
    facts.levels[0].looked = False
    assert static.NO_DISASSEMBLER in facts.table()


SASS = """
        .type           $smc_run$_ZN1_9_program_cu_smc_run8kernel_aEPKf,@function
        /*0010*/ LDG.E.128.CONSTANT R4, desc[UR8][R2.64] ;
        /*0020*/ LDG.E.U16.CONSTANT R5, desc[UR8][R2.64] ;
        .type           $smc_run$_ZN1_9_program_cu_smc_run8kernel_bEPKf,@function
        /*0010*/ LDC.64 R2, c[0x4][0x8] ;
        /*0020*/ LDG.E.CONSTANT R5, desc[UR8][R2.64] ;
"""


def test_loads_are_counted_function_by_function() -> None:
    """A load from a table of the program's is no fault."""
    a, b = (FunctionFacts(name, f"_ZN1_9_program_cu_smc_run8{name}EPKf") for name in ("kernel_a", "kernel_b"))
    static._count_loads(SASS, {a.symbol: a, b.symbol: b})
    assert (a.weights, a.others, b.weights, b.others) == (1, 1, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--static", "--target", "native"], "--static is for targets with a GPU, such as cuda; native is none"),
        (["--target", "cuda"], "--target is what --static looks at: give both"),
    ],
)
def test_bad_input(make_checkpoint: Make, arguments: list[str], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        CliRunner().invoke(bench, [str(make_checkpoint()[0]), *arguments], catch_exceptions=False)
