"""The engine of a program.so through ctypes: the functions of engine/engine.h, one to one.

`Engine` is one opened model. A process loads a program once, however many models run it, and unloads it with the last
of them. All models of a process share one pool of threads for each requested number.
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
    """The model was closed before a call, or by another thread during it."""


class NoSlotError(InputError):
    """All sequence slots are in use."""


class _Sentence(threading.local):
    """The buffer in which the engine writes why a call of this thread failed."""

    def __init__(self) -> None:
        self.buffer = ctypes.create_string_buffer(ERROR_BYTES)

    @property
    def text(self) -> str:
        return self.buffer.value.decode("utf-8", "replace")


_sentence = _Sentence()


class Library:
    """A loaded program with the number of its users; `acquire` and `release` come in pairs."""

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
                    f"the artifact's program has engine interface {api.abi_version}, this smc needs {ABI_VERSION}; "
                    "compile it again or install the smc that made it"
                )
            if api.size < ctypes.sizeof(Api):
                raise InputError("the artifact's program is damaged: its function table is too small; compile it again")
        except ValueError:
            self._unload()
            raise InputError("the artifact's program is not an smc engine; compile it again") from None
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
        """Add a user."""
        with self._lock:
            self._users += 1
            return self

    def _load(self, program: bytes) -> ctypes.CDLL:
        """Load from memory, or from a private temporary file if the system can't do that or forbids it."""
        if hasattr(os, "memfd_create"):
            try:
                file = os.memfd_create("smc-program", os.MFD_CLOEXEC)
            except OSError:
                file = -1
            if file >= 0:
                # The descriptor stays open as long as the library is loaded: glibc identifies a library by its path, so
                # it would take a second program on a reused number for the first.
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
                "the artifact's program can't be loaded: the system gives neither a file in memory nor a "
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
        else:  # something else holds the library, so its path must stay in use
            _ctypes.dlclose(again._handle)


class Pool:
    """The threads that the models of this process share: one pool for each requested number (0: automatic).

    The pool runs code of the program that made it, so it holds that library.
    """

    _pools: ClassVar[dict[tuple[int, int], Pool]] = {}

    def __init__(self, key: tuple[int, int], library: Library) -> None:
        self._key = key
        self._users = 0
        self.pointer = c_void_p()
        status = library.api.pool_create(key[1], ctypes.byref(self.pointer))
        if status < 0:
            # Also if the machine refuses them: only another number helps.
            raise InputError(f"the engine can't start {key[1] or 'so many'} threads: give fewer (--threads)")
        self._library = library.retain()

    @classmethod
    def acquire(cls, threads: int, library: Library) -> Pool:
        """The pool with this number of threads; `library` makes it at the first call."""
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

    Methods raise InputError if the input is wrong or the machine lacks memory or threads, `CancelledError` after
    `cancel`, RuntimeError otherwise. Close it (or use it as a context manager); then every method raises `ClosedError`.
    `facts` is the engine's info when it was opened.
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
        self._calls: set[object] = set()  # one entry for every call that is in the engine
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
        """Whether this process is a forked child of the one that opened the model, and can't use it."""
        return self._process != os.getpid()

    def info(self) -> Info:
        """Facts of the model; kv_bytes_used is the current value."""
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

        logits: [tokens with WANT_LOGITS, facts.logits_stride], hidden: [tokens with WANT_HIDDEN, facts.hidden_size];
        both contiguous float32, written in batch order. Returns the ids of the largest logits of tokens with
        WANT_ARGMAX. since: see `run`.
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
        """Run a batch as `step` does, but without its checks of buffers, for tight loops.

        since: the value of `cancels` when the work began that this step belongs to; a `cancel` since then ends it.
        None: the step is all of the work.
        """
        batch.cancels = self.cancels if since is None else since
        self._call(self._api.step, ctypes.byref(batch))

    def cancel(self) -> None:
        """End all work that has begun, at the next layer of its step. May be called from any thread."""
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
        """The slot of a new, empty sequence. Raises `NoSlotError` if there is none."""
        try:
            return self._call(self._api.sequence_create)
        except InputError as error:
            raise NoSlotError(str(error)) from None

    def sequence_fork(self, sequence: int) -> int:
        """The slot of a new sequence that shares the tokens of `sequence`."""
        return self._call(self._api.sequence_fork, sequence)

    def sequence_truncate(self, sequence: int, length: int) -> None:
        """Drop all tokens after the first `length`."""
        self._call(self._api.sequence_truncate, sequence, length)

    def sequence_drop(self, sequence: int) -> None:
        """Free the slot."""
        self._call(self._api.sequence_drop, sequence)

    def sequence_length(self, sequence: int) -> int:
        """The number of tokens in the sequence."""
        return self._call(self._api.sequence_length, sequence)

    def sequence_save(self, sequence: int) -> bytes:
        """The K and V of a sequence, for `sequence_restore` in a model of the same artifact and KV dtype."""
        size = c_uint64(0)
        self._call(self._api.sequence_save, sequence, None, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(self._api.sequence_save, sequence, buffer, ctypes.byref(size))
        return buffer.raw[: size.value]

    def sequence_restore(self, data: bytes) -> int:
        """The slot of a new sequence with the result of `sequence_save`. Raises InputError if it does not fit this
        model."""
        return self._call(self._api.sequence_restore, data, len(data))

    def profile_start(self) -> None:
        """Profile the following steps; a profile that was running is dropped."""
        self._call(self._api.profile_start)

    def profile_stop(self) -> Profile:
        """The profile since `profile_start`. Raises InputError without it."""
        profile = ProfileStruct(size=ctypes.sizeof(ProfileStruct))
        call = object()
        try:
            self._enter(call)  # the struct points to memory of the model
            self._call(self._api.profile_stop, ctypes.byref(profile))
            return Profile.of(profile)
        finally:
            self._leave(call)

    def limits(self, threads: int) -> Limits:
        """Measure the limits of the machine with 1 … facts.threads threads, which takes about a second."""
        limits = LimitsStruct(size=ctypes.sizeof(LimitsStruct), threads=threads)
        self._call(self._api.limits, ctypes.byref(limits))
        return Limits(threads, limits.memory_bytes, limits.weights_bytes, limits.i8_macs, limits.f32_macs)

    def close(self) -> None:
        """Free everything; the second time does nothing.

        Calls of other threads are cancelled and waited for: they raise `ClosedError`, as later calls do.
        """
        self._closing = True
        if self.forked:  # a forked child has no threads, and must not end its parent's
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
        """Begin a call, for which `close` waits; raises `ClosedError` if `close` came first."""
        self._calls.add(call)  # before the check, so that either this sees `close` or `close` sees this
        if self._closing:
            raise ClosedError("the model is closed")

    def _leave(self, call: object) -> None:
        self._calls.discard(call)
        if self._closing and not self.forked:
            with self._idle:
                self._idle.notify_all()

    def _call(self, function: Callable[..., int], *arguments: object) -> int:
        """Call a function of the table on the model; returns its result or raises its error."""
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
    """The address of an output buffer, whose shape is checked."""
    if count == 0:
        return None
    if rows is None or rows.dtype != np.float32 or not rows.flags.c_contiguous or rows.shape != (count, width):
        raise TypeError(f"{name} must be a contiguous float32 array of shape ({count}, {width})")
    return int(rows.ctypes.data)


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
