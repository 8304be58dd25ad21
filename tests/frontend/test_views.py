"""Views of a checkpoint's tensors: parts, transforms, and weights that have no place or two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from smc.errors import InputError
from smc.frontend.architectures.views import ONE_PLUS, TRANSPOSE, Source, check_leftovers, reordered, scaled
from smc.frontend.checkpoint import Checkpoint, StoredTensor
from smc.frontend.config import Config
from smc.ir import BF16, F32

VALUES = torch.arange(24.0).view(6, 4).bfloat16()


def checkpoint(applied: frozenset[str] = frozenset(), **tensors: torch.Tensor) -> Checkpoint:
    stored = {
        name: StoredTensor(name, tuple(values.shape), BF16, lambda values=values: values, "file")
        for name, values in tensors.items()
    }
    return Checkpoint("test", "none", Config({}, "config.json"), stored, applied=applied)


def read(source: Source, *shape: int, **facts: Any) -> torch.Tensor:
    return source.parameter(checkpoint(m=VALUES, **facts), shape).values()


def test_parts() -> None:
    assert torch.equal(read(Source("m"), 6, 4), VALUES.float())
    assert torch.equal(read(Source("m", range(2, 5)), 3, 4), VALUES.float()[2:5])
    assert torch.equal(read(Source("m", None, range(1, 3)), 6, 2), VALUES.float()[:, 1:3])
    assert str(Source("m", range(2, 5))) == "m[2:5]"
    assert str(Source("m", None, range(1, 3))) == "m[:, 1:3]"


def test_transforms_come_before_parts() -> None:
    assert torch.equal(read(Source("m", range(1, 3), None, TRANSPOSE), 2, 6), VALUES.float().T[1:3])
    turned = reordered("turned", lambda rows: rows.flip(0))
    assert torch.equal(read(Source("m", range(2), None, turned), 2, 4), VALUES.float().flip(0)[:2])


def test_dtypes_are_kept_where_values_are() -> None:
    for transform, encoding in ((None, BF16), (TRANSPOSE, BF16), (ONE_PLUS, F32), (scaled(0.3), F32)):
        shape = (4, 6) if transform is TRANSPOSE else (6, 4)
        assert Source("m", transform=transform).parameter(checkpoint(m=VALUES), shape).encoding == encoding
    assert torch.equal(read(Source("m", transform=ONE_PLUS), 6, 4), VALUES.float() + 1)
    assert torch.equal(read(Source("m", transform=scaled(0.3)), 6, 4), VALUES.float() * 0.3)


def test_what_the_format_has_applied_is_not_applied_again() -> None:
    applied = frozenset({ONE_PLUS.kind})
    assert torch.equal(read(Source("m", transform=ONE_PLUS), 6, 4, applied=applied), VALUES.float())


@pytest.mark.parametrize(
    ("source", "shape", "message"),
    [
        (Source("n"), (6, 4), "lacks the tensor n, of shape [6, 4]"),
        (Source("m"), (4, 6), "tensor m has shape [6, 4], expected [4, 6]"),
        (Source("m", range(4, 8)), (4, 4), "tensor m has shape [6, 4], expected ['8 or more', 4]"),
        (Source("m", range(4)), (4, 5), "tensor m has shape [6, 4], expected"),
        (Source("m"), (24,), "tensor m has shape [6, 4], expected [24]"),
    ],
)
def test_what_does_not_fit(source: Source, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        source.parameter(checkpoint(m=VALUES), shape)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([Source("m"), Source("m")], None),
        ([Source("m", range(2)), Source("m", range(2, 6))], None),
        ([Source("m", None, range(3)), Source("m", None, range(3, 4))], None),
        ([], "no place for the tensor m, so config.json"),
        ([Source("m", range(2)), Source("m", range(3, 6))], "a place for 20 of 24 weights of the tensor m"),
        ([Source("m", range(4)), Source("m", range(3, 6))], "parts of the tensor m would be used twice"),
        ([Source("m"), Source("m", range(3))], "parts of the tensor m would be used twice"),
    ],
)
def test_every_weight_has_one_place(sources: Sequence[Source], message: str | None) -> None:
    stored = checkpoint(m=VALUES)
    if message is None:
        check_leftovers(stored, sources, lambda name: False)
        return
    with pytest.raises(InputError) as caught:
        check_leftovers(stored, sources, lambda name: False)
    assert message in str(caught.value)
    if not sources:
        check_leftovers(stored, sources, lambda name: name == "m")
