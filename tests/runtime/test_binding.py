"""The engine through ctypes: numbers, sequences, several models at once, errors, cancel."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from smc.errors import InputError
from smc.runtime import Model, load
from smc.runtime.binding import CancelledError, Engine, Library, Pool
from smc.runtime.interface import ABI_VERSION, TOKEN, WANT_ARGMAX, WANT_HIDDEN, WANT_LOGITS, Api, Batch, Info, Options
from smc.runtime.profile import LimitsStruct, ProfileStruct, ProfileTaskStruct
from tests.runtime.conftest import ENGINE, SLOW, VOCAB, counting_logits, manifest_for, write_artifact


@pytest.fixture
def model(artifact: Path) -> Model:
    with load(artifact, threads=2, sequences=3) as model:
        yield model


def test_structures_are_those_of_the_header(tmp_path: Path):
    """The C compiler agrees about the size of every structure and the place of every field."""
    lines = ['#include "engine.h"']
    for name, structure in (
        ("smc_options", Options),
        ("smc_info", Info),
        ("smc_batch", Batch),
        ("smc_engine_api", Api),
        ("smc_profile_task", ProfileTaskStruct),
        ("smc_profile", ProfileStruct),
        ("smc_limits", LimitsStruct),
    ):
        lines.append(f'_Static_assert(sizeof({name}) == {ctypes.sizeof(structure)}, "size of {name}");')
        for field, *_ in structure._fields_:
            offset = getattr(structure, field).offset
            lines.append(f'_Static_assert(offsetof({name}, {field}) == {offset}, "{name}.{field}");')
    lines.append(f'_Static_assert(sizeof(smc_token) == {TOKEN.itemsize}, "size of smc_token");')
    for field, (_, offset, *_) in TOKEN.fields.items():
        lines.append(f'_Static_assert(offsetof(smc_token, {field}) == {offset}, "smc_token.{field}");')
    (tmp_path / "check.c").write_text("\n".join(lines))
    compiler = [sys.executable, "-m", "ziglang", "cc", "-std=c11", "-c", f"-I{ENGINE}"]
    subprocess.run([*compiler, str(tmp_path / "check.c"), "-o", str(tmp_path / "check.o")], check=True)


def test_facts(model: Model):
    assert (model.vocab_size, model.context_length, model.threads, model.level) == (VOCAB, 200, 2, "best")
    assert model.engine.facts.name == b"counting"


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 63, 64, 65, 150])
def test_logits_of_all_positions(model: Model, count: int):
    tokens = np.random.default_rng(count).integers(8, VOCAB, count).tolist()
    logits = model.logits(tokens)
    assert logits.shape == (count, VOCAB)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, counting_logits(tokens))
    np.testing.assert_array_equal(model.logits(tokens[:1]), counting_logits(tokens[:1]))  # a sequence of its own


def test_no_tokens(model: Model):
    assert model.logits([]).shape == (0, VOCAB)


def test_sequence_grows_forks_and_truncates(model: Model):
    tokens = list(range(10, 90))
    with model.new_sequence() as sequence:
        assert sequence.extend(tokens[:70], logits="none").shape == (0, VOCAB)
        np.testing.assert_array_equal(sequence.extend(tokens[70:]), counting_logits(tokens)[-1:])
        with sequence.fork() as other:
            np.testing.assert_array_equal(other.extend([200]), counting_logits([*tokens, 200])[-1:])
            sequence.truncate(66)
            assert (sequence.length, other.length) == (66, 81)
            np.testing.assert_array_equal(sequence.extend([33]), counting_logits([*tokens[:66], 33])[-1:])
            np.testing.assert_array_equal(other.extend([34]), counting_logits([*tokens, 200, 34])[-1:])
        assert sequence.keep_common([*tokens[:60], 5]) == 60
        np.testing.assert_array_equal(sequence.extend([8, 9], "all"), counting_logits([*tokens[:60], 8, 9])[-2:])


def test_batch_of_several_sequences_with_hidden_states(model: Model):
    first, second = model.new_sequence(), model.new_sequence()
    batch = np.zeros(5, TOKEN)
    batch["token"] = [20, 21, 22, 30, 31]
    batch["sequence"] = [first.slot] * 3 + [second.slot] * 2
    batch["index"] = batch["position"] = [0, 1, 2, 0, 1]
    batch["flags"] = [0, WANT_LOGITS, WANT_HIDDEN, WANT_LOGITS | WANT_HIDDEN, WANT_LOGITS]
    facts = model.engine.facts
    logits = np.empty((3, facts.logits_stride), np.float32)
    hidden = np.empty((2, facts.hidden_size), np.float32)
    model.engine.step(batch, logits, hidden)
    expected = [counting_logits([20, 21])[1], counting_logits([30])[0], counting_logits([30, 31])[1]]
    np.testing.assert_array_equal(logits[:, :VOCAB], expected)
    np.testing.assert_array_equal(hidden, [[22, 23, 24, 25], [30, 31, 32, 33]])
    with pytest.raises(TypeError, match="shape \\(3, 272\\)"):
        model.engine.step(batch, logits[:2], hidden)
    first.drop()
    second.drop()


def test_saved_sequence_goes_on(model: Model):
    with model.new_sequence() as sequence:
        sequence.extend([9, 8, 10])
        slot = model.engine.sequence_restore(model.engine.sequence_save(sequence.slot))
    assert model.engine.sequence_length(slot) == 3
    batch = np.array([(11, slot, 3, 3, WANT_LOGITS, 0)], TOKEN)
    np.testing.assert_array_equal(model.step(batch), counting_logits([9, 8, 10, 11])[-1:])
    model.engine.sequence_drop(slot)
    with pytest.raises(InputError):
        model.engine.sequence_restore(b"nonsense")


def test_wrong_use_is_a_sentence(model: Model, artifact: Path):
    with pytest.raises(InputError, match="token 259 is not in the vocabulary of 259 tokens"):
        model.logits([1, 259])
    with pytest.raises(InputError, match="token -1"):
        model.logits([-1])
    with pytest.raises(InputError, match="context"):
        model.logits([9] * 201)
    with pytest.raises(InputError, match="tokens is empty"), model.new_sequence() as sequence:
        sequence.next_token([])
    batch = np.zeros(1, TOKEN)
    both = WANT_ARGMAX | WANT_LOGITS
    for flags, message in ((WANT_ARGMAX, "does not find: request the logits"), (both, "request only the logits")):
        batch["flags"] = flags
        with pytest.raises(InputError, match=message), model.new_sequence():
            model.engine.step(batch, logits=model.logits_buffer(1))
    sequences = [model.new_sequence() for _ in range(3)]
    with pytest.raises(InputError):
        model.new_sequence()
    for sequence in sequences:
        sequence.drop()
    with pytest.raises(ValueError, match="dropped"):
        sequences[0].extend([1])
    with pytest.raises(InputError, match="has no level 'no-such'"):
        load(artifact, level="no-such")
    with pytest.raises(InputError, match="lacks no-such-feature"):
        load(artifact, level="never")
    with pytest.raises(InputError, match="kv_dtype is 'f64'"):
        load(artifact, kv_dtype="f64")
    with pytest.raises(InputError, match="threads is -1"):
        load(artifact, threads=-1)
    with pytest.raises(InputError, match="can't start 1000000 threads"):
        load(artifact, threads=1_000_000)
    with pytest.raises(InputError, match="context_length is -5"):
        load(artifact, context_length=-5)


def test_options_reach_the_engine(artifact: Path):
    with load(artifact, context_length=50, threads=1, kv_dtype="f32", level="floor") as model:
        assert (model.context_length, model.threads, model.level) == (50, 1, "floor")
        assert model.engine.facts.kv_dtype == 1
        np.testing.assert_array_equal(model.logits(range(50, 100)), counting_logits(list(range(50, 100))))


def test_different_programs_at_once_and_everything_is_freed(
    artifact: Path, build_program: Callable[..., bytes], tmp_path: Path
):
    files = len(os.listdir("/proc/self/fd"))
    program = build_program(("-0.125f", "-0.25f"))
    members = {"weights": bytes(64), "manifest.json": json.dumps(manifest_for(program)), "program.so": program}
    other_artifact = write_artifact(tmp_path / "other.smc", members)
    for _ in range(3):
        first = load(artifact, threads=2)
        other = load(other_artifact, threads=2)
        again = load(artifact, threads=2)
        assert len(Pool._pools) == 1
        first.close()  # the pool was made by its program, which `other` goes on using
        again.close()
        np.testing.assert_array_equal(other.logits([20, 30]), 2 * counting_logits([20, 30]))
        other.close()
        other.close()
        assert not Library._loaded
        assert not Pool._pools
    assert len(os.listdir("/proc/self/fd")) == files
    assert "smc-program" not in Path("/proc/self/maps").read_text()
    with pytest.raises(ValueError, match="closed"):
        first.logits([1])


def test_without_memory_files(artifact: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "memfd_create")
    with load(artifact) as model:
        np.testing.assert_array_equal(model.logits([50]), counting_logits([50]))


def test_program_that_is_none(tmp_path: Path, artifact: Path):
    with pytest.raises(InputError, match="can't load the artifact's program"):
        Engine(artifact, b"not an ELF file")
    assert not Library._loaded


def test_other_interface_version(artifact: Path, program: bytes):
    """The table's first number is the interface's version; a program of the future is refused before more is read."""
    offset = table_offset(program)
    changed = bytearray(program)
    changed[offset : offset + 4] = (ABI_VERSION + 1).to_bytes(4, "little")
    with pytest.raises(InputError, match=f"engine interface {ABI_VERSION + 1}, this smc needs {ABI_VERSION}"):
        Engine(artifact, bytes(changed))


def table_offset(program: bytes) -> int:
    """Where the function table lies in the file: its first two numbers, version and size, are found only there."""
    needle = ABI_VERSION.to_bytes(4, "little") + ctypes.sizeof(Api).to_bytes(4, "little") + bytes(8)
    assert program.count(needle) == 1
    return program.index(needle)


def test_cancel_ends_a_step_and_leaves_the_sequence(model: Model):
    with model.new_sequence() as sequence:
        sequence.extend([40, 41])
        timer = threading.Timer(0.1, model.engine.cancel)
        timer.start()
        started = time.monotonic()
        with pytest.raises(CancelledError):
            sequence.extend([SLOW, 42])
        assert time.monotonic() - started < 0.7
        assert sequence.length == 2
        model.engine.cancel()  # nothing runs: the next step is not touched
        np.testing.assert_array_equal(sequence.extend([43]), counting_logits([40, 41, 43])[-1:])
        timer.join()


def test_fork_of_the_process_is_refused_and_harmless(model: Model):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            model.logits([1])
        except RuntimeError as error:
            status = 0 if "fork" in str(error) else 2
        model.close()
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(model.logits([50]), counting_logits([50]))


def test_two_threads_use_one_model(model: Model):
    failures = []

    def use(seed: int) -> None:
        try:
            for count in range(1, 30):
                tokens = np.random.default_rng(seed * 100 + count).integers(8, VOCAB, count).tolist()
                np.testing.assert_array_equal(model.logits(tokens), counting_logits(tokens))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
