"""The engine around fake_program.c, against the same arithmetic in Python: batches, sequences, what they keep."""

from __future__ import annotations

import ctypes
import os
from ctypes import byref, c_uint64
from pathlib import Path

import numpy as np
import pytest

from smc.errors import InputError
from smc.runtime import interface
from smc.runtime.interface import WANT_HIDDEN, WANT_LOGITS

from .conftest import VOCAB, Open
from .fake_model import (
    CONTEXT,
    FREQUENCIES,
    HEAD_DIM,
    HEADS,
    LAYERS,
    MAGNITUDE,
    MAX_STEP,
    PAGE,
    Reference,
    batch_of,
    expected,
    feed,
    logits_of,
    page_bytes,
    tokens_of,
)

# ---- batches


@pytest.mark.parametrize("kv_dtype", ["f16", "f32", "i8"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_prefill_and_decode(open_model: Open, threads: int, kv_dtype: str) -> None:
    engine = open_model(threads=threads, kv_dtype=kv_dtype)
    assert engine.facts.threads == threads
    sequence, reference = engine.sequence_create(), Reference()
    tokens = tokens_of(150)  # several steps of 24, several pages of 64
    np.testing.assert_array_equal(feed(engine, [(sequence, tokens)]), expected(reference, tokens))
    for token in tokens_of(10, seed=1):
        np.testing.assert_array_equal(feed(engine, [(sequence, [token])]), expected(reference, [token]))
    assert engine.sequence_length(sequence) == 160


@pytest.mark.parametrize("chunk", [1, 7, 23, 24, 25, 64, 65])
def test_chunks_do_not_matter(open_model: Open, chunk: int) -> None:
    engine = open_model()
    sequence, tokens = engine.sequence_create(), tokens_of(130)
    parts = [feed(engine, [(sequence, tokens[i : i + chunk])]) for i in range(0, len(tokens), chunk)]
    np.testing.assert_array_equal(np.concatenate(parts), expected(Reference(), tokens))


def test_sequences_in_one_batch(open_model: Open) -> None:
    engine = open_model(sequences=4)
    sequences = [engine.sequence_create() for _ in range(4)]
    assert sequences == [0, 1, 2, 3]
    references = [Reference() for _ in sequences]
    random = np.random.default_rng(3)
    for _ in range(12):
        chosen = random.permutation(4)[: random.integers(1, 5)]
        parts = [(int(i), random.integers(0, VOCAB, random.integers(1, 20)).tolist()) for i in chosen]
        want = np.concatenate([expected(references[i], tokens) for i, tokens in parts])
        np.testing.assert_array_equal(feed(engine, parts), want)


@pytest.mark.parametrize("offset", [0, 1, 8])
def test_logits_anywhere_in_memory(open_model: Open, offset: int) -> None:
    engine = open_model()
    sequence, tokens = engine.sequence_create(), tokens_of(90)
    np.testing.assert_array_equal(feed(engine, [(sequence, tokens)], offset), expected(Reference(), tokens))


def test_only_flagged_tokens_have_results(open_model: Open) -> None:
    engine = open_model()
    sequence, tokens = engine.sequence_create(), tokens_of(100)
    batch = batch_of([(sequence, 0, tokens)], flags=0, shift=5)
    batch["flags"][[3, 50, 99]] = WANT_LOGITS
    batch["flags"][[0, 50, 71]] |= WANT_HIDDEN
    logits = np.full((3, engine.facts.logits_stride), np.nan, np.float32)
    hidden = np.full((3, engine.facts.hidden_size), np.nan, np.float32)
    engine.step(batch, logits, hidden)
    reference = Reference()
    states = [reference.append(token) for token in tokens]
    np.testing.assert_array_equal(logits[:, :VOCAB], [logits_of(states[i]) for i in (3, 50, 99)])
    angles = (np.array([0, 50, 71], np.float32) + 5) * FREQUENCIES[1]
    assert hidden[:, 0].tolist() == [states[0], states[50], states[71]]
    np.testing.assert_allclose(hidden[:, 1], MAGNITUDE * np.cos(angles.astype(np.float64)), atol=2e-7)
    np.testing.assert_allclose(hidden[:, 2], MAGNITUDE * np.sin(angles.astype(np.float64)), atol=2e-7)
    assert (hidden[:, 3] == 42).all()


def test_facts(open_model: Open, artifact: Path) -> None:
    engine = open_model(sequences=3, context_length=100, threads=1)
    facts = engine.info()
    assert (facts.layers, facts.vocab_size, facts.hidden_size, facts.max_step_tokens) == (LAYERS, VOCAB, 4, MAX_STEP)
    assert (facts.context_length, facts.sequences, facts.threads, facts.kv_page_tokens) == (100, 3, 1, PAGE)
    assert (facts.name, facts.level, facts.weight_bytes) == (b"fake", b"plain", VOCAB)
    assert facts.kv_bytes_per_token == LAYERS * HEADS * 2 * HEAD_DIM * 2
    assert facts.kv_bytes_used == 0
    assert 16384 + 64 < facts.activation_bytes < 64 << 10
    assert open_model().facts.context_length == CONTEXT


def test_default_thread_count(open_model: Open) -> None:
    assert 1 <= open_model(threads=0).facts.threads <= len(os.sched_getaffinity(0))


# ---- sequences


def test_fork_shares_pages_until_they_are_written(open_model: Open) -> None:
    engine = open_model(sequences=3)
    first, reference = engine.sequence_create(), Reference()
    feed(engine, [(first, tokens := tokens_of(100))])
    expected(reference, tokens)
    assert engine.info().kv_bytes_used == 2 * page_bytes(engine)
    second, third = engine.sequence_fork(first), engine.sequence_fork(first)
    references = {first: reference, second: reference.copy(), third: reference.copy()}
    assert engine.info().kv_bytes_used == 2 * page_bytes(engine)
    assert engine.sequence_length(second) == 100
    for sequence, pages in ((second, 3), (first, 4), (third, 4)):  # the last to write owns the page already
        tokens = tokens_of(3, seed=sequence)
        np.testing.assert_array_equal(feed(engine, [(sequence, tokens)]), expected(references[sequence], tokens))
        assert engine.info().kv_bytes_used == pages * page_bytes(engine)
    for sequence in (first, second, third):
        engine.sequence_drop(sequence)
    assert engine.info().kv_bytes_used == 0


def test_fork_at_a_full_page_copies_nothing(open_model: Open) -> None:
    engine = open_model(sequences=2)
    first = engine.sequence_create()
    feed(engine, [(first, tokens_of(64))])
    second = engine.sequence_fork(first)
    feed(engine, [(second, [1]), (first, [2])])
    assert engine.info().kv_bytes_used == 3 * page_bytes(engine)


def test_truncate(open_model: Open) -> None:
    engine = open_model()
    sequence, reference = engine.sequence_create(), Reference()
    for length, count in ((0, 140), (100, 40), (64, 3), (0, 70), (70, 5)):
        engine.sequence_truncate(sequence, length)
        reference.truncate(length)
        assert engine.info().kv_bytes_used == -(-length // PAGE) * page_bytes(engine)
        tokens = tokens_of(count, seed=length)
        np.testing.assert_array_equal(feed(engine, [(sequence, tokens)]), expected(reference, tokens))
    with pytest.raises(InputError, match="has 75 tokens: it can't be truncated to 76"):
        engine.sequence_truncate(sequence, 76)
    with pytest.raises(InputError, match="truncated to -1"):
        engine.sequence_truncate(sequence, -1)


def test_a_random_life(open_model: Open) -> None:
    """Every operation in random order, against references."""
    engine, random = open_model(sequences=5, context_length=200), np.random.default_rng(11)
    alive: dict[int, Reference] = {}
    for _ in range(250):
        sequence = int(random.choice(list(alive))) if alive else -1
        match random.integers(0, 8) if alive else 0:
            case 0 if len(alive) < 5:
                alive[engine.sequence_create()] = Reference()
            case 1 if len(alive) < 5:
                alive[engine.sequence_fork(sequence)] = alive[sequence].copy()
            case 2:
                engine.sequence_drop(sequence)
                del alive[sequence]
            case 3:
                length = int(random.integers(0, len(alive[sequence].keys) + 1))
                engine.sequence_truncate(sequence, length)
                alive[sequence].truncate(length)
            case 4 if len(alive) < 5:
                alive[engine.sequence_restore(engine.sequence_save(sequence))] = alive[sequence].copy()
            case _:
                tokens = random.integers(0, VOCAB, random.integers(1, 40)).tolist()
                if len(alive[sequence].keys) + len(tokens) <= 200:
                    np.testing.assert_array_equal(feed(engine, [(sequence, tokens)]), expected(alive[sequence], tokens))
        for live, reference in alive.items():
            assert engine.sequence_length(live) == len(reference.keys)


@pytest.mark.parametrize("kv_dtype", ["f16", "f32", "i8"])
@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 150])
def test_save_and_restore(open_model: Open, length: int, kv_dtype: str) -> None:
    engine, other = open_model(kv_dtype=kv_dtype), open_model(kv_dtype=kv_dtype, sequences=2)
    sequence, reference = engine.sequence_create(), Reference()
    if length:
        feed(engine, [(sequence, tokens_of(length))])
        expected(reference, tokens_of(length))
    saved = engine.sequence_save(sequence)
    other.sequence_create()
    copy = other.sequence_restore(saved)
    assert copy == 1
    assert other.sequence_length(copy) == length
    np.testing.assert_array_equal(feed(other, [(copy, [5, 6])]), expected(reference, [5, 6]))


@pytest.mark.parametrize("kv_dtype", ["f16", "i8"])
def test_what_is_saved_does_not_depend_on_the_past(open_model: Open, kv_dtype: str) -> None:
    engine = open_model(sequences=2, kv_dtype=kv_dtype)
    fresh, used = engine.sequence_create(), engine.sequence_create()
    feed(engine, [(used, tokens_of(130, seed=9))])
    engine.sequence_truncate(used, 65)  # 63 tokens of garbage in a page that stays
    engine.sequence_truncate(used, 0)
    feed(engine, [(used, tokens_of(90, seed=9))])
    engine.sequence_truncate(used, 21)
    feed(engine, [(fresh, tokens_of(21, seed=9))])
    assert engine.sequence_save(fresh) == engine.sequence_save(used)


def test_restore_refuses_what_does_not_fit(open_model: Open) -> None:
    engine = open_model()
    sequence = engine.sequence_create()
    feed(engine, [(sequence, tokens_of(70))])
    saved = engine.sequence_save(sequence)
    with pytest.raises(InputError, match="all 1 sequence slots"):
        engine.sequence_restore(saved)
    engine.sequence_drop(sequence)
    for damaged in (b"", saved[:100], b"x" + saved[1:], saved[:-1], saved + b"x", b"x" * len(saved)):
        with pytest.raises(InputError, match="saved sequence"):
            engine.sequence_restore(damaged)
    with pytest.raises(InputError, match="another model, KV dtype or version"):
        open_model(kv_dtype="f32").sequence_restore(saved)
    with pytest.raises(InputError, match="70 tokens and the context 69"):
        open_model(context_length=69).sequence_restore(saved)
    random = np.random.default_rng(0)
    for place in random.permutation(128):
        damaged = bytearray(saved)
        damaged[place] ^= 0x80  # where that is the length's lowest byte, 70 becomes 198: other pages
        with pytest.raises(InputError):
            engine.sequence_restore(bytes(damaged))
    assert engine.info().kv_bytes_used == 0
    engine.sequence_restore(saved)


def test_save_with_too_small_a_buffer(open_model: Open) -> None:
    engine = open_model()
    sequence = engine.sequence_create()
    feed(engine, [(sequence, [1])])
    size, buffer = c_uint64(10), ctypes.create_string_buffer(10)
    assert engine._api.sequence_save(engine._model, sequence, buffer, byref(size), None) == interface.BAD_INPUT
    assert size.value == 128 + page_bytes(engine)
    assert buffer.raw == bytes(10)
