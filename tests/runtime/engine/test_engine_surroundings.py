"""The engine and what is around it: bad input, memory, threads, signals, broken artifacts."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from ctypes import byref, c_void_p
from pathlib import Path

import numpy as np
import pytest

from smc.errors import InputError
from smc.runtime import interface
from smc.runtime.binding import CancelledError, Engine
from smc.runtime.interface import TOKEN, WANT_HIDDEN, Batch, Options

from .conftest import ENGINE, LEVELS, VOCAB, WEIGHTS, Open, compile_fake_program, write_artifact
from .fake_model import PAGE, Reference, batch_of, expected, feed, page_bytes, tokens_of

# ---- bad input changes nothing


def refuse(engine: Engine, batch: np.ndarray, sentence: str, status: int = interface.BAD_INPUT) -> None:
    logits = np.zeros((len(batch), engine.facts.logits_stride), np.float32)
    raw = Batch(len(batch), batch.ctypes.data, logits.ctypes.data, None)
    error = ctypes.create_string_buffer(interface.ERROR_BYTES)
    assert engine._api.step(engine._model, byref(raw), error) == status
    assert sentence in error.value.decode()
    assert not logits.any()


def test_bad_batches(open_model: Open) -> None:
    engine = open_model(sequences=3, context_length=30)
    first, second = engine.sequence_create(), engine.sequence_create()
    feed(engine, [(first, tokens_of(10))])
    refuse(engine, batch_of([(first, 10, [VOCAB])]), "not in the vocabulary of 97")
    refuse(engine, batch_of([(first, 10, [3, -1])]), "token -1 at place 1")
    refuse(engine, batch_of([(3, 0, [1])]), "slots 0 to 2")
    refuse(engine, batch_of([(-1, 0, [1])]), "sequence -1")
    refuse(engine, batch_of([(2, 0, [1])]), "sequence 2 was not created")
    refuse(engine, batch_of([(first, 9, [1])]), "cache index 9, but sequence 0 continues at 10")
    refuse(engine, batch_of([(first, 11, [1])]), "cache index 11")
    refuse(engine, batch_of([(first, 10, [1]), (second, 0, [1]), (first, 11, [1])]), "do not follow each other")
    refuse(engine, batch_of([(first, 10, [1])], flags=8), "unknown flags 0x8")
    refuse(engine, batch_of([(first, 10, [1])], flags=WANT_HIDDEN), "for which there is no buffer")
    refuse(engine, batch_of([(first, 10, [1])], shift=-11), "negative position -1")
    refuse(engine, batch_of([(first, 10, [1] * 21)]), "would outgrow the context of 30", interface.NO_SPACE)
    refuse(engine, np.zeros(0, TOKEN), "no tokens")
    assert engine._api.step(engine._model, byref(Batch(1, None, None, None)), None) == interface.BAD_INPUT
    assert engine._api.step(engine._model, None, None) == interface.BAD_INPUT
    assert engine._api.step(None, byref(Batch()), None) == interface.BAD_INPUT
    assert [engine.sequence_length(i) for i in (first, second)] == [10, 0]
    assert engine.info().kv_bytes_used == page_bytes(engine)
    reference = Reference()
    expected(reference, tokens_of(10))
    np.testing.assert_array_equal(feed(engine, [(first, [8] * 20)]), expected(reference, [8] * 20))  # the last place


def test_bad_sequences(open_model: Open) -> None:
    engine = open_model(sequences=2)
    for call in (engine.sequence_fork, engine.sequence_drop, engine.sequence_length, engine.sequence_save):
        for sequence in (-1, 0, 2, 1 << 30):
            with pytest.raises(InputError, match=f"sequence {sequence} "):
                call(sequence)
    engine.sequence_create()
    engine.sequence_create()
    with pytest.raises(InputError, match="all 2 sequence slots are in use"):
        engine.sequence_create()
    with pytest.raises(InputError, match="all 2 sequence slots are in use"):
        engine.sequence_fork(0)
    api = engine._api
    assert api.sequence_create(None, None) == interface.BAD_INPUT
    assert api.sequence_length(None, 0, None) == interface.BAD_INPUT
    assert api.sequence_save(engine._model, 0, None, None, None) == interface.BAD_INPUT
    assert api.sequence_restore(engine._model, None, 1000, None) == interface.BAD_INPUT
    assert api.info(engine._model, None, None) == interface.BAD_INPUT
    assert api.pool_create(2, None) == interface.BAD_INPUT
    assert api.pool_create(65, byref(c_void_p())) == interface.BAD_INPUT
    api.close(None)
    api.cancel(None)
    api.pool_destroy(None)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"context_length": -1}, "context_length is -1"),
        ({"context_length": 1 << 30}, "context_length is 1073741824"),
        ({"sequences": 5000}, "sequences is 5000"),
        ({"sequences": 4096, "context_length": 1 << 24}, "2^31 tokens"),
        ({"threads": 65}, "threads is 65: it must be between 1 and 64"),
        ({"kv_dtype": 3}, "kv_dtype is 3"),
        ({"size": 8}, "smc_options has 8 bytes"),
        ({"adapter": 1}, "adapter must be NULL"),
        ({"path": None}, "path is NULL"),
        ({"level": b"turbo"}, "no level 'turbo': it has future, plain"),
        ({"level": b"future"}, "can't run level future: it lacks quantum, holodeck"),
    ],
)
def test_bad_options(open_model: Open, artifact: Path, options: dict[str, object], sentence: str) -> None:
    api = open_model()._api
    whole = Options(**{"size": ctypes.sizeof(Options), "path": os.fsencode(artifact), "threads": 1, **options})
    model, error = c_void_p(1), ctypes.create_string_buffer(512)
    assert api.open(byref(whole), byref(model), error) < 0
    assert sentence in error.value.decode()
    assert not model
    assert api.open(byref(whole), byref(model), None) < 0
    assert api.open(None, byref(model), error) == interface.BAD_INPUT


def test_foreign_pool_is_refused(open_model: Open, artifact: Path) -> None:
    foreign = ctypes.create_string_buffer(65536)
    pool = (ctypes.addressof(foreign) + 127) & ~127
    options = Options(size=ctypes.sizeof(Options), path=os.fsencode(artifact), pool=pool)
    model, error = c_void_p(), ctypes.create_string_buffer(512)
    assert open_model()._api.open(byref(options), byref(model), error) == interface.BAD_INPUT
    assert b"not a pool" in error.value


# ---- levels


def test_level_from_the_environment(open_model: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMC_LEVEL", "future")
    with pytest.raises(InputError, match="it lacks quantum, holodeck"):
        open_model()
    assert open_model(level="plain").facts.level == b"plain"  # the option goes first
    monkeypatch.setenv("SMC_LEVEL", "")
    assert open_model().facts.level == b"plain"


# ---- memory


def test_kv_cache_larger_than_memory_is_a_sentence(artifact: Path, tmp_path: Path) -> None:
    program = compile_fake_program(tmp_path / "program.so", "-DFAKE_LAYERS=1000000")  # 8 GB a page
    with Engine(artifact, program.read_bytes(), context_length=PAGE, sequences=1000, threads=2) as engine:
        for _ in range(1000):
            engine.sequence_create()
        refuse(engine, batch_of([(i, 0, [1]) for i in range(1000)]), "use a shorter context", interface.NO_MEMORY)
        assert engine.info().kv_bytes_used == 0
        assert engine.sequence_length(7) == 0


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_pages_get_memory_when_written_and_give_most_of_it_back(artifact: Path, tmp_path: Path) -> None:
    program = compile_fake_program(tmp_path / "program.so", "-DFAKE_LAYERS=768")  # 6 MiB a page, two of which are kept
    before = resident_bytes()
    with Engine(artifact, program.read_bytes(), context_length=1 << 14, sequences=16, threads=2) as engine:
        assert page_bytes(engine) == 6 << 20
        assert resident_bytes() - before < 8 << 20  # 24 GiB are reserved
        sequence = engine.sequence_create()
        feed(engine, [(sequence, tokens_of(6 * PAGE))])
        with_pages = resident_bytes()
        engine.sequence_drop(sequence)
        assert with_pages - 5 * page_bytes(engine) < resident_bytes() < with_pages - 3 * page_bytes(engine)
        kept, sequence = resident_bytes(), engine.sequence_create()
        feed(engine, [(sequence, tokens_of(2 * PAGE))])
        assert resident_bytes() < kept + (1 << 20)
        feed(engine, [(sequence, tokens_of(PAGE))])
        assert resident_bytes() > kept + page_bytes(engine) // 2
        engine.sequence_drop(sequence)
        assert resident_bytes() < kept + (1 << 20)


# ---- threads


def test_models_share_a_pool(open_model: Open) -> None:
    engines = [open_model(), open_model(kv_dtype="f32")]
    assert engines[0]._pool is engines[1]._pool
    failures: list[BaseException] = []

    def talk(engine: Engine, seed: int) -> None:
        try:
            sequence, reference = engine.sequence_create(), Reference()
            for i in range(20):
                tokens = tokens_of(5, seed=seed + i)
                np.testing.assert_array_equal(feed(engine, [(sequence, tokens)]), expected(reference, tokens))
        except BaseException as failure:
            failures.append(failure)

    talkers = [threading.Thread(target=talk, args=(engine, 100 * i)) for i, engine in enumerate(engines)]
    for talker in talkers:
        talker.start()
    for talker in talkers:
        talker.join()
    assert not failures


def test_a_pool_of_another_program(open_model: Open, fake_program: Path, artifact: Path) -> None:
    """The workers then run code of one library and blocks of another."""
    first = open_model()
    other = Engine(artifact, fake_program.read_bytes() + b"\0", threads=2)  # other bytes: loaded a second time
    assert other._library is not first._library
    assert other._pool is first._pool
    with other:
        sequence, tokens = other.sequence_create(), tokens_of(90)
        np.testing.assert_array_equal(feed(other, [(sequence, tokens)]), expected(Reference(), tokens))


@pytest.mark.parametrize("threads", [1, 3])
def test_cancel(open_model: Open, threads: int) -> None:
    engine = open_model(threads=threads)
    sequence, reference = engine.sequence_create(), Reference()
    np.testing.assert_array_equal(feed(engine, [(sequence, tokens_of(70))]), expected(reference, tokens_of(70)))
    pause = ctypes.c_int.in_dll(engine._library._library, "fake_block_microseconds")
    pause.value = 5000
    try:
        timer = threading.Timer(0.1, engine.cancel)
        timer.start()
        begin = time.monotonic()
        with pytest.raises(CancelledError, match="cancelled"):
            feed(engine, [(sequence, tokens_of(200))])  # 200 blocks of 5 ms in 9 steps
        assert time.monotonic() - begin < 0.1 + 24 * 0.005 + 1
        timer.join()
    finally:
        pause.value = 0
    assert engine.sequence_length(sequence) == 70
    assert engine.info().kv_bytes_used == 2 * page_bytes(engine)
    engine.cancel()  # with no step running: no effect
    tokens = tokens_of(20, seed=4)
    np.testing.assert_array_equal(feed(engine, [(sequence, tokens)]), expected(reference, tokens))


def test_fork_of_the_process_is_a_sentence(open_model: Open) -> None:
    engine = open_model()
    sequence = engine.sequence_create()
    feed(engine, [(sequence, [1])])
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            feed(engine, [(sequence, [2])])
        except RuntimeError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert b"forked" in pipe.read()
    os.waitpid(child, 0)
    feed(engine, [(sequence, [2])])  # the parent goes on


def test_signals_reach_no_worker(fake_program: Path, artifact: Path) -> None:
    """Workers block all signals; the caller's own mask stays as it was."""
    text = (
        "import sys, pathlib\nfrom smc.runtime.binding import Engine\n"
        "engine = Engine(sys.argv[2], pathlib.Path(sys.argv[1]).read_bytes(), threads=4)\n"
        "for task in sorted(pathlib.Path('/proc/self/task').iterdir(), key=lambda task: int(task.name)):\n"
        "    print([line.split()[1] for line in (task / 'status').read_text().splitlines() if 'SigBlk' in line][0])\n"
    )
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", text, str(fake_program), str(artifact)],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    masks = [int(line, 16) for line in done.stdout.split()]
    interrupt = 1 << (2 - 1)
    assert len(masks) == 4
    assert not masks[0] & interrupt
    assert all(mask & interrupt for mask in masks[1:])


def test_affinity_of_the_caller_is_untouched(open_model: Open) -> None:
    before = os.sched_getaffinity(0)
    engine = open_model(threads=len(before))
    feed(engine, [(engine.sequence_create(), tokens_of(5))])
    assert os.sched_getaffinity(0) == before


# ---- the artifact


def test_bad_artifacts(open_model: Open, tmp_path: Path) -> None:
    good = write_artifact(tmp_path / "good").read_bytes()
    cases = {
        "cut": (good[:-1], "incomplete or not an artifact"),
        "half": (good[: len(good) // 2], "incomplete or not an artifact"),
        "empty": (b"", "empty or not a regular file"),
        "text": (b"hello" * 1000, "incomplete or not an artifact"),
        "longer": (good + b"x", "incomplete or not an artifact"),
    }
    for name, (data, sentence) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=sentence):
            open_model(tmp_path / name)
    for path, sentence in (
        (tmp_path / "missing", "No such file"),
        (tmp_path, "not a regular file"),
        (write_artifact(tmp_path / "small", WEIGHTS[:-1]), "its weights have 96 bytes and its program needs 97"),
        (write_artifact(tmp_path / "loose", align=64), "do not begin at a multiple of 64 KiB"),
        (write_artifact(tmp_path / "nameless", name="waits"), "no member 'weights'"),
    ):
        with pytest.raises(InputError, match=sentence):
            open_model(path)


# ---- sanitizers


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_two_models_and_cancellations_under_sanitizers(
    driver: Callable[..., Path], artifact: Path, sanitizer: str
) -> None:
    sources = [*ENGINE.glob("*.c"), *ENGINE.glob("cpu/*.c")]
    files = [str(source.relative_to(ENGINE)) for source in sorted(sources)]
    program = driver("steps", *files, more=("fake_program.c",), flags=LEVELS, sanitizer=sanitizer)
    done = subprocess.run([str(program), str(artifact), "3", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 0  # some steps were cancelled
