"""`Guidance`: how much an error of each weight costs the model's loss, from gradients on a calibration text.

The loss's second derivatives at a matrix are approximated by rows ⊗ moments: the mean square of the gradient at each
output, and the second moments of the inputs, in which tokens are weighted by the squares of the gradient at the outputs
(as in GuidedQuant, Kim et al. 2025, arXiv 2505.07004). Weights are clipped, because few tokens would decide otherwise;
the first token of a window, whose activations differ from all others', has a weight of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from smc.errors import InputError
from smc.ir import Module, Node, ceil_div
from smc.ir.ops import find
from smc.passes.files import read_tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

MOST_WEIGHT = 4.0
"""The largest weight of a token, in multiples of the mean."""

MOST_FIRST_WEIGHT = 40.0
"""The same for a window's first token."""

MOST_OUTPUTS = 8192
"""Matrices of more rows are rounded row by row: products of the gradients of all pairs would be too many."""

OUTPUT_WINDOWS = 2
"""Of one of so many windows the products of the outputs' gradients are taken: they cost as much as going back."""

FORWARD_SHARE = 0.35
"""The share of the time that the forward pass takes."""


class GradientRunner(Protocol):
    """Runs a module on a calibration text forward, call by call, and backward; see `smc.reference.GradientRunner`."""

    def advance(self, call: Node, observe: Callable[[Node, Sequence[Any]], None]) -> None:
        """Run a call forward; `observe` gets nodes and operands of windows without gradients."""

    def retreat(self, call: Node, observe: Callable[[Node, Sequence[Any], Tensor], None]) -> None:
        """Run a call backward; `observe` gets nodes, operands and gradients of results, window after window."""

    def keep(self, call: Node) -> None:
        """Save what is needed to continue after this call."""


class GradientCalibration(Protocol):
    """What `Guidance` needs from a calibration text."""

    @property
    def window(self) -> int:
        """Tokens of a window."""

    @property
    def counts(self) -> tuple[int, int]:
        """The number of windows with gradients, and of the others."""

    def gradient_runner(self, module: Module, folder: Path, seed: int) -> GradientRunner:
        """A runner at the first call."""


@dataclass(frozen=True)
class MatrixGuidance:
    """The cost of an error E [rows, columns] of a matrix: half the sum over rows r of rows[r] · E[r]·moments·E[r]ᵀ.

    moments: float32 [columns, columns]. rows: float32 [rows]. The cost is in nats per token, the KL divergence of the
    model with the error from the one without. outputs: float32 [rows, rows], the mean products of the gradients at the
    outputs, of which `rows` is the diagonal; None where they are too many or the matrix is a table.
    """

    moments: Tensor
    rows: Tensor
    outputs: Tensor | None = None


class Guidance:
    """Computes the guidance for some parameters of a module, and keeps it in a folder, one file per call.

    Files that are in the folder already are not computed again, so an interrupted run continues.
    """

    def __init__(
        self, module: Module, names: Sequence[str], calibration: GradientCalibration, folder: Path, seed: int = 0
    ) -> None:
        """Nothing is computed yet. names: the parameters. folder: exists; of this module, text and seed only."""
        self._module, self._calibration, self._folder, self._seed = module, calibration, folder, seed
        self._names = set(names)
        self._calls = [call for call, _ in module.calls()]

    @property
    def is_complete(self) -> bool:
        """Whether all files exist."""
        return all(self._file(call).is_file() for call in self._calls)

    def gather(self, progress: Callable[[float], None]) -> None:
        """Run the model forward and back. InputError if its activations or gradients are not finite."""
        waiting = [call for call in self._calls if not self._file(call).is_file()]
        if not waiting:
            return
        runner = self._calibration.gradient_runner(self._module, self._folder, self._seed)
        if not self._forward_done.is_file():
            for index, call in enumerate(self._calls):
                self._forward(runner, call)
                progress(FORWARD_SHARE * (index + 1) / len(self._calls))
            self._forward_done.touch()
        for call in reversed(waiting):
            self._backward(runner, call)
            done = len(self._calls) - self._calls.index(call)
            progress(FORWARD_SHARE + (1 - FORWARD_SHARE) * done / len(self._calls))
        for call in self._calls:
            self._plain_file(call).unlink(missing_ok=True)

    def of(self, name: str) -> MatrixGuidance:
        """The guidance of a parameter. If a matrix is used several times, the errors of all uses are added.

        For an embedding, rows count by how often they are used, and columns by the gradient of the result.
        """
        import torch

        products: list[MatrixGuidance] = []
        lookups: list[MatrixGuidance] = []
        for call, slot, _ in self._module.uses(name):
            kept = read_tensors(self._file(call))
            if f"rows.{slot}" not in kept:
                continue
            source = kept[f"source.{slot}"].numpy().tobytes().decode()
            outputs = kept.get(f"outputs.{slot}")
            found = MatrixGuidance(
                kept[f"moments.{source}"], kept[f"rows.{slot}"], None if outputs is None else outputs.float()
            )
            (lookups if source == slot else products).append(found)
        if not products and not lookups:
            raise InputError(f"no gradients reach {name}: exclude it")
        rows = torch.stack([found.rows for found in products or lookups]).sum(0)
        moments = torch.zeros_like((products or lookups)[0].moments)
        for found in products:
            moments += found.moments / len(products)
        for found in lookups:
            moments += found.moments
        coupled = [found.outputs for found in products if found.outputs is not None]
        whole = not lookups and len(coupled) == len(products)
        return MatrixGuidance(moments, rows, torch.stack(coupled).sum(0) if whole else None)

    def sources(self, call: Node) -> dict[str, list[str]]:
        """The inputs of a call's guided parameters, in order, and the slots that they fill."""
        found: dict[str, list[str]] = {}
        for slot, source in self._readers(call).values():
            if source is not None:
                found.setdefault(source, []).append(slot)
        return found

    def first_reader(self, call: Node, source: str) -> str:
        """The first node that multiplies a guided parameter by this value."""
        return readers_of(source, self._readers(call))[0]

    def token_weights(self, call: Node, source: str) -> Tensor:
        """The weights of tokens at a value, for windows with gradients: float32 [windows, tokens]."""
        return read_tensors(self._file(call))[f"weights.{source}"]

    # ---- forward: second moments of the windows without gradients

    def _forward(self, runner: GradientRunner, call: Node) -> None:
        import torch

        sums: dict[str, Tensor] = {}
        firsts: dict[str, list[Tensor]] = {}
        readers = self._readers(call)

        def observe(node: Node, operands: Sequence[Any]) -> None:
            source = readers.get(node.name, (None, None))[1]
            if source is None or readers_of(source, readers)[0] != node.name:
                return
            x = operands[node.inputs.index(source)].float()
            first = x[:: self._calibration.window].clone()
            product = x.T @ x - first.T @ first
            sums[source] = sums[source].add_(product) if source in sums else product
            firsts.setdefault(source, []).append(first)

        runner.advance(call, observe)
        tensors = {f"sum.{source}": value for source, value in sums.items()}
        tensors |= {f"first.{source}": torch.cat(parts) for source, parts in firsts.items()}
        write_tensors(self._plain_file(call), tensors)

    # ---- backward: weights of tokens, and the second moments with them

    def _backward(self, runner: GradientRunner, call: Node) -> None:
        gathered = _Gathered(self._readers(call))
        runner.retreat(call, gathered.observe)
        plain = read_tensors(self._plain_file(call)) if self._plain_file(call).is_file() else {}
        tensors = gathered.result(plain, self._calibration)
        for name, values in tensors.items():
            if values.is_floating_point() and not values.isfinite().all():
                raise InputError(f"{name} of {call.name} is not finite on the calibration text: is the model broken?")
        write_tensors(self._file(call), tensors)
        runner.keep(call)

    def _readers(self, call: Node) -> dict[str, tuple[str, str | None]]:
        """The nodes of a call's function that use guided parameters → the slot, and its input (None for an
        embedding)."""
        wanted = {slot for slot, name in call.attributes["parameters"].items() if name in self._names}
        found: dict[str, tuple[str, str | None]] = {}
        for node in self._module.functions[call.attributes["function"]].nodes():
            if not node.is_computed:
                continue
            names = find(node.op).bind(node.inputs, node.attributes)
            for slot in names.values():
                if slot in wanted:
                    found[node.name] = (str(slot), names.get("x"))
        return found

    @property
    def _forward_done(self) -> Path:
        return self._folder / "forward.done"

    def _file(self, call: Node) -> Path:
        return self._folder / f"guidance-{self._calls.index(call)}.safetensors"

    def _plain_file(self, call: Node) -> Path:
        return self._folder / f"plain-{self._calls.index(call)}.safetensors"


def readers_of(source: str, readers: dict[str, tuple[str, str | None]]) -> list[str]:
    """The nodes that read a value, in order."""
    return [node for node, (_, read) in readers.items() if read == source]


@dataclass
class _Gathered:
    """What the backward pass through one call observes."""

    readers: dict[str, tuple[str, str | None]]
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)  # value → [tokens, columns] of each window
    weights: dict[str, list[Tensor]] = field(default_factory=dict)  # node → [tokens] of each window
    rows: dict[str, Tensor] = field(default_factory=dict)  # slot → sums of squares [rows]
    outputs: dict[str, Tensor] = field(default_factory=dict)  # slot → sums of products of gradients [rows, rows]
    lookups: dict[str, Tensor] = field(default_factory=dict)  # the same of tables' columns
    tokens: int = 0

    def observe(self, node: Node, operands: Sequence[Any], gradient: Tensor) -> None:
        """Add a node's operands and the gradient at its result."""
        import torch

        if node.name not in self.readers:
            return
        slot, source = self.readers[node.name]
        squares = gradient.square()
        if source is None:
            table = operands[node.inputs.index(slot)].values
            found = torch.bincount(operands[0].long(), minlength=len(table)).float()
            scaled = gradient * float(node.attributes.get("scale", 1.0))
            self._add(self.lookups, slot, scaled.T @ scaled)
            self.tokens += len(gradient)
        else:
            if readers_of(source, self.readers)[0] == node.name:
                self.inputs.setdefault(source, []).append(operands[node.inputs.index(source)])
            self.weights.setdefault(node.name, []).append(squares.flatten(1).sum(1))
            matrix = operands[node.inputs.index(slot)].values
            found = squares.view(-1, matrix.shape[-2]).sum(0).repeat(matrix[..., 0].numel() // matrix.shape[-2])
            is_counted = len(self.weights[node.name]) % OUTPUT_WINDOWS == 1 % OUTPUT_WINDOWS
            if is_counted and matrix.ndim == 2 and len(matrix) <= MOST_OUTPUTS:
                self._add(self.outputs, slot, gradient.T @ gradient)
        self._add(self.rows, slot, found)

    def _add(self, sums: dict[str, Tensor], key: str, value: Tensor) -> None:
        sums[key] = sums[key].add_(value) if key in sums else value.clone()

    def result(self, plain: dict[str, Tensor], calibration: GradientCalibration) -> dict[str, Tensor]:
        """The tensors of the call's file: moments by value, rows and the name of the value by slot."""
        import torch

        tensors: dict[str, Tensor] = {}
        guided, others = calibration.counts
        for node, (slot, source) in self.readers.items():
            name = slot if source is None else source
            tensors[f"rows.{slot}"] = self.rows.pop(slot) / (guided * calibration.window)
            if slot in self.outputs:  # in half the space: they are noise in the third digit
                windows = ceil_div(guided, OUTPUT_WINDOWS)
                tensors[f"outputs.{slot}"] = (self.outputs.pop(slot) / (windows * calibration.window)).bfloat16()
            tensors[f"source.{slot}"] = torch.frombuffer(bytearray(name.encode()), dtype=torch.uint8)
            if source is None:
                tensors[f"moments.{slot}"] = self.lookups.pop(slot) / self.tokens
            elif readers_of(source, self.readers)[0] == node:
                weights, first = self._token_weights(source)
                tensors[f"weights.{source}"] = weights
                total = torch.zeros(self.inputs[source][0].shape[1], self.inputs[source][0].shape[1])
                for x, weight in zip(self.inputs.pop(source), weights, strict=True):
                    total.addmm_((x * weight[:, None]).T, x)
                if f"sum.{source}" in plain:
                    total += plain[f"sum.{source}"]
                    total.addmm_(plain[f"first.{source}"].T, plain[f"first.{source}"], alpha=first)
                tensors[f"moments.{source}"] = total / ((guided + others) * calibration.window)
        return tensors

    def _token_weights(self, source: str) -> tuple[Tensor, float]:
        """The weights of the tokens [windows, tokens], the mean of all readers, and the weight of a window's first
        token."""
        import torch

        readers = [torch.stack(self.weights[node]) for node in readers_of(source, self.readers)]
        weights = torch.stack([own / own.mean().clamp(min=1e-30) for own in readers]).mean(0)
        first = weights[:, 0].mean().clamp(max=MOST_FIRST_WEIGHT)
        weights.clamp_(max=MOST_WEIGHT)
        usual = weights[:, 1:].mean().clamp(min=1e-30)
        weights[:, 0] = first
        return weights / usual, float(first / usual)
