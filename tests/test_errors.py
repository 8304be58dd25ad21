"""What is nobody's bug: refusals of the system by their words, and libraries that give up."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from smc.errors import InputError, blamed_on, child_refused, refused

PARTS = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
MODEL = {"type": "BPE", "vocab": {"a": 0}, "merges": []}


def tokenizer_json(**parts: Any) -> str:
    """A tokenizer.json of one token."""
    return json.dumps({"version": "1.0", "added_tokens": [], "model": MODEL, **dict.fromkeys(PARTS), **parts})


PANICS_AT_LOAD = tokenizer_json(normalizer={"type": "Precompiled", "precompiled_charsmap": ""})
PANICS_AT_ENCODE = tokenizer_json(normalizer={"type": "Precompiled", "precompiled_charsmap": "AQAAAA=="})


def test_panics_are_told_like_exceptions() -> None:
    with pytest.raises(InputError, match=r"^it is broken \(Precompiled: .*\)$"), blamed_on("it is broken"):
        Tokenizer.from_str(PANICS_AT_LOAD)
    tokenizer = Tokenizer.from_str(PANICS_AT_ENCODE)
    with pytest.raises(InputError, match="index out of bounds"), blamed_on("it is broken"):
        tokenizer.encode("a")
    with pytest.raises(InputError, match=r"it is broken \(EOF"), blamed_on("it is broken"):
        Tokenizer.from_str("")


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), SystemExit(3), InputError("mine")])
def test_what_is_nobodys_damage_stays(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, blamed_on("it is broken"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("LLVM ERROR: IO failure on output stream: No space left on device", errno.ENOSPC),
        ("ld.lld: error: can't open output file x: Too many open files", errno.EMFILE),
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.", errno.ENOMEM),
        ("terminate called after throwing an instance of 'std::bad_alloc'", errno.ENOMEM),
        ("a.c:3:1: error: expected ';'", None),
        ("ValueError: Invalid argument", None),
    ],
)
def test_what_was_refused_by_its_words(text: str, number: int | None) -> None:
    assert refused(text) == (None if number is None else os.strerror(number))
    assert child_refused(1, text) == refused(text)


def test_what_was_refused_by_signals() -> None:
    assert "memory" in str(child_refused(-signal.SIGKILL, ""))
    assert "signal 7" in str(child_refused(-signal.SIGBUS, ""))
    assert child_refused(-signal.SIGABRT, "LLVM ERROR: Can't select") is None
    assert child_refused(-signal.SIGSEGV, "") is None
    limited = "import resource, signal; from smc.errors import child_refused\n"
    limited += "resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33)); print(child_refused(-signal.SIGSEGV, ''))"
    root = Path(__file__).parents[1]
    assert b"ulimit -v" in subprocess.run([sys.executable, "-c", limited], capture_output=True, cwd=root).stdout
