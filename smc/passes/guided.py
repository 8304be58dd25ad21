"""Rounds weights under a budget of bits: finds what each width would cost, chooses a width per matrix, and rounds."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from smc.errors import InputError
from smc.ir import EncodedTensor, Encoding, Module, Parameter, matrix_shape, rotate
from smc.passes.allocation import Choice, allocate
from smc.passes.base import Context
from smc.passes.drift import Drift
from smc.passes.experts import refuse_experts
from smc.passes.files import read_tensors, write_tensors
from smc.passes.guidance import Guidance, MatrixGuidance
from smc.passes.menu import stored_as
from smc.passes.products import coarse_products
from smc.passes.rounding import Metric, round_matrix

if TYPE_CHECKING:
    from torch import Tensor

    from smc.passes.quantize_guided import QuantizeGuided

Result = TypeVar("Result")

VERSION = 2
"""Of what a work folder holds: it grows when the files become others, so that nothing old is taken for new."""

SAMPLED_ROWS = 64
"""Rows of a matrix that are rounded to estimate the cost of a width."""

MOST_MEASURED = 5
"""The widest code whose cost is estimated by rounding; for wider ones every additional bit halves the error."""

STAGES = {"guidance": 0.3, "costs": 0.05, "rounding": 0.65}
"""The approximate share of the time that each stage takes."""

SEQUENTIAL_PASSES = 30
"""Running every layer again after the rounded ones takes about as long as so many operations per weight and token."""

SECONDS_PER_WEIGHT = 1.5e-6
"""How long rounding takes per weight and thread, about."""


class GuidedWeights:
    """The parameters of a module that `quantize-guided` rounds. The context's work folder keeps the results: an
    interrupted run, or one with another budget, continues from there."""

    def __init__(
        self,
        method: QuantizeGuided,
        module: Module,
        parameters: Sequence[Parameter],
        rotated: set[str],
        context: Context,
    ) -> None:
        """Nothing is computed yet. rotated: names of those whose stored columns are rotated."""
        if context.calibration is None:
            raise InputError(f"pass {method.name} needs a calibration text")
        refuse_experts(module, method.name)
        self._method, self._module, self._context = method, module, context
        self._parameters, self._rotated = {p.name: p for p in parameters}, rotated
        self._calibration = context.calibration
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._folder = self._make_folder()
        self._guidance = Guidance(module, list(self._parameters), context.calibration, self._folder, context.seed)
        self._encodings: dict[str, Encoding] = {}
        self._lock = threading.Lock()
        self.expected = 0.0
        self.costs: dict[str, dict[int, float]] = {}

    def choose(self) -> dict[str, Encoding]:
        """The encoding of every parameter. InputError if the budget is too small."""
        fixed = sum(
            p.encoding.stored_bits(p.shape) for n, p in self._module.parameters.items() if n not in self._parameters
        )
        weights, names = self._module.weight_count(), list(self._parameters)
        options = {name: self._options(name) for name in names}
        least = fixed + sum(min(e.stored_bits(self._parameters[n].shape) for e in options[n]) for n in names)
        if least > self._method.bits * weights:
            raise InputError(
                f"{self._method.bits:g} bits per weight are too few: with widths of "
                f"{', '.join(map(str, sorted(self._method.widths)))} bits give at least {least / weights:.3f}"
            )
        if not self._guidance.is_complete:
            self._context.note(f"{self._method.name}: {self._estimate()}")
        with coarse_products():
            self._guidance.gather(self._stage("guidance"))
        costs = self._costs()
        self.costs = {name: {e.bits: costs[name][str(e.bits)] for e in options[name]} for name in names}
        items = [
            [Choice(e.stored_bits(self._parameters[name].shape), self.costs[name][e.bits]) for e in options[name]]
            for name in names
        ]
        chosen = allocate(items, int(self._method.bits * weights) - fixed)
        self._encodings = {name: options[name][index] for name, index in zip(names, chosen, strict=True)}
        self.expected = sum(items[i][index].loss for i, index in enumerate(chosen))
        return self._encodings

    def run(self) -> None:
        """Round all parameters that are not rounded yet."""
        with self._lock:
            missing = [name for name in self._parameters if not self._rounded(name).is_file()]
            if self._method.sequential and missing:
                self._run_in_sequence()
            else:
                for name, _ in zip(missing, _side_by_side(self._round, missing), strict=True):
                    self._tell(missing, name)
            self._context.progress(1.0)

    def _run_in_sequence(self) -> None:
        """Round call after call, towards weights that compensate for the drift of the inputs so far."""
        quantized, names = self._module.copy(), list(self._parameters)
        drift = Drift(self._module, quantized, self._guidance, self._calibration)
        done: set[str] = set()
        for call, _ in self._module.calls():
            bound = call.attributes["parameters"]
            sources = self._guidance.sources(call)
            multiplied = {slot for slots in sources.values() for slot in slots}
            steps: list[tuple[str | None, list[str]]] = [(None, [slot for slot in bound if slot not in multiplied])]
            for source, slots in [*steps, *sources.items()]:
                waiting = [bound[slot] for slot in slots if bound[slot] in self._parameters and bound[slot] not in done]
                unrounded = [name for name in waiting if not self._rounded(name).is_file()]
                with coarse_products():
                    correction = drift.correction(call, source) if source is not None and unrounded else None
                list(_side_by_side(functools.partial(self._round, correction=correction), unrounded))
                for name in waiting:
                    done.add(name)
                    quantized.parameters[name] = replace(
                        self._parameters[name],
                        encoding=self._encodings[name],
                        load=functools.partial(self._read, name),
                    )
                    self._tell(names, name)
            if len(done) == len(names):
                break
            with coarse_products():
                drift.advance(call)

    def _tell(self, names: Sequence[str], name: str) -> None:
        """Report progress: the parameters up to this one are rounded."""
        sizes = [_size(self._parameters[other]) for other in names]
        self._stage("rounding")(sum(sizes[: list(names).index(name) + 1]) / sum(sizes))

    def load(self, name: str) -> EncodedTensor:
        """A parameter, rounded."""
        if not self._rounded(name).is_file():
            self.run()
        return self._read(name)

    def _read(self, name: str) -> EncodedTensor:
        parts: dict[str, Any] = read_tensors(self._rounded(name))
        return EncodedTensor(self._encodings[name], tuple(self._parameters[name].shape), **parts)

    def _estimate(self) -> str:
        """A phrase that says how long it will take, from the current speed of this machine's matrix products."""
        guided, others = self._calibration.counts
        weights = sum(_size(p) for p in self._parameters.values())
        squares = sum(p.shape[-1] ** 2 for p in self._parameters.values())
        tokens = (guided + others) * self._calibration.window
        passes = 6 + (SEQUENTIAL_PASSES if self._method.sequential else 0)
        operations = 2 * tokens * (weights + squares // 2) + passes * guided * self._calibration.window * weights
        seconds = 1.6 * operations / _multiplications_per_second() + SECONDS_PER_WEIGHT * weights / _threads()
        return (
            f"reads {tokens:,} tokens of calibration text, with gradients for {guided * self._calibration.window:,}; "
            f"about {max(1, round(seconds / 60))} minutes; finished work is kept in {self._folder}"
        )

    # ---- choices

    def _options(self, name: str) -> list[Encoding]:
        columns = self._parameters[name].shape[-1]
        return [stored_as(bits, columns, self._rotation(name)) for bits in sorted(self._method.widths)]

    def _rotation(self, name: str) -> int | None:
        """The block of stored columns that are rotated; None if this parameter is not rotated."""
        is_whole = self._parameters[name].shape[-1] % self._method.block == 0
        return self._method.block if name in self._rotated and is_whole else None

    def _costs(self) -> dict[str, dict[str, float]]:
        """The expected KL divergence of rounding, by parameter and width."""
        file = self._folder / f"costs-{self._method.damping:g}.json"
        known: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.is_file() else {}
        progress, wanted = self._stage("costs"), sorted(self._method.widths)
        keys = {name: f"{name} {self._rotation(name) or ''}".strip() for name in self._parameters}
        missing = [name for name, key in keys.items() if set(map(str, wanted)) - set(known.get(key, {}))]
        found = _side_by_side(lambda name: self._costs_of(name, wanted), missing)
        for index, (name, costs) in enumerate(zip(missing, found, strict=True)):
            known[keys[name]] = {**known.get(keys[name], {}), **costs}
            _write_text(file, json.dumps(known))
            progress((index + 1) / len(missing))
        return {name: known[key] for name, key in keys.items()}

    def _costs_of(self, name: str, widths: Sequence[int]) -> dict[str, float]:
        values, guidance, metric = self._prepared(name)
        rows = values[:: max(1, len(values) // SAMPLED_ROWS)]
        counts = guidance.rows[:: max(1, len(values) // SAMPLED_ROWS)]
        share = guidance.rows.sum() / counts.sum().clamp(min=1e-30)
        measured: dict[int, float] = {}
        for bits in sorted({min(bits, MOST_MEASURED) for bits in widths}):
            error = round_matrix(rows, stored_as(bits, values.shape[1]), metric, sweeps=0).decode() - rows
            lost = ((error @ guidance.moments) * error).sum(1)
            measured[bits] = float(0.5 * (counts * lost).sum() * share)
        return {
            str(bits): measured[min(bits, MOST_MEASURED)] / 4 ** max(0, bits - MOST_MEASURED) for bits in widths
        }

    # ---- rounding

    def _prepared(self, name: str, correction: Tensor | None = None) -> tuple[Tensor, MatrixGuidance, Metric]:
        """A parameter's float values [rows, columns] and its guidance, in the basis of the stored columns."""
        values = self._parameters[name].values().view(matrix_shape(self._parameters[name].shape))
        if correction is not None:
            values = values + self._method.sequential * (values @ correction)
        guidance = self._guidance.of(name)
        rotation = self._rotation(name)
        if rotation is not None:
            values = rotate(values, rotation)
            moments = rotate(rotate(guidance.moments, rotation).T.contiguous(), rotation)
            guidance = MatrixGuidance(moments, guidance.rows, guidance.outputs)
        try:
            return values, guidance, Metric.of(guidance.moments, self._method.damping)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error

    def _round(self, name: str, correction: Tensor | None = None) -> None:
        values, guidance, metric = self._prepared(name, correction)
        coupled = self._method.coupled_sweeps
        try:
            tensor = round_matrix(
                values, self._encodings[name], metric, self._method.sweeps, guidance.outputs, coupled
            )
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        parts = {f.name: getattr(tensor, f.name) for f in fields(tensor) if f.name not in ("encoding", "shape")}
        self._rounded(name).parent.mkdir(exist_ok=True)
        write_tensors(self._rounded(name), {key: part for key, part in parts.items() if part is not None})

    # ---- the work folder

    def _make_folder(self) -> Path:
        """The folder for this model, text and seed."""
        if self._context.work is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="smc-", ignore_cleanup_errors=True)
            return Path(self._temporary.name)
        folder = self._context.work / self._digest()[:24]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _digest(self) -> str:
        """A hash of all that guidance depends on: the program, every weight, the text, the seed."""
        from smc.ir import print_module

        digest = hashlib.sha256(print_module(self._module).encode())
        facts = (VERSION, self._calibration.digest(), self._context.seed, sorted(self._parameters))
        digest.update(repr(facts).encode())
        for parameter in self._module.parameters.values():
            tensor = parameter.load()
            for f in fields(tensor):
                part = getattr(tensor, f.name)
                if hasattr(part, "numpy"):
                    digest.update(part.contiguous().view(-1).view(_bytes_type()).numpy())
        return digest.hexdigest()

    def _rounded(self, name: str) -> Path:
        """The file of a rounded parameter."""
        method = self._method
        key = repr((method.damping, self._encodings[name], method.sweeps, method.coupled_sweeps))
        if method.sequential:  # it also depends on the calls before
            key += repr((method.sequential, sorted((n, str(e)) for n, e in self._encodings.items())))
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        return self._folder / "rounded" / f"{list(self._parameters).index(name)}-{digest}.safetensors"

    def _stage(self, name: str) -> Any:
        """A callback for the progress of one stage."""
        before = 0.0
        for stage, share in STAGES.items():
            if stage == name:
                return lambda fraction, start=before, part=share: self._context.progress(start + part * fraction)
            before += share
        raise KeyError(name)


def _side_by_side(function: Callable[[str], Result], names: Sequence[str]) -> Iterator[Result]:
    """The function's results in order. Each thread takes a name, and torch divides no operation.

    Rounding takes thousands of small steps: threads that share one would mostly wait for each other, and fifty times as
    long where other programs run.
    """
    import torch

    threads = _threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(function, names)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _multiplications_per_second() -> float:
    """Additions and multiplications of float32 matrices per second."""
    import time

    import torch

    a, b = torch.ones(1024, 1024), torch.ones(1024, 1024)
    started, runs = time.perf_counter(), 0
    while time.perf_counter() - started < 0.2:
        a @ b
        runs += 1
    return runs * 2 * 1024**3 / (time.perf_counter() - started)


def _bytes_type() -> Any:
    import torch

    return torch.uint8


def _write_text(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)


def _size(parameter: Parameter) -> int:
    rows, columns = matrix_shape(parameter.shape)
    return rows * columns
