"""smc: a compiler for small language models.

::

    import smc

    module = smc.load_checkpoint("SmolLM2-135M-Instruct")           # a folder, a hub id or a GGUF file
    module = smc.apply(module, ["quantize-rtn:bits=4,group=32"])    # smc.passes has what there is
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
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from smc import passes
    from smc.codegen import CompileReport
    from smc.ir import EncodedTensor, Module
    from smc.passes import Pass
    from smc.runtime import Model

__version__ = VERSION

__all__ = ["InputError", "apply", "compile", "load", "load_checkpoint", "passes"]


@packages_named()
def load_checkpoint(source: str | Path, adapters: Sequence[str | Path] = ()) -> Module:
    """The model in a checkpoint as ir; weights are read later, one tensor at a time.

    source: a folder in the Hugging Face layout, a model id of the Hugging Face hub, or a .gguf file.
    adapters: folders of LoRA adapters in PEFT's layout, merged in this order (docs/formats.md).
    Raises InputError where there is none, where it is broken, or where its kind is not supported.
    """
    from smc.frontend import load_checkpoint as load_source

    return load_source(source, adapters)


@packages_named()
def apply(
    module: Module,
    passes: Sequence[Pass | str],
    calibration: str | Path | None = None,
    *,
    report: Callable[[str], None] | None = None,
    progress: Callable[[float], None] | None = None,
    lazy: bool = False,
    requantize: frozenset[Callable[[], EncodedTensor]] = frozenset(),
) -> Module:
    """Run passes in order; each is an object of `smc.passes` or text such as "quantize-rtn:bits=4,group=32".

    calibration: a text file for passes that take statistics. The given module stays as it is.
    report: called with a line for every pass that ran. progress: called with how much is done, from 0 to 1.
    lazy: long work waits until a parameter is loaded, and so does the need of a calibration text.
    requantize: the `load` of parameters that are stored as codes and that a quantizer may quantize again all the same.
    Raises InputError, before any work, for an unknown pass or option or where a pass lacks what it needs.
    """
    from pathlib import Path

    from smc.passes import Context
    from smc.passes import apply as apply_passes

    context = Context(lazy=lazy, requantize=requantize)
    if calibration is not None:
        from smc.reference import CalibrationText

        context = replace(context, calibration=CalibrationText.read(Path(calibration), module.facts))
    if report is not None:
        context = replace(context, report=report)
    if progress is not None:
        context = replace(context, progress=progress)
    return apply_passes(module, passes, context)


@packages_named()
def compile(
    module: Module,
    target: str = "native",
    out: str | Path = "model.smc",
    *,
    standalone: bool = False,
    progress: Callable[[str, float], None] | None = None,
    emit: Path | None = None,
    emit_kinds: Sequence[str] = (),
    records: Path | None = None,
    without: Collection[str] = (),
) -> CompileReport:
    """Compile a module to the artifact `out`, one file that runs without torch and tvm.

    target: "native" for this CPU, or a name of `smc.targets.TARGETS`.
    standalone: make the file an executable as well, which runs without anything else (see docs/artifact.md).
    progress: called with a stage's name and how much of it is done, from 0 to 1.
    emit: a folder for what lies between, of the kinds "plan" (kernels on buffers), "schedule" (phases of tasks), "c"
        (host program), "tir" (kernels), "asm" and "obj" (their machine code).
    records: a file of tuning records (docs/tuning.md); without it those that `smc tune` wrote count.
    without: fast paths to leave out, which changes speed and no result (docs/extending.md): for developers.
    `out` appears only when it is complete. Raises InputError for an unknown target, a disk that is too full, an `out`
    that is no regular file or belongs to the checkpoint, or where an executable can't have the model's tokenizer.
    """
    from smc.codegen import compile_module
    from smc.passes import FUSIONS
    from smc.passes import apply as apply_passes

    fused = apply_passes(module, FUSIONS)
    return compile_module(
        fused,
        target,
        out,
        standalone=standalone,
        progress=progress,
        emit=emit,
        emit_kinds=emit_kinds,
        records=records,
        without=without,
    )


@packages_named()
def load(path: str | Path, **options: Any) -> Model:
    """Open an artifact for running; for the options (context_length, threads, kv_dtype, …) see `smc.runtime.load`."""
    from smc.runtime import load as load_artifact

    return load_artifact(path, **options)


def __getattr__(name: str) -> Any:
    if name == "passes":
        return importlib.import_module("smc.passes")
    raise AttributeError(f"module 'smc' has no attribute {name!r}")
