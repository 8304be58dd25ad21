"""Layers with a window have pages of their own, keep only what is seen, and give the same numbers after truncation."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from smc.errors import InputError
from smc.ir import ceil_div
from smc.runtime.binding import CancelledError, Engine

from .conftest import VOCAB, compile_fake_program
from .fake_model import HEAD_DIM, HEADS, PAGE, Reference, batch_of, expected, feed, tokens_of

WINDOW, ROLLBACK, LAYER_PAGE = 40, 64, PAGE * HEADS * 2 * HEAD_DIM * 2  # bytes of a page of one layer in f16
Open = Callable[..., Engine]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("windows") / "program.so"
    return compile_fake_program(path, f"-DFAKE_WINDOW={WINDOW}").read_bytes()


@pytest.fixture
def open_windows(program: bytes, artifact: Path) -> Iterator[Open]:
    opened: list[Engine] = []

    def open_one(**options: object) -> Engine:
        opened.append(Engine(artifact, program, **{"threads": 2, **options}))  # type: ignore[arg-type]
        return opened[-1]

    yield open_one
    for engine in opened:
        engine.close()


def reference() -> Reference:
    return Reference(window=WINDOW)


def window_pages(engine: Engine, length: int) -> int:
    """Pages of the layer with the window, where one sequence of this length is all there is."""
    whole = ceil_div(length, PAGE) * 2 * LAYER_PAGE
    pages, rest = divmod(int(engine.info().kv_bytes_used) - whole, LAYER_PAGE)
    assert rest == 0
    return pages


@pytest.mark.parametrize("chunk", [1, 7, 24, 63, 64, 65, 290])
def test_chunks_do_not_matter(open_windows: Open, chunk: int) -> None:
    engine = open_windows()
    sequence, tokens = engine.sequence_create(), tokens_of(290)
    parts = [feed(engine, [(sequence, tokens[i : i + chunk])]) for i in range(0, len(tokens), chunk)]
    np.testing.assert_array_equal(np.concatenate(parts), expected(reference(), tokens))


def test_a_window_keeps_few_pages(open_windows: Open) -> None:
    engine = open_windows()
    sequence, most = engine.sequence_create(), 0
    for length in range(1, 300):
        feed(engine, [(sequence, [length % VOCAB])])
        pages = window_pages(engine, length)
        assert pages <= ceil_div(length, PAGE)
        most = max(most, pages)
    assert most == 3  # 40 + 64 tokens, wherever pages begin
    engine.sequence_drop(sequence)
    assert engine.info().kv_bytes_used == 0


@pytest.mark.parametrize("back", [1, 63, 64])
def test_a_short_rollback_keeps_the_window(open_windows: Open, back: int) -> None:
    for length in range(200, 200 + PAGE):
        engine = open_windows()
        sequence, tokens = engine.sequence_create(), tokens_of(length)
        feed(engine, [(sequence, tokens)])
        feed(engine, [(sequence, [1])])  # the window slides
        engine.sequence_truncate(sequence, length + 1 - back)
        assert window_pages(engine, length + 1 - back) > 0
        engine.close()


@pytest.mark.parametrize("length", [0, 1, 30, 64, 100, 128, 166])
def test_a_long_rollback_is_exact(open_windows: Open, length: int) -> None:
    engine = open_windows()
    sequence, tokens, twin = engine.sequence_create(), tokens_of(290), reference()
    feed(engine, [(sequence, tokens)])
    engine.sequence_truncate(sequence, length)
    assert window_pages(engine, length) == 0
    expected(twin, tokens[:length])
    more = tokens_of(40, seed=9)
    np.testing.assert_array_equal(feed(engine, [(sequence, more)]), expected(twin, more))


def test_random_work(open_windows: Open) -> None:
    engine, random = open_windows(sequences=4, threads=1), np.random.default_rng(5)
    twins: dict[int, Reference] = {}
    for _ in range(150):
        action = random.integers(0, 8)
        chosen = int(random.choice(list(twins))) if twins else -1
        if not twins or (action == 0 and len(twins) < 4):
            twins[engine.sequence_create()] = reference()
        elif action == 1 and len(twins) < 4:
            twins[engine.sequence_fork(chosen)] = twins[chosen].copy()
        elif action == 2:
            length = int(random.integers(0, len(twins[chosen].keys) + 1))
            engine.sequence_truncate(chosen, length)
            twins[chosen].truncate(length)
        elif action == 3 and random.integers(0, 3) == 0:
            engine.sequence_drop(chosen)
            del twins[chosen]
        else:
            parts = [(s, tokens_of(int(random.integers(1, 60)), seed=int(random.integers(1 << 30)))) for s in twins]
            parts = [(s, tokens[: 300 - len(twins[s].keys)]) for s, tokens in parts]
            parts = [(s, tokens) for s, tokens in parts if tokens][: int(random.integers(1, 4))]
            if parts:
                want = np.concatenate([expected(twins[s], tokens) for s, tokens in parts])
                np.testing.assert_array_equal(feed(engine, parts), want)
    for sequence in list(twins):
        engine.sequence_drop(sequence)
    assert engine.info().kv_bytes_used == 0


def test_a_cancelled_batch_leaves_the_sequence_as_it_was(open_windows: Open) -> None:
    engine = open_windows()
    slow = ctypes.c_int.in_dll(engine._library._library, "fake_block_microseconds")
    sequence, twin, tokens = engine.sequence_create(), reference(), tokens_of(280)
    expected(twin, tokens[:60])
    feed(engine, [(sequence, tokens[:60])])
    slow.value = 1000
    stopper = threading.Thread(target=lambda: (time.sleep(0.1), engine.cancel()))
    stopper.start()
    with pytest.raises(CancelledError):
        engine.step(batch_of([(sequence, 60, tokens[60:])], flags=0))
    stopper.join()
    slow.value = 0
    assert engine.sequence_length(sequence) == 60
    np.testing.assert_array_equal(feed(engine, [(sequence, [5])]), expected(twin, [5]))


@pytest.mark.parametrize(("length", "truncated"), [(290, 290), (290, 250), (290, 20), (30, 30)])
def test_save_and_restore(open_windows: Open, length: int, truncated: int) -> None:
    engine, other = open_windows(), open_windows(sequences=2)
    sequence, twin, tokens = engine.sequence_create(), reference(), tokens_of(length)
    feed(engine, [(sequence, tokens)])
    engine.sequence_truncate(sequence, truncated)
    expected(twin, tokens[:truncated])
    saved = engine.sequence_save(sequence)
    copy = other.sequence_restore(saved)
    more = tokens_of(10, seed=2)
    np.testing.assert_array_equal(feed(other, [(copy, more)]), expected(twin, more))


def test_damaged_bytes_are_refused_or_harmless(open_windows: Open) -> None:
    engine, random = open_windows(), np.random.default_rng(0)
    sequence = engine.sequence_create()
    feed(engine, [(sequence, tokens_of(200))])
    saved = engine.sequence_save(sequence)
    engine.sequence_drop(sequence)
    front = 128 + 200 * 8 + 2 * 8  # header, tokens, spans
    for place in [*range(128), *range(front - 16, front), *random.integers(128, front, 200)]:
        damaged = bytearray(saved)
        damaged[place] ^= int(random.integers(1, 256))
        try:
            restored = engine.sequence_restore(bytes(damaged))
        except InputError:
            continue
        feed(engine, [(restored, [1])])
        engine.sequence_truncate(restored, 10)
        feed(engine, [(restored, [1])])
        engine.sequence_drop(restored)
    assert engine.info().kv_bytes_used == 0
