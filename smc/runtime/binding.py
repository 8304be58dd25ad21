"""The engine of a program.so through ctypes: the functions of engine/engine.h, one to one.

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
from collections.abc import Callable
from ctypes import c_uint64, c_void_p
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from smc.errors import InputError
from smc.runtime.interface import (
    ABI_VERSION,
    BAD_INPUT,
    CANCELLED,
    ERROR_BYTES,
    KV_DTYPES,
    NO_MEMORY,
    NO_SPACE,
    NOT_FINITE,
    TOKEN,
    UNSUPPORTED,
    WANT_ARGMAX,
    WANT_HIDDEN,
    WANT_LOGITS,
    Api,
    Batch,
    Info,
    Options,
)
from smc.runtime.profile import Limits, LimitsStruct, Profile, ProfileStruct

_USERS = {BAD_INPUT, NO_MEMORY, NO_SPACE, UNSUPPORTED, NOT_FINITE}


class CancelledError(Exception):
    """A step was stopped by `Engine.cancel`; the sequences are as before the step."""


class ClosedError(ValueError):
    """The model was closed, before a call or, by another thread, while it ran."""


class NoSlotError(InputError):
    """All sequence slots are in use."""


class _Sentence(threading.local):
    """Where the engine writes why a call of this thread failed."""

    def __init__(self) -> None:
        self.buffer = ctypes.create_string_buffer(ERROR_BYTES)

    @property
    def text(self) -> str:
        return self.buffer.value.decode("utf-8", "replace")


_sentence = _Sentence()


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
    """One opened model: the functions of engine.h as methods, which several threads may use.

    Failures raise InputError where the input or the machine's means are at fault, `CancelledError` after `cancel`,
    RuntimeError otherwise. Close it (or use it as a context manager); afterwards every method raises `ClosedError`.
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
        self._calls: set[object] = set()  # one object for every call that is inside the engine
        self._closing = False
        self._idle = threading.Condition()
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
        try:
            status = self._api.open(ctypes.byref(options), ctypes.byref(self._model), _sentence.buffer)
            if status < 0:
                raise _failure(status, _sentence.text)
        except BaseException:
            self._pool.release()
            self._library.release()
            raise
        self.facts = self.info()

    @property
    def closed(self) -> bool:
        return self._closing or not self._model

    @property
    def forked(self) -> bool:
        """Whether this process is a child of the one that opened the model, and can't use it."""
        return self._process != os.getpid()

    def info(self) -> Info:
        """Facts of the model; kv_bytes_used is of this moment."""
        info = Info(size=ctypes.sizeof(Info))
        self._call(self._api.info, ctypes.byref(info))
        return info

    def step(
        self,
        tokens: NDArray[np.void],
        logits: NDArray[np.float32] | None = None,
        hidden: NDArray[np.float32] | None = None,
        since: int | None = None,
    ) -> NDArray[np.int32]:
        """Run a batch: `tokens` is a contiguous array of `TOKEN`.

        logits: [tokens that want them, facts.logits_stride], hidden: [tokens that want it, facts.hidden_size]; both
        contiguous float32, written in batch order. Returns the ids of the largest logits of those with WANT_ARGMAX.
        since: see `run`.
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
        argmax = np.empty(int((tokens["flags"] & WANT_ARGMAX).astype(bool).sum()), np.int32)
        self.run(Batch(len(tokens), tokens.ctypes.data, *pointers, argmax.ctypes.data), since)
        return argmax

    def run(self, batch: Batch, since: int | None = None) -> None:
        """Run a batch whose buffers the caller vouches for: the way of `step` without its checks, for tight loops.

        since: what `cancels` was when the work began that this step is a part of; a `cancel` since then ends it.
        None: the step is all of the work.
        """
        batch.cancels = self.cancels if since is None else since
        self._call(self._api.step, ctypes.byref(batch))

    def cancel(self) -> None:
        """End all work that has begun, at the next layer of its step; may be called from any thread."""
        call = object()
        try:
            self._calls.add(call)
            if not self._closing and not self.forked:
                self._api.cancel(self._model)
        finally:
            self._leave(call)

    @property
    def cancels(self) -> int:
        """How often `cancel` was called: see `run`. Raises `ClosedError` after `close`."""
        call = object()
        try:
            self._enter(call)
            return int(self._api.cancels(self._model))
        finally:
            self._leave(call)

    def sequence_create(self) -> int:
        """A new, empty sequence's slot. Raises `NoSlotError` where there is none."""
        try:
            return self._call(self._api.sequence_create)
        except InputError as error:
            raise NoSlotError(str(error)) from None

    def sequence_fork(self, sequence: int) -> int:
        """A new slot that shares the past of `sequence`."""
        return self._call(self._api.sequence_fork, sequence)

    def sequence_truncate(self, sequence: int, length: int) -> None:
        """Forget what lies behind the first `length` tokens."""
        self._call(self._api.sequence_truncate, sequence, length)

    def sequence_drop(self, sequence: int) -> None:
        """Free the slot."""
        self._call(self._api.sequence_drop, sequence)

    def sequence_length(self, sequence: int) -> int:
        """Tokens that the sequence holds."""
        return self._call(self._api.sequence_length, sequence)

    def sequence_save(self, sequence: int) -> bytes:
        """The K and V of a sequence, for `sequence_restore` in a model of the same artifact and KV dtype."""
        size = c_uint64(0)
        self._call(self._api.sequence_save, sequence, None, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(self._api.sequence_save, sequence, buffer, ctypes.byref(size))
        return buffer.raw[: size.value]

    def sequence_restore(self, data: bytes) -> int:
        """A new slot with what `sequence_save` gave. Raises InputError where it does not fit this model."""
        return self._call(self._api.sequence_restore, data, len(data))

    def profile_start(self) -> None:
        """Take the steps from here on apart; a profile that was running is forgotten."""
        self._call(self._api.profile_start)

    def profile_stop(self) -> Profile:
        """Where the time went since `profile_start`. Raises InputError without one."""
        profile = ProfileStruct(size=ctypes.sizeof(ProfileStruct))
        call = object()
        try:
            self._enter(call)  # what the struct points to is the model's
            self._call(self._api.profile_stop, ctypes.byref(profile))
            return Profile.of(profile)
        finally:
            self._leave(call)

    def limits(self, threads: int) -> Limits:
        """Measure for about a second what the machine can do with 1 … facts.threads threads."""
        limits = LimitsStruct(size=ctypes.sizeof(LimitsStruct), threads=threads)
        self._call(self._api.limits, ctypes.byref(limits))
        return Limits(threads, limits.memory_bytes, limits.weights_bytes, limits.i8_macs, limits.f32_macs)

    def close(self) -> None:
        """Free everything; the second time does nothing.

        Calls that other threads have begun are cancelled and waited for: they raise `ClosedError`, as later ones do.
        """
        self._closing = True
        if self.forked:  # a forked child has neither the threads nor the right to end them
            return
        with self._idle:
            if not self._model:
                return
            self._api.cancel(self._model)
            while self._calls:
                self._idle.wait()
            model, self._model = self._model, c_void_p()
            self._api.close(model)
        self._pool.release()
        self._library.release()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_model", None) and not self._closing:
            self.close()

    def _enter(self, call: object) -> None:
        """Begin a call, during which `close` waits; raises `ClosedError` where `close` came first."""
        self._calls.add(call)  # before the question, so that either this sees `close` or `close` sees this
        if self._closing:
            raise ClosedError("the model is closed")

    def _leave(self, call: object) -> None:
        self._calls.discard(call)
        if self._closing and not self.forked:
            with self._idle:
                self._idle.notify_all()

    def _call(self, function: Callable[..., int], *arguments: object) -> int:
        """Call a function of the table on the model; its result, or what it failed with."""
        call = object()
        try:
            self._enter(call)
            status = function(self._model, *arguments, _sentence.buffer)
            if status >= 0:
                return status
            if status == CANCELLED and self._closing:
                raise ClosedError("the model was closed by another thread")
            raise _failure(status, _sentence.text)
        finally:
            self._leave(call)

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
