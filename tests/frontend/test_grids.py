"""Float checkpoints on a low-bit grid are packed without loss, and the user is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from smc.cli import main
from smc.frontend import load_checkpoint
from smc.frontend.grids import encode, grid_of

Make = Callable[..., tuple[Path, Any]]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}


def grid(rows: int, columns: int, group: int, codes: range, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """float [rows, columns]: whole numbers times a scale per group, of a dtype in which the products are exact."""
    rng = np.random.default_rng(seed)
    whole = rng.integers(codes.start, codes.stop, (rows, columns // group, group))
    scales = torch.from_numpy(rng.uniform(0.01, 0.1, (rows, columns // group, 1))).half().float()
    return (torch.from_numpy(whole) * scales).reshape(rows, columns).to(dtype)


@pytest.mark.parametrize(
    ("columns", "group", "codes", "encoding"),
    [
        (160, 160, range(-1, 2), "base3.row"),
        (256, 128, range(-1, 2), "base3.g128"),
        (512, 256, range(-1, 2), "base3.g256"),
        (96, 32, range(-1, 2), "base3.g32"),
        (96, 32, range(-8, 8), "int4.g32"),
        (128, 64, range(-7, 8), "int4.g64"),
        (77, 77, range(-3, 4), "int4.row"),
    ],
)
def test_grids_are_recognised(columns: int, group: int, codes: range, encoding: str) -> None:
    values = grid(40, columns, group, codes)
    values[3] = 0
    found = grid_of(values)
    assert str(found) == encoding
    tensor = encode(values, found)
    assert tensor.decode().equal(values)
    assert int(tensor.codes.max()) < (3 if "base3" in encoding else 16)


def test_floats_lie_on_none() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert grid_of(torch.randn(64, 96, generator=generator).to(dtype)) is None
    assert grid_of(torch.zeros(64, 96)) is None
    assert grid_of(grid(40, 96, 32, range(-9, 10))) is None


def on_a_grid(folder: Path, seed: int, **shards: int) -> dict[str, torch.Tensor]:
    """As TriLM leaves it: every matrix of a layer ternary, with a scale for each of `shards` parts."""
    tensors = load_file(folder / "model.safetensors")
    for name in (n for n in tensors if n.endswith("_proj.weight")):
        rows, columns = tensors[name].shape
        rng = np.random.default_rng(seed := seed + 1)
        signs = torch.from_numpy(rng.integers(-1, 2, (rows, columns)).astype(np.float32))
        # Of outputs the rows are cut, of o and down the columns.
        by_columns = name.split(".")[-2] in ("o_proj", "down_proj")
        parts = signs.chunk(2, dim=1 if by_columns else 0)
        scaled = [part * float(np.float16(rng.uniform(0.02, 0.1))) for part in parts]
        tensors[name] = torch.cat(scaled, dim=1 if by_columns else 0).half()
    save_file(tensors, folder / "model.safetensors")
    return tensors


@pytest.mark.slow
def test_trilm_keeps_the_scales_of_its_shards(
    make_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = make_checkpoint("Llama", **{**SIZES, "intermediate_size": 128})
    expected = on_a_grid(folder, 1)
    module = load_checkpoint(folder)
    for name, values in expected.items():
        parameter = module.parameters[name]
        assert parameter.values().equal(values.float()), name
        if name.endswith("_proj.weight"):
            sides = {"o_proj": "base3.g32", "down_proj": "base3.g64"}
            assert str(parameter.encoding) == sides.get(name.split(".")[-2], "base3.row")
    assert main.run(["compile", str(folder), "-o", str(tmp_path / "out.smc")]) == 0
    said = capsys.readouterr().out
    assert (
        "kept the checkpoint's codes (14 matrices of floats packed without loss (base3.g32, base3.g64, base3.row))"
        in said
    )


def test_other_floats_are_left_alone(make_checkpoint: Make) -> None:
    folder, _ = make_checkpoint("Llama", **SIZES)
    assert all(p.encoding.is_float for p in load_checkpoint(folder).parameters.values())
