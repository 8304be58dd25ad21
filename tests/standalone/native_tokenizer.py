"""The engine's tokenizer, called from Python."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from pathlib import Path

from smc.standalone.tokenizer_tables import tokenizer_tables
from tests.runtime.engine.conftest import ENGINE, WARNINGS, compile_c

STANDALONE = ENGINE.parents[1] / "standalone" / "c"
SOURCES = [*sorted(STANDALONE.glob("tokenizer*.c")), ENGINE / "errors.c"]
ERROR_BYTES = 512


class _Text(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_char_p), ("length", ctypes.c_size_t), ("special", ctypes.c_int))


class RefusedError(Exception):
    """The engine's status and sentence."""


def build(folder: Path) -> ctypes.CDLL:
    """The tokenizer as a library of its own."""
    library = ctypes.CDLL(str(compile_c(folder / "tokenizer.so", SOURCES, "-shared", "-fPIC", *WARNINGS)))
    library.smc_tokenizer_encode.restype = ctypes.c_int64
    library.smc_tokenizer_decode.restype = ctypes.c_int64
    library.free.argtypes = [ctypes.c_void_p]
    library.smc_tokenizer_close.argtypes = [ctypes.c_void_p]
    library.smc_detokenizer_close.argtypes = [ctypes.c_void_p]
    return library


class NativeTokenizer:
    """Open tables; texts are str or bytes, alone (special tokens are seen) or with whether they are."""

    def __init__(self, library: ctypes.CDLL, tables: bytes) -> None:
        self._library = library
        self._tables = (ctypes.c_uint64 * (len(tables) // 8 + 1)).from_buffer_copy(
            tables.ljust(len(tables) // 8 * 8 + 8)
        )
        self._error = ctypes.create_string_buffer(ERROR_BYTES)
        self._handle = ctypes.c_void_p()
        self._check(
            library.smc_tokenizer_open(
                ctypes.byref(self._handle), ctypes.byref(self._tables), ctypes.c_size_t(len(tables)), self._error
            )
        )

    @classmethod
    def of(cls, library: ctypes.CDLL, tokenizer_json: str) -> NativeTokenizer:
        return cls(library, tokenizer_tables(tokenizer_json))

    def __del__(self) -> None:
        self._library.smc_tokenizer_close(self._handle)

    def _check(self, status: int) -> int:
        if status < 0:
            raise RefusedError(status, self._error.value.decode(errors="replace"))
        return status

    def encode(self, *texts: str | bytes | tuple[str | bytes, bool], add_special: bool = False) -> list[int]:
        parts = [text if isinstance(text, tuple) else (text, True) for text in texts]
        array = (_Text * len(parts))()
        for place, (text, special) in enumerate(parts):
            data = text.encode() if isinstance(text, str) else text
            array[place] = _Text(data, len(data), special)
        tokens = ctypes.POINTER(ctypes.c_int32)()
        count = self._check(
            self._library.smc_tokenizer_encode(
                self._handle, array, ctypes.c_size_t(len(parts)), add_special, ctypes.byref(tokens), self._error
            )
        )
        found = tokens[:count]
        self._library.free(tokens)
        return found

    def find(self, text: str) -> int:
        data = text.encode()
        return int(self._library.smc_tokenizer_find(self._handle, data, ctypes.c_size_t(len(data))))

    def decode(self, tokens: Sequence[int], skip_special: bool = True) -> str:
        text = ctypes.c_void_p()
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        length = self._check(
            self._library.smc_tokenizer_decode(
                self._handle, array, ctypes.c_size_t(len(tokens)), skip_special, ctypes.byref(text), self._error
            )
        )
        found = ctypes.string_at(text, length)
        self._library.free(text)
        return found.decode()

    def stream(self, tokens: Iterable[int], prompt: Sequence[int] = ()) -> list[str]:
        """What each token gives, and what the end does."""
        handle, text, length = ctypes.c_void_p(), ctypes.c_char_p(), ctypes.c_size_t()
        array = (ctypes.c_int32 * len(prompt))(*prompt)
        count = ctypes.c_size_t(len(prompt))
        self._check(self._library.smc_detokenizer_open(ctypes.byref(handle), self._handle, array, count, self._error))
        pieces = []
        for token in [*tokens, None]:
            out = (ctypes.byref(text), ctypes.byref(length))
            if token is None:
                self._check(self._library.smc_detokenizer_flush(handle, *out))
            else:
                self._check(self._library.smc_detokenizer_push(handle, token, *out))
            pieces.append(ctypes.string_at(text, length.value).decode())
        self._library.smc_detokenizer_close(handle)
        return pieces
