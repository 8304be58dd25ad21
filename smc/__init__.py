"""smc: a compiler for small language models.

::

    import smc

    module = smc.load_checkpoint("SmolLM2-135M-Instruct")           # a folder, a hub id or a GGUF file
    module = smc.apply(module, ["quantize-rtn:bits=4,group=32"])    # see `smc passes`
    smc.compile(module, target="native", out="smollm2.smc")
    model = smc.load("smollm2.smc")                                 # needs neither torch nor tvm
    print(model.generate("Once upon a time", max_tokens=64).text)

Importing this package is cheap; what a function needs is imported when it is called.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from smc.distribution import VERSION, packages_named
from smc.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from smc import passes
    from smc.codegen import CompileReport
    from smc.ir import EncodedTensor, Module
    from smc.llama import Llama
    from smc.passes import Context, Pass, Training
    from smc.runtime import Model

__version__ = VERSION

__all__ = ["InputError", "Llama", "apply", "compile", "load", "load_checkpoint", "passes"]


@packages_named()
def load_checkpoint(source: str | Path, adapters: Sequence[str | Path] = ()) -> Module:
    """Load the model of a checkpoint as ir; weights are read later, one tensor at a time.

    source: a folder in the Hugging Face layout, a model id of the Hugging Face hub, or a .gguf file.
    adapters: folders of LoRA adapters in PEFT's layout, merged in this order (docs/formats.md).
    Raises InputError if there is none, if it is broken, or if its kind is not supported.
    """
    from smc.frontend import load_checkpoint as load_source

    return load_source(source, adapters)


@packages_named()
def apply(
    module: Module,
    passes: Sequence[Pass | str],
    calibration: str | Path | None = None,
    *,
    teacher: Module | None = None,
    work: str | Path | None = None,
    report: Callable[[str], None] | None = None,
    progress: Callable[[float], None] | None = None,
    note: Callable[[str], None] | None = None,
    after: Callable[[Pass, Module], None] | None = None,
    lazy: bool = False,
    requantize: frozenset[Callable[[], EncodedTensor]] = frozenset(),
) -> Module:
    """Run passes in order; each is an object of `smc.passes` or text such as "quantize-rtn:bits=4,group=32".

    calibration: a text file for passes that take statistics; without one they get the text that comes with smc.
    The given module is not changed.
    teacher: the model to distill from; by default the given one. work: a folder where long passes keep their state, so
    that an interrupted run continues when it is started again; without one nothing is kept.
    report: called with a line for every pass that ran. progress: called with how much is done, from 0 to 1. note:
    called with lines from long work. after: called with every pass that ran and the module after it.
    lazy: long work waits until a parameter is loaded, if encodings do not depend on it.
    requantize: the `load` of parameters that are stored as codes but that a quantizer may quantize again.
    Raises InputError, before any work, for an unknown pass or option, or if a pass lacks what it needs.
    """
    from pathlib import Path

    from smc.passes import Context, parse_pass
    from smc.passes import apply as apply_passes

    chain = [parse_pass(item) if isinstance(item, str) else item for item in passes]
    context = Context(
        lazy=lazy, requantize=requantize, training=_train, teacher=teacher, work=None if work is None else Path(work)
    )
    if calibration is not None or any("calibration" in step.needs for step in chain):
        from smc.reference import SHIPPED_TEXT, CalibrationText

        context = replace(context, calibration=CalibrationText.read(Path(calibration or SHIPPED_TEXT), module.facts))
    if report is not None:
        context = replace(context, report=report)
    if progress is not None:
        context = replace(context, progress=progress)
    if note is not None:
        context = replace(context, note=note)
    return apply_passes(module, chain, context, after)


def _train(job: Training, module: Module, context: Context) -> Module:
    from smc.training import train

    return train(job, module, context)


@packages_named()
def compile(
    module: Module,
    target: str = "native",
    out: str | Path = "model.smc",
    *,
    progress: Callable[[str, float], None] | None = None,
    verify: bool = False,
    **options: Any,
) -> CompileReport:
    """Compile a module to the artifact `out`, one file that runs without torch and tvm.

    target: "native" for this CPU, or a name of `smc.targets.TARGETS`. options: those of `smc.codegen.CompileOptions`
    (standalone, functions, emit, emit_kinds, records, without).
    progress: called with a stage's name and how much of it is done, from 0 to 1.
    verify: run a few tokens and compare their logits with the reference's before the file gets its name, as `smc
        compile` does (docs/artifact.md): `smc.codegen.WrongProgramError` if they differ.
    `out` gets its name only when it is complete. Raises InputError for an unknown target, a full disk, an `out` that is
    not a regular file or belongs to the checkpoint, or if an executable can't have the model's tokenizer.
    """
    from smc.codegen import CompileOptions, compile_module
    from smc.passes import FUSIONS
    from smc.passes import apply as apply_passes

    fused = apply_passes(module, FUSIONS)
    expected = None
    if verify:
        from smc.reference.passing_weights import PassingWeights

        expected = PassingWeights(fused)
    return compile_module(fused, out, CompileOptions(target=target, **options), progress, expected)


@packages_named()
def load(path: str | Path, **options: Any) -> Model:
    """Open an artifact for running; for the options (context_length, threads, kv_dtype, …) see `smc.runtime.load`."""
    from smc.runtime import load as load_artifact

    return load_artifact(path, **options)


def __getattr__(name: str) -> Any:
    if name == "passes":
        return importlib.import_module("smc.passes")
    if name == "Llama":
        with packages_named():
            return importlib.import_module("smc.llama").Llama
    raise AttributeError(f"module 'smc' has no attribute {name!r}")
