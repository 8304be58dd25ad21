"""Makes the kit: everything that can be prepared without a GPU. No weights of large models are read or written."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import smc
from benchmarks.checkpoints import write_config
from benchmarks.kernel_inputs import random_tensor
from benchmarks.models import SMOLLM2_CONFIG, TINYLLAMA_CONFIG, llama_shapes, random
from smc.codegen.assembly import Parcel
from smc.codegen.backends import find_backend
from smc.codegen.build import Program, Tuned
from smc.codegen.cpu.link import engine_folder, link_program
from smc.codegen.cuda.encodings import encoding_struct
from smc.codegen.cuda.image import build_image
from smc.codegen.cuda.program import DEVICE_FILES, device_folder
from smc.codegen.kernels.layout import MatrixLayout
from smc.codegen.packing import pack_matrix
from smc.codegen.plan.planner import make_plan
from smc.codegen.schedule.memory import plan_memory
from smc.codegen.weights import place_weights, write_weights
from smc.ir import F16, Encoding, Module, integer, matrix_shape
from smc.passes import FUSIONS, load_recipe
from smc.reference import ExactReference
from smc.targets import CUDA, TARGETS

KIT = Path(__file__).parent
STAMP_ROWS = 128
"""Of a large matrix these many are packed; the matrix has them again and again."""

TINY = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LLAMA_7B = {
    **TINYLLAMA_CONFIG,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
SHAPES: dict[str, dict[str, Any]] = {
    "135m": {**SMOLLM2_CONFIG, "max_position_embeddings": 4096},
    "1.1b": {**TINYLLAMA_CONFIG, "max_position_embeddings": 4096},
    "7b": LLAMA_7B,
}

ENCODINGS: dict[str, list[Encoding]] = {
    "codes": [integer(bits) for bits in range(1, 9)],
    "float": [F16, Encoding.of(bits=4, activation="none"), integer(4, symmetric=False), Encoding.of("base3")],
    "groups": [Encoding.of(bits=4, activation_group=128), integer(8, group="row", activation_group="token")],
}
"""Of the small models whose bits are compared; the matrices of each have its encodings in turn."""

PROBE_NAME = "smc_program_" + "0" * 32


@dataclass
class Kit:
    """A kit under construction. small: for tests, one model and no large ones."""

    folder: Path
    target: str
    small: bool
    stamps: bytes = b""

    def add_stamp(self, data: bytes) -> tuple[int, int]:
        """Where the bytes are in the file of stamps."""
        place = self.stamps.find(data)
        if place < 0:
            place = len(self.stamps)
            self.stamps += data
        return place, len(data)


def make_kit(folder: Path, target: str = "cuda", small: bool = False) -> int:
    """Write the kit into a new folder; its size in bytes."""
    folder.mkdir(parents=True)
    kit = Kit(folder, target, small)
    models = [_checked_model(kit, name) for name in list(ENCODINGS)[: 1 if small else None]]
    shapes = {"tiny": {**TINY, "num_hidden_layers": 1}} if small else SHAPES
    models += [_timed_model(kit, name, config) for name, config in shapes.items()]
    (folder / "stamps.bin").write_bytes(kit.stamps)
    description = {"made_by": f"smc {smc.__version__}", "models": models, "probe": _probe(kit)}
    (folder / "kit.json").write_text(json.dumps(description), encoding="utf-8")
    for name in ("run.py", "engine.py", "probe.py", "gguf.py"):
        shutil.copy(KIT / name, folder / name)
    return sum(path.stat().st_size for path in folder.iterdir())


def _program(kit: Kit, name: str, module: Module) -> tuple[Program, dict[str, Any]]:
    """A model's program as a shared library in the kit, and what the kit says of it."""
    target = TARGETS[kit.target]
    backend, plan = find_backend(target), make_plan(smc.apply(module, FUSIONS))
    schedule = backend.schedule(plan)
    program = Program(schedule, plan_memory(schedule), place_weights(plan))
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        built = backend.build(program, target, Tuned(kit.target), folder, lambda fraction: None)
        source = folder / "program.c"
        source.write_text(Parcel(backend, program, built, target).text("0" * 64), encoding="utf-8")
        link_program(source, built.files, target, folder / "program.so")
        shutil.copy(folder / "program.so", kit.folder / f"{name}.so")
        if kit.small:
            built.write_listings(target, kit.folder, ("cu",))
            (kit.folder / "program.cu").rename(kit.folder / f"{name}.cu")
    facts = {"name": name, "program": f"{name}.so", "weight_bytes": program.table.total_bytes}
    matrices = [list(matrix_shape(p.shape)) for p in plan.multiplied()]
    return program, {**facts, "context": module.facts.context_length, "matrices": matrices}


def _checked_model(kit: Kit, name: str) -> dict[str, Any]:
    """A small model with all its weights, and the digests of the exact reference's logits."""
    with tempfile.TemporaryDirectory() as work:
        random(Path(work) / "checkpoint", TINY)
        module = _encoded(smc.load_checkpoint(Path(work) / "checkpoint"), ENCODINGS[name])
        program, facts = _program(kit, name, module)
        packed = Path(work) / "weights"
        with open(packed, "wb") as out:
            write_weights(program.schedule.plan, program.table, CUDA.family, out, lambda fraction: None)
        data = packed.read_bytes()
        count = 24 if kit.small else 300
        tokens = torch.randint(0, TINY["vocab_size"], (count,), generator=torch.Generator().manual_seed(1)).tolist()
        chunks = [[count - 4, 1, 3], [count // 2, *[1] * (count - count // 2)]]
        expected = {}
        for kv_dtype in ["f16"] if kit.small else ["f16", "i8"]:
            logits = ExactReference(module, kv_dtype).logits(torch.tensor(tokens)).numpy().astype("<f4")
            expected[kv_dtype] = hashlib.sha256(np.ascontiguousarray(logits).tobytes()).hexdigest()
    pieces = [[*kit.add_stamp(data), 0, len(data)]]
    return {**facts, "pieces": pieces, "tokens": tokens, "chunks": chunks, "expected": expected, "timed": False}


def _encoded(module: Module, encodings: Sequence[Encoding]) -> Module:
    result = module.copy()
    matrices = [name for name, parameter in module.parameters.items() if len(parameter.shape) == 2]
    for place, name in enumerate(matrices):
        encoding = encodings[place % len(encodings)]
        load = functools.partial(random_tensor, encoding, *module.parameters[name].shape, place)
        result.parameters[name] = replace(module.parameters[name], encoding=encoding, load=load)
    return result


def _timed_model(kit: Kit, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """A large model, int4-plain: its program and stamps of its matrices."""
    with tempfile.TemporaryDirectory() as work:
        module = smc.apply(
            smc.load_checkpoint(_hollow(Path(work) / "checkpoint", config)), load_recipe("int4-plain").passes
        )
        program, facts = _program(kit, name, module)
    pieces = []
    for parameter in program.schedule.plan.matrices():
        rows, columns = matrix_shape(parameter.shape)
        layout, place = MatrixLayout(parameter.encoding, rows, columns), program.table.matrices[parameter.name]
        pieces += [
            [*kit.add_stamp(stamp), place.codes + begin, size]
            for stamp, begin, size in _stamps(parameter.encoding, layout)
        ]
    for parameter in program.schedule.plan.vectors():
        ones = kit.add_stamp(struct.pack("<f", 1.0) * 32)
        pieces.append([*ones, program.table.vectors[parameter.name], parameter.shape[0] * 4])
    return {**facts, "config": config, "pieces": sorted(pieces, key=lambda piece: piece[2]), "timed": True}


@functools.cache
def _packed_stamp(encoding: Encoding, columns: int) -> bytes:
    tensor = random_tensor(encoding, STAMP_ROWS, columns, columns)
    small = tensor.scales / tensor.scales.abs().max() * 0.3 / columns**0.5  # so that values neither grow nor vanish
    return pack_matrix(replace(tensor, scales=small.half().float()), CUDA.family).tobytes()


def _stamps(encoding: Encoding, layout: MatrixLayout) -> list[tuple[bytes, int, int]]:
    """Of each part of a packed matrix: what repeats, where the part begins and how long it is."""
    if encoding.stores_minima or encoding.scales.super_group or encoding.is_float:
        raise ValueError(f"stamps of {encoding} would not repeat")
    packed, stamp = _packed_stamp(encoding, layout.columns), MatrixLayout(encoding, STAMP_ROWS, layout.columns)
    parts = [(0, stamp.codes_bytes, 0, layout.codes_bytes)]
    if layout.scales_bytes:
        parts.append((stamp.scales_offset, stamp.scales_bytes, layout.scales_offset, layout.scales_bytes))
    if layout.zeros_bytes:
        parts.append((stamp.zeros_offset, stamp.zeros_bytes, layout.zeros_offset, layout.zeros_bytes))
    return [(packed[begin : begin + size], place, whole) for begin, size, place, whole in parts]


def _hollow(folder: Path, config: dict[str, Any]) -> Path:
    """A checkpoint whose file of tensors has a header and a hole behind it: only shapes are ever read."""
    folder.mkdir()
    write_config(folder, config)
    header, size = {}, 0
    for name, shape in llama_shapes(config):
        bytes_of = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [size, size + bytes_of]}
        size += bytes_of
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + size)
    return folder


def _probe(kit: Kit) -> dict[str, str]:
    """The probe's machine code, by architecture."""
    files = [
        device_folder() / "base.cuh",
        engine_folder() / "step.h",
        *(device_folder() / name for name in DEVICE_FILES),
    ]
    parts = [path.read_text(encoding="utf-8") for path in files]
    parts += ["\n".join(encoding_struct("E_int4_g32", integer(4))), (KIT / "probe.cu").read_text(encoding="utf-8")]
    text = "\n".join([*parts, f"SMC_MARK uint32_t {PROBE_NAME} = 1;\n"])
    if kit.small:
        (kit.folder / "probe.cu").write_text(text, encoding="utf-8")
    images = {}
    for level in TARGETS[kit.target].gpu_levels:
        name = f"probe.{level.name}"
        (kit.folder / name).write_bytes(build_image(text, level))
        images["ptx" if level.ptx else str(level.architecture)] = name
    return images
