"""The engine of a program.so through ctypes: structures and functions of engine/engine.h, one to one.

`Engine` is one opened model. Its program is loaded once a process, however many models run it, and unloaded with the
last of them. Threads are one pool a process for each requested count, shared by all models.
"""

from __future__ import annotations

import _ctypes
import ctypes
import hashlib
import os
import tempfile
import threading
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from smc.errors import InputError
from smc.runtime.profile import Limits, LimitsStruct, Profile, ProfileStruct

ABI_VERSION = 6

BAD_INPUT, NO_MEMORY, CANCELLED, NO_SPACE, UNSUPPORTED, FAILED = -1, -2, -3, -4, -5, -6
_USERS = {BAD_INPUT, NO_MEMORY, NO_SPACE, UNSUPPORTED}

KV_DTYPES = {"f16": 0, "f32": 1, "i8": 2}
WANT_LOGITS, WANT_HIDDEN, WANT_TOP = 1, 2, 4

TOKEN = np.dtype(
    [("token", "<i4"), ("sequence", "<i4"), ("position", "<i4"), ("index", "<i4"), ("flags", "<u4"), ("parent", "<i4")],
    align=True,
)
"""One token of a batch: id, sequence slot, rotary position, cache index, WANT_… flags, 0 (reserved for trees)."""


class CancelledError(Exception):
    """A step was stopped by `Engine.cancel`; the sequences are as before the step."""


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
    """smc_info: facts of an opened model."""

    _fields_ = [
        ("size", c_uint32),
        ("layers", c_int32),
        ("vocab_size", c_int32),
        ("hidden_size", c_int32),
        ("logits_stride", c_int32),
        ("context_length", c_int32),
        ("sequences", c_int32),
        ("threads", c_int32),
        ("kv_dtype", c_int32),
        ("max_step_tokens", c_int32),
        ("finds_top", c_int32),
        ("kv_page_tokens", c_int32),
        ("name", c_char_p),
        ("level", c_char_p),
        ("weight_bytes", c_uint64),
        ("token_weight_bytes", c_uint64),
        ("kv_bytes_per_token", c_uint64),
        ("state_bytes_per_sequence", c_uint64),
        ("kv_bytes_used", c_uint64),
        ("activation_bytes", c_uint64),
    ]


class Batch(ctypes.Structure):
    """smc_batch."""

    _fields_ = [
        ("count", c_int32),
        ("tokens", c_void_p),
        ("logits", c_void_p),
        ("hidden", c_void_p),
        ("top", c_void_p),
    ]


class Api(ctypes.Structure):
    """smc_engine_api: the table that a program exports."""

    _fields_ = [
        ("abi_version", c_uint32),
        ("size", c_uint32),
        ("pool_create", CFUNCTYPE(c_int, c_int32, POINTER(c_void_p))),
        ("pool_destroy", CFUNCTYPE(None, c_void_p)),
        ("open", CFUNCTYPE(c_int, POINTER(Options), POINTER(c_void_p), c_char_p, c_size_t)),
        ("close", CFUNCTYPE(None, c_void_p)),
        ("error", CFUNCTYPE(c_char_p, c_void_p)),
        ("info", CFUNCTYPE(c_int, c_void_p, POINTER(Info))),
        ("step", CFUNCTYPE(c_int, c_void_p, POINTER(Batch))),
        ("cancel", CFUNCTYPE(None, c_void_p)),
        ("sequence_create", CFUNCTYPE(c_int, c_void_p)),
        ("sequence_fork", CFUNCTYPE(c_int, c_void_p, c_int32)),
        ("sequence_truncate", CFUNCTYPE(c_int, c_void_p, c_int32, c_int32)),
        ("sequence_drop", CFUNCTYPE(c_int, c_void_p, c_int32)),
        ("sequence_length", CFUNCTYPE(c_int, c_void_p, c_int32)),
        ("sequence_save", CFUNCTYPE(c_int, c_void_p, c_int32, c_void_p, POINTER(c_uint64))),
        ("sequence_restore", CFUNCTYPE(c_int, c_void_p, c_void_p, c_uint64)),
        ("profile_start", CFUNCTYPE(c_int, c_void_p)),
        ("profile_stop", CFUNCTYPE(c_int, c_void_p, POINTER(ProfileStruct))),
        ("limits", CFUNCTYPE(c_int, c_void_p, POINTER(LimitsStruct))),
    ]


class Library:
    """A loaded program, counted by its users; `acquire` and `release` come in pairs."""

    _loaded: ClassVar[dict[str, Library]] = {}
    _lock = threading.RLock()

    def __init__(self, digest: str, program: bytes) -> None:
        self._digest = digest
        self._users = 0
        self._memory_file: int | None = None
        self._library = self._load(program)
        try:
            api = Api.in_dll(self._library, "smc_engine")
            if api.abi_version != ABI_VERSION:
                raise InputError(
                    f"the artifact's program has engine interface {api.abi_version}, this smc speaks {ABI_VERSION}; "
                    "compile it again or install the smc that made it"
                )
            if api.size < ctypes.sizeof(Api):
                raise InputError("the artifact's program is damaged: its function table is too small; compile it again")
        except ValueError:
            self._unload()
            raise InputError("the artifact's program is no smc engine; compile it again") from None
        except InputError:
            self._unload()
            raise
        self.api = api

    @classmethod
    def acquire(cls, program: bytes) -> Library:
        """The library of these bytes, loaded at the first call."""
        digest = hashlib.sha256(program).hexdigest()
        with cls._lock:
            library = cls._loaded.get(digest)
            if library is None:
                library = cls._loaded[digest] = cls(digest, program)
            library._users += 1
            return library

    def release(self) -> None:
        """Unload the program after its last user."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                del self._loaded[self._digest]
                self._unload()

    def retain(self) -> Library:
        """Count one more user."""
        with self._lock:
            self._users += 1
            return self

    def _load(self, program: bytes) -> ctypes.CDLL:
        """Load from memory, or from a private temporary file where the system has no such thing or forbids it."""
        if hasattr(os, "memfd_create"):
            try:
                file = os.memfd_create("smc-program", os.MFD_CLOEXEC)
            except OSError:
                file = -1
            if file >= 0:
                # The descriptor stays open as long as the library is loaded: glibc knows a library by its path, so
                # a second program on a reused number would be taken for the first.
                try:
                    _write_all(file, program)
                    library = ctypes.CDLL(f"/proc/self/fd/{file}", mode=os.RTLD_NOW | os.RTLD_LOCAL)
                    self._memory_file = file
                    return library
                except OSError:
                    os.close(file)
        try:
            with tempfile.TemporaryDirectory(prefix="smc-") as folder:  # only its owner can enter
                path = Path(folder) / "program.so"
                path.write_bytes(program)
                return self._open(path)
        except OSError as error:
            raise InputError(
                "the artifact's program can't be loaded, since the system gives neither a file in memory nor a "
                f"temporary one ({error.strerror}); set TMPDIR to a folder where files can be written and executed"
            ) from None

    @staticmethod
    def _open(path: Path) -> ctypes.CDLL:
        """Load the library of this path."""
        try:
            return ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL)
        except OSError as error:
            raise InputError(
                f"this system can't load the artifact's program ({error}); compile it here with --target native"
            ) from None

    def _unload(self) -> None:
        handle = self._library._handle
        _ctypes.dlclose(handle)
        if self._memory_file is None:
            return
        try:
            again = ctypes.CDLL(f"/proc/self/fd/{self._memory_file}", mode=os.RTLD_NOLOAD)
        except OSError:
            os.close(self._memory_file)
        else:  # something else holds the library: then its path must stay taken
            _ctypes.dlclose(again._handle)


class Pool:
    """Threads that the models of this process share: one pool for each requested number of threads (0: automatic).

    The pool runs code of the program that made it, so it holds that library.
    """

    _pools: ClassVar[dict[tuple[int, int], Pool]] = {}

    def __init__(self, key: tuple[int, int], library: Library) -> None:
        self._key = key
        self._users = 0
        self.pointer = c_void_p()
        status = library.api.pool_create(key[1], ctypes.byref(self.pointer))
        if status < 0:
            # Where the machine refuses them, too: nothing but another number helps.
            raise InputError(f"the engine can't start {key[1] or 'so many'} threads; give fewer")
        self._library = library.retain()

    @classmethod
    def acquire(cls, threads: int, library: Library) -> Pool:
        """The pool of so many threads, made by `library` at the first call."""
        key = (os.getpid(), threads)  # threads do not survive a fork
        with Library._lock:
            pool = cls._pools.get(key)
            if pool is None:
                pool = cls._pools[key] = cls(key, library)
            pool._users += 1
            return pool

    def release(self) -> None:
        """End the threads after the last user."""
        with Library._lock:
            self._users -= 1
            if self._users == 0:
                del self._pools[self._key]
                if self._key[0] == os.getpid():
                    self._library.api.pool_destroy(self.pointer)
                    self._library.release()


class Engine:
    """One opened model: the functions of engine.h as methods.

    Failures raise InputError where the input or the machine's means are at fault, `CancelledError` after `cancel`,
    RuntimeError otherwise. Close it (or use it as a context manager); afterwards every method raises ValueError.
    `facts` is the engine's info at the opening.
    """

    facts: Info

    def __init__(
        self,
        path: str | Path,
        program: bytes,
        *,
        context_length: int = 0,
        sequences: int = 1,
        kv_dtype: str = "f16",
        threads: int = 0,
        level: str | None = None,
    ) -> None:
        if kv_dtype not in KV_DTYPES:
            raise InputError(f"kv_dtype is {kv_dtype!r}, but must be one of {', '.join(KV_DTYPES)}")
        for name, value in (("context_length", context_length), ("sequences", sequences), ("threads", threads)):
            if not 0 <= value < 1 << 31:
                raise InputError(f"{name} is {value}, but must be from 0 (automatic) to {(1 << 31) - 1}")
        self._model = c_void_p()
        self._process = os.getpid()
        self._library = Library.acquire(program)
        try:
            self._pool = Pool.acquire(threads, self._library)
        except BaseException:
            self._library.release()
            raise
        self._api = self._library.api
        options = Options(
            size=ctypes.sizeof(Options),
            context_length=context_length,
            sequences=sequences,
            kv_dtype=KV_DTYPES[kv_dtype],
            threads=threads,
            path=os.fsencode(path),
            level=None if level is None else level.encode(),
            pool=self._pool.pointer,
        )
        message = ctypes.create_string_buffer(1024)
        try:
            status = self._api.open(ctypes.byref(options), ctypes.byref(self._model), message, len(message))
            if status < 0:
                raise _failure(status, message.value.decode("utf-8", "replace"))
        except BaseException:
            self._pool.release()
            self._library.release()
            raise
        self.facts = self.info()

    @property
    def handle(self) -> c_void_p:
        """The smc_model; raises ValueError after `close`."""
        if not self._model:
            raise ValueError("the model is closed")
        return self._model

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._model

    def info(self) -> Info:
        """Facts of the model; kv_bytes_used is of this moment."""
        info = Info(size=ctypes.sizeof(Info))
        self._check(self._api.info(self.handle, ctypes.byref(info)))
        return info

    def step(
        self,
        tokens: NDArray[np.void],
        logits: NDArray[np.float32] | None = None,
        hidden: NDArray[np.float32] | None = None,
    ) -> NDArray[np.int32]:
        """Run a batch: `tokens` is a contiguous array of `TOKEN`.

        logits: [tokens that want them, facts.logits_stride], hidden: [tokens that want it, facts.hidden_size]; both
        contiguous float32, written in batch order. Returns the ids of the largest logits of those with WANT_TOP.
        """
        if tokens.dtype != TOKEN or not tokens.flags.c_contiguous:
            raise TypeError("tokens must be a contiguous array of binding.TOKEN")
        wanted = [(tokens["flags"] & flag).astype(bool).sum() for flag in (WANT_LOGITS, WANT_HIDDEN)]
        pointers = [
            _rows_pointer(name, rows, int(count), width)
            for name, rows, count, width in (
                ("logits", logits, wanted[0], self.facts.logits_stride),
                ("hidden", hidden, wanted[1], self.facts.hidden_size),
            )
        ]
        top = np.empty(int((tokens["flags"] & WANT_TOP).astype(bool).sum()), np.int32)
        self.run(Batch(len(tokens), tokens.ctypes.data, *pointers, top.ctypes.data))
        return top

    def run(self, batch: Batch) -> None:
        """Run a batch whose buffers the caller vouches for: the way of `step` without its checks, for tight loops."""
        self._check(self._api.step(self.handle, ctypes.byref(batch)))

    def cancel(self) -> None:
        """Make a running step end at the next layer; may be called from any thread."""
        if self._model:
            self._api.cancel(self._model)

    def sequence_create(self) -> int:
        """A new, empty sequence's slot."""
        return self._check(self._api.sequence_create(self.handle))

    def sequence_fork(self, sequence: int) -> int:
        """A new slot that shares the past of `sequence`."""
        return self._check(self._api.sequence_fork(self.handle, sequence))

    def sequence_truncate(self, sequence: int, length: int) -> None:
        """Forget what lies behind the first `length` tokens."""
        self._check(self._api.sequence_truncate(self.handle, sequence, length))

    def sequence_drop(self, sequence: int) -> None:
        """Free the slot."""
        self._check(self._api.sequence_drop(self.handle, sequence))

    def sequence_length(self, sequence: int) -> int:
        """Tokens that the sequence holds."""
        return self._check(self._api.sequence_length(self.handle, sequence))

    def sequence_save(self, sequence: int) -> bytes:
        """The K and V of a sequence, for `sequence_restore` in a model of the same artifact and KV dtype."""
        size = c_uint64(0)
        self._api.sequence_save(self.handle, sequence, None, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(self._api.sequence_save(self.handle, sequence, buffer, ctypes.byref(size)))
        return buffer.raw[: size.value]

    def sequence_restore(self, data: bytes) -> int:
        """A new slot with what `sequence_save` gave. Raises InputError where it does not fit this model."""
        return self._check(self._api.sequence_restore(self.handle, data, len(data)))

    def profile_start(self) -> None:
        """Take the steps from here on apart; a profile that was running is forgotten."""
        self._check(self._api.profile_start(self.handle))

    def profile_stop(self) -> Profile:
        """Where the time went since `profile_start`. Raises InputError without one."""
        profile = ProfileStruct(size=ctypes.sizeof(ProfileStruct))
        self._check(self._api.profile_stop(self.handle, ctypes.byref(profile)))
        return Profile.of(profile)

    def limits(self, threads: int) -> Limits:
        """Measure for about a second what the machine can do with 1 … facts.threads threads."""
        limits = LimitsStruct(size=ctypes.sizeof(LimitsStruct), threads=threads)
        self._check(self._api.limits(self.handle, ctypes.byref(limits)))
        return Limits(threads, limits.memory_bytes, limits.weights_bytes, limits.i8_macs, limits.f32_macs)

    def close(self) -> None:
        """Free everything; the second time does nothing."""
        if not self._model:
            return
        model, self._model = self._model, c_void_p()
        if self._process != os.getpid():  # a forked child has neither the threads nor the right to end them
            return
        self._api.close(model)
        self._pool.release()
        self._library.release()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self.close()

    def _check(self, status: int) -> int:
        if status < 0:
            raise _failure(status, self._api.error(self._model).decode("utf-8", "replace"))
        return status


def _failure(status: int, sentence: str) -> Exception:
    """The exception for a status of the engine."""
    if status == CANCELLED:
        return CancelledError(sentence)
    return InputError(sentence) if status in _USERS else RuntimeError(f"the engine failed ({status}): {sentence}")


def _rows_pointer(name: str, rows: NDArray[Any] | None, count: int, width: int) -> int | None:
    """The address of an output buffer, its shape checked."""
    if count == 0:
        return None
    if rows is None or rows.dtype != np.float32 or not rows.flags.c_contiguous or rows.shape != (count, width):
        raise TypeError(f"{name} must be a contiguous float32 array of shape ({count}, {width})")
    return int(rows.ctypes.data)


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
