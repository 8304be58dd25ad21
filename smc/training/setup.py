"""From a module and a job to parameters that are trained, and back to a module."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from smc.errors import InputError
from smc.ir import EncodedTensor, Module, Parameter
from smc.passes import Context, Pass, WeightQuantizer, load_recipe
from smc.passes.training import Training
from smc.training.weights import Fixed, Leaf, LowRank, Rescaled, Round, Trained, stored

PROJECTIONS = ("query", "key", "value", "output", "gate", "up", "down")
"""Roles of the matrices that LoRA adapts."""


def quantizers_of(job: Training) -> tuple[Pass, ...]:
    """The passes that round the weights; InputError if they can't do that in every step."""
    if job.quantize is None:
        return ()
    if job.weights == "scales":
        raise InputError(
            f"{job.name}: weights=scales and quantize exclude each other: put the quantizer before {job.name}"
        )
    passes = load_recipe(job.quantize).passes
    for step in passes:
        if isinstance(step, WeightQuantizer) and step.statistics:
            raise InputError(
                f"pass {step.name} needs a calibration text, so {job.name} can't round with it in every step: use "
                "quantize-rtn"
            )
    return passes


def roundings(module: Module, passes: tuple[Pass, ...]) -> dict[str, Round]:
    """For each parameter, what the first of these passes that selects it does to its values."""
    found: dict[str, Round] = {}
    for step in passes:
        after = step.run(module, Context(lazy=True))
        if not isinstance(step, WeightQuantizer):
            if set(after.parameters) != set(module.parameters):
                raise InputError(f"pass {step.name} adds parameters: run it before the training, not in its recipe")
            continue
        for name, parameter in after.parameters.items():
            if parameter.encoding != module.parameters[name].encoding:
                found[name] = step.encode
        module = after
    return found


def leaves_of(module: Module, job: Training, rounds: Mapping[str, Round]) -> dict[str, Leaf]:
    """For every parameter, what computes its weight; InputError if there is nothing to train."""
    picked = _picked(module, job.include)
    leaves: dict[str, Leaf] = {}
    for index, (name, parameter) in enumerate(module.parameters.items()):
        adapted = any(f.node(slot).attributes["role"] in PROJECTIONS for _, slot, f in module.uses(name))
        if job.weights == "scales" and name in picked and not parameter.encoding.is_float:
            leaves[name] = Rescaled(parameter)
        elif job.weights == "lora" and name in picked and adapted and len(parameter.shape) == 2:
            _check_float(parameter)
            leaves[name] = LowRank(parameter, job.rank, job.alpha, job.seed + index, rounds.get(name))
        elif job.weights == "all" and name in picked:
            _check_float(parameter)
            leaves[name] = Trained(parameter, rounds.get(name))
        else:
            leaves[name] = Fixed(parameter, rounds.get(name))
    if all(isinstance(leaf, Fixed) for leaf in leaves.values()):
        what = "scales" if job.weights == "scales" else "weights"
        raise InputError(f"{job.name} finds no {what} to train in {module.facts.name}: look at include and weights")
    return leaves


def _check_float(parameter: Parameter) -> None:
    if not parameter.encoding.is_float:
        raise InputError(
            f"{parameter.name} is quantized ({parameter.encoding}): train its scales (weights=scales), or decode it "
            "with the pass convert first"
        )


def _picked(module: Module, patterns: tuple[str, ...]) -> set[str]:
    """Parameters whose name, slot or role matches a pattern."""
    found = set()
    for pattern in patterns:
        hits = set()
        for call, function in module.calls():
            for slot, name in call.attributes["parameters"].items():
                aliases = (name, slot, function.node(slot).attributes["role"] or slot)
                if any(fnmatchcase(alias, pattern) for alias in aliases):
                    hits.add(name)
        if not hits:
            raise InputError(f"the pattern {pattern!r} matches no parameter of the model")
        found |= hits
    return found


def results_of(leaves: Mapping[str, Leaf]) -> dict[str, Tensor]:
    """All that was trained, as it is stored: "parameter|part" → values."""
    return {
        f"{name}|{part}": values
        for name, leaf in leaves.items()
        if not isinstance(leaf, Fixed)
        for part, values in leaf.result().items()
    }


def with_results(module: Module, path: Path, keep: object) -> Module:
    """The module with the values of a file of `results_of`, which are read when a parameter is loaded. keep: an object
    that must live as long as the module."""
    result = module.copy()
    with safe_open(path, framework="pt") as file:
        names = {key.rpartition("|")[0] for key in file.keys()}  # noqa: SIM118
    for name in names:
        parameter = module.parameters[name]
        result.parameters[name] = replace(parameter, load=partial(_load, path, parameter, keep))
    return result


def _load(path: Path, parameter: Parameter, keep: object) -> EncodedTensor:
    with safe_open(path, framework="pt") as file:
        keys = [key for key in file.keys() if key.rpartition("|")[0] == parameter.name]  # noqa: SIM118
        parts = {key.rpartition("|")[2]: file.get_tensor(key) for key in keys}
    try:
        return stored(parameter, parts)
    except InputError as error:
        raise InputError(f"{parameter.name}: {error}") from error


def key_of(job: Training, module: Module, teacher: Module | None, files: list[Path]) -> str:
    """A short hash of all that a run depends on: the job, the origins of the models, and the texts."""
    digest = hashlib.sha256(str(job).encode())
    for model in (module, teacher):
        if model is not None:
            digest.update("\n".join(model.facts.provenance).encode())
            if model.facts.source is not None and model.facts.source.exists():
                facts = model.facts.source.stat()
                digest.update(f"{model.facts.source.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode())
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"-")
    return digest.hexdigest()[:16]


def has_bf16() -> bool:
    """Whether this CPU has instructions that multiply bf16 matrices."""
    if torch.cuda.is_available():
        return True
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(words))
