"""A model of the kit through the engine's C interface (engine.h); of Python's own library alone, for it travels."""

from __future__ import annotations

import ctypes
import hashlib
import json
import struct
import time
import zipfile
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int32, c_uint32, c_uint64, c_void_p
from pathlib import Path

ABI_VERSION = 8
WANT_LOGITS, WANT_ARGMAX = 1, 4
KV_DTYPES = {"f16": 0, "f32": 1, "i8": 2}
ALIGNMENT = 1 << 16


class Options(ctypes.Structure):
    """smc_options."""

    _fields_ = [
        ("size", c_uint32),
        ("context_length", c_int32),
        ("sequences", c_int32),
        ("kv_dtype", c_int32),
        ("threads", c_int32),
        ("path", c_char_p),
        ("level", c_char_p),
        ("pool", c_void_p),
        ("adapter", c_void_p),
        ("log", c_void_p),
        ("log_user", c_void_p),
    ]


class Info(ctypes.Structure):
    """smc_info."""

    _fields_ = [
        ("size", c_uint32),
        *((name, c_int32) for name in ("layers", "vocab_size", "hidden_size", "logits_stride", "context_length")),
        *((name, c_int32) for name in ("sequences", "threads", "kv_dtype", "max_step_tokens", "finds_argmax")),
        ("kv_page_tokens", c_int32),
        ("name", c_char_p),
        ("level", c_char_p),
        *((name, c_uint64) for name in ("weight_bytes", "token_weight_bytes", "kv_bytes_per_token")),
        *((name, c_uint64) for name in ("state_bytes_per_sequence", "kv_bytes_used", "activation_bytes")),
    ]


class Token(ctypes.Structure):
    """smc_token."""

    _fields_ = [
        *((name, c_int32) for name in ("token", "sequence", "position", "index")),
        ("flags", c_uint32),
        ("parent", c_int32),
    ]


class Batch(ctypes.Structure):
    """smc_batch."""

    _fields_ = [
        ("count", c_int32),
        ("tokens", c_void_p),
        ("logits", c_void_p),
        ("hidden", c_void_p),
        ("argmax", c_void_p),
        ("cancels", c_uint32),
    ]


class Api(ctypes.Structure):
    """The beginning of smc_engine_api."""

    _fields_ = [
        ("abi_version", c_uint32),
        ("size", c_uint32),
        ("pool_create", c_void_p),
        ("pool_destroy", c_void_p),
        ("open", CFUNCTYPE(c_int, POINTER(Options), POINTER(c_void_p), c_char_p)),
        ("close", CFUNCTYPE(None, c_void_p)),
        ("info", CFUNCTYPE(c_int, c_void_p, POINTER(Info), c_char_p)),
        ("step", CFUNCTYPE(c_int, c_void_p, POINTER(Batch), c_char_p)),
        ("cancel", c_void_p),
        ("cancels", CFUNCTYPE(c_uint32, c_void_p)),
        ("sequence_create", CFUNCTYPE(c_int, c_void_p, c_char_p)),
        ("sequence_fork", c_void_p),
        ("sequence_truncate", CFUNCTYPE(c_int, c_void_p, c_int32, c_int32, c_char_p)),
    ]


def write_weights(kit: Path, model: dict, out: Path) -> None:
    """The weights of a model of the kit as the archive that the engine opens.

    Every matrix is its stamp, over and over: some of its rows, packed by smc's own code when the kit was made.
    """
    size = model["weight_bytes"]
    info = zipfile.ZipInfo("weights", (1980, 1, 1, 0, 0, 0))
    info.file_size = size
    zip64 = size * 1.05 > zipfile.ZIP64_LIMIT
    gap = -(30 + len("weights") + (20 if zip64 else 0)) % ALIGNMENT
    info.extra = struct.pack("<HH", 0x6D73, gap - 4) + bytes(gap - 4)
    with open(kit / "stamps.bin", "rb") as stamps, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(info, "w", force_zip64=zip64) as member:
            done = 0
            for begin, stamp_bytes, offset, count in model["pieces"]:
                member.write(bytes(offset - done))
                stamps.seek(begin)
                stamp = stamps.read(stamp_bytes)
                many = stamp * max(1, (4 << 20) // len(stamp))
                left = count
                while left > 0:
                    left -= member.write(many[:left])
                done = offset + count
            member.write(bytes(size - done))
        info.extra = b""


class Model:
    """A program of the kit with its weights, opened; RuntimeError with the engine's sentence for what fails."""

    def __init__(self, kit: Path, model: dict, weights: Path, kv_dtype: str = "f16", sequences: int = 1) -> None:
        library = ctypes.CDLL(str(kit / model["program"]))
        self.api = Api.in_dll(library, "smc_engine")
        if self.api.abi_version != ABI_VERSION:
            raise RuntimeError(f"{model['program']} has version {self.api.abi_version} of the engine's interface")
        options = Options(size=ctypes.sizeof(Options), sequences=sequences, kv_dtype=KV_DTYPES[kv_dtype])
        options.context_length, options.path = model["context"], str(weights).encode()
        self.handle, self.error = c_void_p(), ctypes.create_string_buffer(512)
        self.check(self.api.open(ctypes.byref(options), ctypes.byref(self.handle), self.error))
        self.info = Info(size=ctypes.sizeof(Info))
        self.check(self.api.info(self.handle, ctypes.byref(self.info), self.error))
        self.slots = [self.check(self.api.sequence_create(self.handle, self.error)) for _ in range(sequences)]
        self.lengths = [0] * sequences

    def check(self, status: int) -> int:
        """The status, or a slot, unless it is a failure."""
        if status < 0:
            raise RuntimeError(self.error.value.decode())
        return status

    def close(self) -> None:
        """Free what the model holds."""
        self.api.close(self.handle)

    def truncate(self, length: int) -> None:
        """All sequences forget what is behind."""
        for place, slot in enumerate(self.slots):
            self.check(self.api.sequence_truncate(self.handle, slot, length, self.error))
            self.lengths[place] = length

    def step(self, tokens: list, wants: int, sequences: int = 1) -> bytes:
        """Run tokens, in turn of the sequences; the logits of all that want them, or the ids of the largest."""
        batch = (Token * len(tokens))()
        each = len(tokens) // sequences
        for place, token in enumerate(tokens):
            index = self.lengths[place // each] + place % each
            batch[place] = Token(token, self.slots[place // each], index, index, wants, 0)
        stride = self.info.logits_stride
        logits = (ctypes.c_float * (stride * len(tokens)))() if wants == WANT_LOGITS else None
        ids = (c_int32 * len(tokens))()
        pointer = ctypes.addressof(logits) if logits is not None else None
        given = Batch(len(tokens), ctypes.addressof(batch), pointer, None, ctypes.addressof(ids))
        given.cancels = self.api.cancels(self.handle)
        self.check(self.api.step(self.handle, ctypes.byref(given), self.error))
        for place in range(sequences):
            self.lengths[place] += each
        if logits is None:
            return bytes(ids)
        rows = (bytes(memoryview(logits)[i * stride : i * stride + self.info.vocab_size]) for i in range(len(tokens)))
        return b"".join(rows)

    def digest(self, tokens: list, chunks: list) -> str:
        """SHA-256 of the logits of all tokens, which come in chunks of these lengths."""
        hashed, done = hashlib.sha256(), 0
        for count in chunks:
            hashed.update(self.step(tokens[done : done + count], WANT_LOGITS))
            done += count
        return hashed.hexdigest()

    def decode_rate(self, depth: int, count: int, sequences: int = 1) -> float:
        """Tokens per second of all sequences together, behind `depth` tokens each; the id of the largest logit is
        what a step gives."""
        self.truncate(0)
        vocabulary = self.info.vocab_size
        for place in range(sequences if depth else 0):
            self.prompt(place, depth)
        self.step([7] * sequences, WANT_ARGMAX, sequences)
        begin = time.perf_counter()
        for i in range(count):
            self.step([(7919 * (i + j)) % vocabulary for j in range(sequences)], WANT_ARGMAX, sequences)
        return count * sequences / (time.perf_counter() - begin)

    def prompt(self, place: int, count: int) -> float:
        """Seconds of so many tokens of one sequence, which want nothing but the last's id."""
        batch = (Token * count)()
        for i in range(count):
            index = self.lengths[place] + i
            wants = WANT_ARGMAX if i == count - 1 else 0
            batch[i] = Token(7919 * i % self.info.vocab_size, self.slots[place], index, index, wants, 0)
        ids = (c_int32 * 1)()
        given = Batch(count, ctypes.addressof(batch), None, None, ctypes.addressof(ids))
        given.cancels = self.api.cancels(self.handle)
        begin = time.perf_counter()
        self.check(self.api.step(self.handle, ctypes.byref(given), self.error))
        seconds = time.perf_counter() - begin
        self.lengths[place] += count
        return seconds


def read_kit(folder: Path) -> dict:
    """The kit's list of what it holds."""
    with open(folder / "kit.json", encoding="utf-8") as file:
        kit: dict = json.load(file)
    return kit
