"""Lazy views of a checkpoint's tensors, which fill slots of the ir."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from smc.errors import InputError
from smc.frontend.checkpoint import Checkpoint, Coded, StoredTensor
from smc.ir import F32, EncodedTensor, Parameter

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Transform:
    """A one-to-one change of a whole tensor. kind: its name, for formats that store tensors already changed
    (`Checkpoint.applied`).

    undo: from the result to what is stored. shape: that of the result, from the stored one. exact: the result fits the
    dtype it came in. moves_rows: it puts rows in another order and does nothing else, so that it can be done to codes.
    """

    kind: str
    apply: Callable[[Tensor], Tensor]
    undo: Callable[[Tensor], Tensor]
    shape: Callable[[Shape], Shape] = lambda shape: shape
    exact: bool = True
    moves_rows: bool = False


ONE_PLUS = Transform("one_plus", lambda values: values.float() + 1, lambda values: values.float() - 1, exact=False)
"""1 + w, for norms that store their weights minus 1."""



def _turned(values: Tensor) -> Tensor:
    return values.mT if values.dim() > 1 else values


TRANSPOSE = Transform("transpose", _turned, _turned, lambda shape: shape[::-1])
"""A matrix stored as [columns, rows]; a vector stays as it is."""


def scaled(factor: float) -> Transform:
    """Every value times a number."""
    return Transform(
        "scaled", lambda values: values.float() * factor, lambda values: values.float() / factor, exact=False
    )


def reordered(kind: str, order: Callable[[Tensor], Tensor]) -> Transform:
    """The same rows in another order."""

    def undo(values: Tensor) -> Tensor:
        import torch

        result = torch.empty_like(values)
        result[order(torch.arange(len(values)))] = values
        return result

    return Transform(kind, order, undo, moves_rows=True)


@dataclass(frozen=True)
class Source:
    """A view of one tensor of the checkpoint: transformed, then some of its rows or columns.

    name: the tensor's. rows, columns: a range of the transformed tensor, None for all of them.
    """

    name: str
    rows: range | None = None
    columns: range | None = None
    transform: Transform | None = None

    def parameter(self, checkpoint: Checkpoint, shape: Shape) -> Parameter:
        """The ir's parameter of this shape; InputError if the tensor is missing or of another shape."""
        stored = self._stored(checkpoint, shape)
        transform = self._pending(checkpoint)
        whole = self.whole(checkpoint)
        if not self._fits(whole, shape):
            wanted = shape if self.rows is None else (f"{self.rows.stop} or more", *shape[1:])
            raise InputError(f"{stored.origin}: tensor {self.name} has shape {list(whole)}, expected {list(wanted)}")
        if transform is None and self.rows is None and self.columns is None:
            return stored.parameter()
        if stored.coded is not None and self.columns is None and (transform is None or transform.moves_rows):
            coded = rows_of(stored.coded, self.rows, transform.apply if transform else None)
            return replace(stored, name=str(self), shape=shape, coded=coded).parameter()

        def read() -> Tensor:
            values = transform.apply(stored.values()) if transform else stored.values()
            values = values if self.rows is None else values[self.rows.start : self.rows.stop]
            values = values if self.columns is None else values[..., self.columns.start : self.columns.stop]
            return values.contiguous()

        encoding = stored.encoding if transform is None or transform.exact else F32
        return replace(stored, name=str(self), shape=shape, encoding=encoding, read=read, coded=None).parameter()

    def _stored(self, checkpoint: Checkpoint, shape: Shape) -> StoredTensor:
        stored = checkpoint.tensors.get(self.name)
        if stored is None:
            raise InputError(
                f"{checkpoint.config.origin}: the checkpoint lacks the tensor {self.name}, of shape {list(shape)}"
            )
        return stored

    def _pending(self, checkpoint: Checkpoint) -> Transform | None:
        """The transform, unless the format stores the tensor already changed."""
        return None if self.transform is None or self.transform.kind in checkpoint.applied else self.transform

    def _fits(self, whole: Shape, shape: Shape) -> bool:
        """Whether the view of a transformed tensor has this shape."""
        if len(whole) != len(shape):
            return False
        rows, columns = self.area(whole)
        seen = (len(rows), *whole[1:-1], len(columns)) if len(whole) > 1 else (len(rows),)
        return seen == shape and rows.stop <= whole[0] and columns.stop <= (whole[-1] if len(whole) > 1 else 1)

    def whole(self, checkpoint: Checkpoint) -> Shape:
        """The shape of the whole tensor, transformed."""
        transform, shape = self._pending(checkpoint), checkpoint.tensors[self.name].shape
        return transform.shape(shape) if transform else shape

    def area(self, shape: Shape) -> tuple[range, range]:
        """The rows and columns of a tensor of this shape that the view shows; a vector is one column."""
        columns = range(shape[-1] if len(shape) > 1 else 1)
        return self.rows or range(shape[0]), self.columns or columns

    def __str__(self) -> str:
        """The tensor's name, and the range if the view shows only a part."""
        if self.rows is None and self.columns is None:
            return self.name
        ranges = [f"{r.start}:{r.stop}" if r else ":" for r in (self.rows, self.columns)]
        return f"{self.name}[{', '.join(ranges if self.columns else ranges[:1])}]"


def rows_of(coded: Coded, rows: range | None, order: Callable[[Tensor], Tensor] | None = None) -> Coded:
    """A matrix of codes with its rows in another order, then some of them."""

    def picked(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        ordered = values if order is None else order(values)
        return (ordered if rows is None else ordered[rows.start : rows.stop]).contiguous()

    def load() -> EncodedTensor:
        data = coded.load()
        codes = picked(data.codes)
        assert codes is not None
        return replace(
            data,
            shape=(len(codes), data.shape[1]),
            codes=codes,
            scales=data.scales if coded.encoding.scales.group == "tensor" else picked(data.scales),
            scale_codes=picked(data.scale_codes),
            zeros=picked(data.zeros),
            offsets=picked(data.offsets),
            offset_codes=picked(data.offset_codes),
        )

    return Coded(coded.encoding, load)


def check_leftovers(checkpoint: Checkpoint, sources: Iterable[Source], unused: Callable[[str], bool]) -> None:
    """InputError if an element of a tensor has no place in the model, or two.

    One view may fill several slots (a tied head); different views of one tensor must cover it without overlapping.
    unused: tensors that need no place.
    """
    views: dict[str, set[tuple[range, range]]] = {}
    shapes: dict[str, Shape] = {}
    for source in sources:
        views.setdefault(source.name, set()).add(source.area(source.whole(checkpoint)))
        shapes[source.name] = source.whole(checkpoint)
    extra = [name for name in checkpoint.tensors if name not in views and not unused(name)]
    if extra:
        others = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
        raise InputError(
            f"{checkpoint.tensors[extra[0]].origin}: the model has no place for the tensor {extra[0]}{others}, "
            f"so config.json and weights do not belong together"
        )
    for name, areas in views.items():
        _check_cover(checkpoint.tensors[name], shapes[name], areas)


def _check_cover(stored: StoredTensor, shape: Shape, areas: set[tuple[range, range]]) -> None:
    for (rows, columns), (other_rows, other_columns) in itertools.combinations(areas, 2):
        if _overlap(rows, other_rows) and _overlap(columns, other_columns):
            raise InputError(f"{stored.origin}: parts of the tensor {stored.name} would be used twice")
    whole = shape[0] * (shape[-1] if len(shape) > 1 else 1)
    used = sum(len(rows) * len(columns) for rows, columns in areas)
    if used != whole:
        raise InputError(
            f"{stored.origin}: the model has a place for {used:,} of {whole:,} weights of the tensor {stored.name}, "
            f"so config.json and weights do not belong together"
        )


def _overlap(a: range, b: range) -> bool:
    return a.start < b.stop and b.start < a.stop
