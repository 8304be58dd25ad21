"""The pass manager: runs a chain of passes, verifies after each, and records them."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace

from smc.distribution import install_command
from smc.errors import InputError
from smc.ir import EncodedTensor, Module, Parameter, VerifyError, verify
from smc.passes.base import Context, Pass
from smc.passes.registry import is_users, parse_pass


def apply(
    module: Module,
    passes: Sequence[Pass | str],
    context: Context | None = None,
    after: Callable[[Pass, Module], None] | None = None,
) -> Module:
    """Run the passes in order and return the last one's module; `after` is called with each and the module behind it.

    Raises InputError before any work starts if a pass is unknown or lacks what it needs. Every pass reports one line of
    statistics to `context.report` and adds one line to the provenance. An error names the pass that broke the ir
    (VerifyError, or InputError for a pass that is not smc's own).
    """
    context = context or Context()
    context = context if context.teacher is not None else replace(context, teacher=module)
    chain = [parse_pass(item) if isinstance(item, str) else item for item in passes]
    for step in chain:
        _check_needs(step, context)
    for index, step in enumerate(chain):
        notes: list[str] = []
        before = module
        progress = functools.partial(_progress, context, index, len(chain))
        made = step.run(before, replace(context, report=notes.append, progress=progress))
        if not isinstance(made, Module):
            raise InputError(f"pass {step.name} must return a Module, not {type(made).__name__}")
        module = _with_originals(before, _checked(step, before, made) if is_users(step) else made)
        module = module.with_provenance(str(step))
        try:
            verify(module)
        except VerifyError as error:
            if is_users(step):
                raise InputError(f"pass {step.name} breaks the model: {error}") from error
            raise VerifyError(f"after pass {step.name}: {error}") from error
        context.report(f"{step.name}: {_statistics(before, module, notes)}")
        if after is not None:
            after(step, module)
    return module


def _checked(step: Pass, before: Module, after: Module) -> Module:
    """The module that a user's pass returned; its parameters are checked when they are loaded."""
    result = after.copy()
    for name, parameter in after.parameters.items():
        if parameter is not before.parameters.get(name):
            result.parameters[name] = replace(parameter, load=functools.partial(_load_checked, step, parameter))
    return result


def _with_originals(before: Module, after: Module) -> Module:
    """The module, in which parameters that were quantized know what they were."""
    result = after.copy()
    for name, parameter in after.parameters.items():
        old = before.parameters.get(name)
        if old is None or parameter.load is old.load or parameter.shape != old.shape or parameter.encoding.is_float:
            continue
        result.parameters[name] = replace(parameter, original=old.original or old)
    return result


def _load_checked(step: Pass, parameter: Parameter) -> EncodedTensor:
    data = parameter.load()
    if not isinstance(data, EncodedTensor):
        raise InputError(f"pass {step.name} returns {type(data).__name__} for {parameter.name}, not an EncodedTensor")
    if (data.encoding, tuple(data.shape)) != (parameter.encoding, tuple(parameter.shape)):
        raise InputError(
            f"pass {step.name} returns {parameter.name} as {data.encoding} {list(data.shape)}, "
            f"but says that it is {parameter.encoding} {list(parameter.shape)}"
        )
    return data


def _check_needs(step: Pass, context: Context) -> None:
    if "calibration" in step.needs and context.calibration is None and not context.lazy:
        raise InputError(f"pass {step.name} needs a calibration text: give one with --calib FILE")
    if "training" in step.needs and context.training is None and not context.lazy:
        raise InputError(f"pass {step.name} needs training: run it with smc.apply or on the command line")
    if "torch" in step.needs and importlib.util.find_spec("torch") is None:
        raise InputError(f"pass {step.name} needs torch: {install_command()}")


def _progress(context: Context, index: int, count: int, fraction: float) -> None:
    context.progress((index + fraction) / count)


def _statistics(before: Module, after: Module, notes: list[str]) -> str:
    parts = list(notes)
    if after.weight_count() != before.weight_count():
        parts.append(f"{before.weight_count():,} → {after.weight_count():,} weights")
    if after.stored_bits() != before.stored_bits():
        parts.append(f"{before.bits_per_weight():.2f} → {after.bits_per_weight():.2f} bits per weight")
    return "; ".join(parts) or "nothing to do"
