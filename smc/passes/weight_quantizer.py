"""`WeightQuantizer`: the base of every weight-quantization method, which defines an encoding and how to round to it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from smc.errors import InputError
from smc.ir import EncodedTensor, Encoding, Module, Parameter, matrix_shape
from smc.passes.base import Context, Need, Pass
from smc.passes.calibration import loads_of
from smc.passes.matrices import pick_matrices
from smc.passes.statistics import GroupStatistics, InputStatistics, Statistic

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_WEIGHTS = 1 << 18
"""The approximate number of weights that `quantize` gets at once: few enough for a core's cache."""

CALIBRATED_CHUNK_WEIGHTS = 1 << 22
"""The same for methods with statistics, which may process columns one by one."""

NEGLIGIBLE = 1e-30
"""A group whose weights are all smaller counts as all zero: inverses of its scale would overflow."""


LEAST_F16 = 2.0**-24
"""The smallest number above 0."""

LEAST_SCALE = 8 * LEAST_F16
"""Below this, f16 rounds by more than 6 %: a matrix with only such scales would change, or become zero."""


@dataclass(frozen=True)
class WeightQuantizer(Pass):
    """Base of weight-quantization methods; a subclass has the encoding, and makes codes and scales from groups of
    weights.

    include, exclude: glob patterns on parameter names, slots and roles (model.layers.0.*, v_proj, value). Only matrices
    that are still floats are quantized, so a chain of quantizers with the special cases first makes a mixed-precision
    model.
    Parameters stay lazy: they are quantized when they are loaded, a chunk of rows at a time, with the same result every
    time.
    A method that needs statistics of inputs names them in `statistics`: they are computed on the calibration text, call
    after call, each after the quantized calls before it.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"torch"})

    statistics: ClassVar[frozenset[Statistic]] = frozenset()
    """The statistics of inputs that the method needs: "second-moments", "maxima", "means", "magnitudes"; see
    `InputStatistics`."""

    include: tuple[str, ...] = field(default=("*",), kw_only=True)
    exclude: tuple[str, ...] = field(default=(), kw_only=True)

    def __init_subclass__(cls) -> None:
        """A calibration text, for methods with statistics."""
        super().__init_subclass__()
        if cls.statistics:
            cls.needs = cls.needs | {"calibration"}

    @abstractmethod
    def encoding(self) -> Encoding:
        """The encoding of the codes and scales."""

    @abstractmethod
    def quantize(self, groups: Tensor, statistics: GroupStatistics) -> tuple[Tensor, ...]:
        """The codes [out, n_groups, group] and scales [out, n_groups] for float32 groups [out, n_groups, group].

        Rows whose last group is not full are padded with zeros (`statistics.mask`); no group is all zero. If the
        encoding stores one zero or offset per group, these are the third result, [out, n_groups]. Codes are whole
        numbers of any dtype from 0 to 2**bits - 1. Scales are rounded to the encoding's `scale_dtype` afterwards: a
        method that rounds its codes against the stored scales calls `round_scales` first. The rows come in
        chunks. With group "tensor", the matrix is one group, [1, 1, out * in].
        """

    def round_scales(self, scales: Tensor) -> Tensor:
        """The scales [out, n_groups] as they will be stored, as float32.

        They are rounded to `scale_dtype`; scales of two levels to a multiple of their super-group's stored scale.
        """
        if self.encoding().scales.super_group is None:
            return self._rounded(scales)
        outer, codes = self._two_levels(scales)
        return _repeated(outer, self.encoding(), scales.shape[1]) * codes

    def _rounded(self, values: Tensor) -> Tensor:
        """Scales or offsets rounded to `scale_dtype`, as float32."""
        import torch

        dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[self.encoding().scales.dtype]
        return values.to(dtype).to(torch.float32)

    def _two_levels(self, scales: Tensor) -> tuple[Tensor, Tensor]:
        """Scales [out, n_groups] → stored scales [out, super-groups], the largest scale / 255, and codes 0…255."""
        import torch

        size = self.encoding().scales.super_group
        assert size is not None
        if (scales < 0).any():
            raise InputError(
                f"pass {self.name} returned negative scales, which two levels can't store: use no super_group"
            )
        padded = torch.nn.functional.pad(scales, (0, -scales.shape[1] % size))
        outer = self._rounded(padded.view(len(scales), -1, size).amax(-1) / 255)
        inverse = (1 / outer).masked_fill_(outer == 0, 0)
        codes = (scales * _repeated(inverse, self.encoding(), scales.shape[1])).round_().clamp_(0, 255)
        return outer, codes

    def run(self, module: Module, context: Context) -> Module:
        """Wrap the `load` of every selected parameter that is still stored as floats."""
        encoding = self.encoding()
        if encoding.is_float or encoding.transform.permuted or encoding.transform.rotation:
            raise InputError(
                f"pass {self.name} can't make {encoding}: a WeightQuantizer makes codes and one scale per group"
            )
        result = module.copy()
        picked = pick_matrices(module, self.include, self.exclude)
        changed = [p for p in picked if p.encoding.is_float or p.load in context.requantize]
        loads = loads_of(self, module, changed, context)
        for parameter in changed:
            result.parameters[parameter.name] = replace(parameter, encoding=encoding, load=loads[parameter.name])
        context.report(f"{len(changed)} matrices to {encoding}")
        return result

    def encode_parameter(self, parameter: Parameter, inputs: InputStatistics | None = None) -> EncodedTensor:
        """A parameter, quantized from its floats or decoded codes; an InputError names it."""
        data = parameter.load()
        values = data.decode() if data.values is None else data.values
        try:
            return self.encode(values, inputs)
        except InputError as error:
            raise InputError(f"{parameter.name}: {error}") from error

    def encode(self, values: Tensor, inputs: InputStatistics | None = None) -> EncodedTensor:
        """Quantize one tensor of any shape and float dtype: pad groups, replace all-zero ones, check the results.

        inputs: the statistics of its inputs, for methods that need them.
        """
        import torch

        encoding, shape = self.encoding(), tuple(values.shape)
        if encoding.has_two_level_minima or encoding.scales.signed_codes:
            raise InputError(
                f"pass {self.name} can't make {encoding}: smc only reads two-level minima and signed scale codes"
            )
        rows, columns = (1, values.numel()) if encoding.scales.group == "tensor" else matrix_shape(shape)
        size, count = encoding.group_size(columns), encoding.groups(columns)
        codes = torch.empty(rows, count, size, dtype=torch.uint8)
        scales = torch.empty(rows, count)
        third = torch.empty(rows, count) if encoding.stores_zeros or encoding.stores_minima else None
        mask = (torch.arange(count * size) < columns).view(count, size)
        matrix = values.reshape(rows, columns)
        limit = CALIBRATED_CHUNK_WEIGHTS if self.statistics else CHUNK_WEIGHTS
        with nullcontext() if self.statistics else _one_torch_thread():
            for part in _row_chunks(rows, count * size, limit):
                padded = torch.nn.functional.pad(matrix[part].float(), (0, count * size - columns))
                chunk = self._encode_groups(padded.view(-1, count, size), mask, inputs, encoding)
                codes[part], scales[part] = chunk[0], chunk[1]
                if third is not None:
                    third[part] = chunk[2]
        zeros = third.to(torch.uint8) if third is not None and encoding.stores_zeros else None
        offsets = third if encoding.stores_minima else None
        if encoding.scales.group == "tensor":
            codes = codes.view(matrix_shape(shape)[0], 1, -1)
        scale_codes = None
        if encoding.scales.super_group is not None:
            scales, scale_codes = self._two_levels(scales)
            scale_codes = scale_codes.to(torch.uint8)
        least = LEAST_F16 if encoding.scales.super_group is not None else LEAST_SCALE
        is_tiny = encoding.scales.dtype == "f16" and not encoding.stores_minima and scales.abs().max() < least
        if is_tiny and matrix.abs().max() >= NEGLIGIBLE:
            raise InputError(f"pass {self.name} returned scales too small for f16: use scale_dtype f32 or bf16")
        return EncodedTensor(
            encoding, shape, codes=codes, scales=scales, scale_codes=scale_codes, zeros=zeros, offsets=offsets
        )

    def _encode_groups(
        self, groups: Tensor, mask: Tensor, inputs: InputStatistics | None, encoding: Encoding
    ) -> list[Tensor]:
        """The checked codes, scales and perhaps zeros or offsets of one chunk, as `EncodedTensor` stores them."""
        empty = groups.abs().amax(-1) < NEGLIGIBLE
        guarded = _filled(groups, empty, encoding) if empty.any() else groups
        results = list(self.quantize(guarded, GroupStatistics(mask, empty, inputs)))
        wanted = 3 if encoding.stores_zeros or encoding.stores_minima else 2
        if len(results) != wanted:
            raise InputError(f"pass {self.name} returned {len(results)} tensors, but {encoding} needs {wanted}")
        for index, what in enumerate(("codes", "scales", "zeros or offsets")[:wanted]):
            shape, expected = results[index].shape, empty.shape if index else groups.shape
            if shape != expected:
                raise InputError(f"pass {self.name} returned {what} of shape {list(shape)}, not {list(expected)}")
        top = last_code(encoding)
        # The padding is never decoded, and with scale 0 every code decodes to 0.
        results[0] = results[0].masked_fill(~mask, 0)
        self._check_codes("codes", results[0], top)
        results[1] = self._stored("scales", results[1], self.round_scales).masked_fill(empty, 0.0)
        if encoding.stores_zeros:
            self._check_codes("zeros", results[2], top)
        elif encoding.stores_minima:
            results[2] = self._stored("offsets", results[2], self._rounded).masked_fill(empty, 0.0)
        return results

    def _check_codes(self, what: str, codes: Tensor, top: int) -> None:
        low, high = codes.min().item(), codes.max().item()
        if not (0 <= low <= high <= top):  # NaN also compares false
            raise InputError(f"pass {self.name} returned {what} from {low:g} to {high:g}, not 0 to {top}")
        if codes.is_floating_point() and not (codes == codes.round()).all():
            raise InputError(f"pass {self.name} returned {what} that are not whole numbers")

    def _stored(self, what: str, values: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        rounded = rounding(values)
        if not rounded.isfinite().all():
            dtype = self.encoding().scales.dtype
            raise InputError(
                f"pass {self.name} returned {what} beyond the range of {dtype}: use scale_dtype f32 or bf16"
            )
        return rounded


def _repeated(values: Tensor, encoding: Encoding, count: int) -> Tensor:
    """[out, super-groups] → [out, n_groups]."""
    assert encoding.scales.super_group is not None
    return values.repeat_interleave(encoding.scales.super_group, dim=1)[:, :count]


def _filled(groups: Tensor, empty: Tensor, encoding: Encoding) -> Tensor:
    """The groups with all-zero ones filled with ones, or, if groups share a scale, with nothing larger than the others
    have."""
    import torch

    if encoding.scales.super_group is None:
        return groups.masked_fill(empty[..., None], 1.0)
    largest = groups.abs().amax(-1)
    padded = torch.nn.functional.pad(largest, (0, -largest.shape[1] % encoding.scales.super_group))
    shared = padded.view(len(groups), -1, encoding.scales.super_group).amax(-1)
    shared = shared.masked_fill(shared < NEGLIGIBLE, 1.0)
    return torch.where(empty[..., None], _repeated(shared, encoding, groups.shape[1])[..., None], groups)


def last_code(encoding: Encoding) -> int:
    """The largest code that has a value."""
    if encoding.has_codebook:
        return len(encoding.entries) - 1
    return 2 if encoding.is_base3 else (1 << encoding.bits) - 1


def _row_chunks(rows: int, columns: int, weights: int) -> Iterator[slice]:
    step = max(1, weights // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Run the loop over chunks on one thread: on ops this small torch's threads mostly wait for each other. Callers may
    load many parameters in threads of their own."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
