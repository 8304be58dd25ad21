"""Profiles of fake_program.c: every block is counted once, the parts are the whole, and no result changes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from smc.errors import InputError
from smc.runtime.binding import Engine
from smc.runtime.profile import Profile

from .conftest import VOCAB
from .fake_model import HEAD_DIM, HEADS, LAYERS, MAX_STEP, Reference, batch_of, expected, feed, tokens_of

VALUES = 2 * HEADS * HEAD_DIM * LAYERS  # K and V of a token in all layers


@pytest.fixture(params=[1, 2, 3])
def engine(request: pytest.FixtureRequest, fake_program: Path, artifact: Path) -> Iterator[Engine]:
    with Engine(artifact, fake_program.read_bytes(), threads=request.param, sequences=2) as engine:
        yield engine


def check_whole(profile: Profile) -> None:
    """Whatever happened: the threads' time is the sum of its parts."""
    parts = profile.kernel_seconds + profile.wait_seconds + profile.claim_seconds + profile.outside_seconds
    assert parts == pytest.approx(profile.threads * profile.seconds, rel=1e-9)
    assert 0 < profile.kernel_seconds < parts
    assert all(task.kernel_seconds >= 0 and task.wait_seconds >= 0 for task in profile.tasks)
    assert profile.claim_seconds > 0


def test_counts_bytes_and_multiply_adds(engine: Engine) -> None:
    """Two calls of step(): 30 tokens in chunks of 24 and 6, whose tiles see 8, 16, 24 and 30; then one that sees 31."""
    sequence, tokens = engine.sequence_create(), tokens_of(31)
    engine.profile_start()
    feed(engine, [(sequence, tokens[:30])])
    engine.step(batch_of([(sequence, 30, tokens[30:])], flags=0))
    profile = engine.profile_stop()
    check_whole(profile)
    assert (profile.threads, profile.steps, profile.tokens) == (engine.facts.threads, 2, 31)
    tasks = {task.name: task for task in profile.tasks}
    assert list(tasks) == ["state", "cache", "attention", "add", "hidden", "logits"]
    assert [task.calls for task in profile.tasks] == [3, 3 * LAYERS, 3 * LAYERS, 3 * LAYERS, 2, 2]
    assert [task.function for task in profile.tasks] == ["embed", "layer", "layer", "layer", "head", "head"]
    assert tasks["state"].bytes == 31 * 5
    assert tasks["cache"].bytes == 31 * VALUES * 2  # f16
    assert tasks["attention"].bytes == (8 + 16 + 24 + 30 + 31) * VALUES * 2
    assert tasks["attention"].macs == sum(range(1, 32)) * HEADS * LAYERS
    assert tasks["add"].bytes == 31 * 8 * LAYERS + 3 * 3
    assert tasks["logits"].bytes == 30 * 4 * VOCAB + 2 * 11  # the last step wanted none
    assert tasks["logits"].macs == 30 * VOCAB
    assert [task.integer for task in profile.tasks] == [False] * 5 + [True]
    blocks = 31 * HEADS * LAYERS
    assert tasks["cache"].calls <= tasks["cache"].pieces <= blocks


def test_results_are_the_same_bits(engine: Engine) -> None:
    tokens, reference = tokens_of(80), Reference()
    sequence = engine.sequence_create()
    for begin in range(0, 80, 20):
        if begin % 40 == 0:
            engine.profile_start()
        part = tokens[begin : begin + 20]
        np.testing.assert_array_equal(feed(engine, [(sequence, part)]), expected(reference, part))
        if begin % 40:
            check_whole(engine.profile_stop())


def test_start_forgets_what_was_before(engine: Engine) -> None:
    sequence = engine.sequence_create()
    engine.profile_start()
    feed(engine, [(sequence, tokens_of(5))])
    engine.profile_start()
    feed(engine, [(sequence, tokens_of(2))])
    profile = engine.profile_stop()
    assert (profile.steps, profile.tokens) == (1, 2)
    feed(engine, [(sequence, tokens_of(2))])  # off again
    with pytest.raises(InputError, match="without profile_start"):
        engine.profile_stop()
    engine.profile_start()
    empty = engine.profile_stop()
    assert (empty.steps, empty.seconds, empty.kernel_seconds, empty.outside_seconds) == (0, 0, 0, 0)


def test_a_refused_step_is_no_work(engine: Engine) -> None:
    sequence = engine.sequence_create()
    engine.profile_start()
    with pytest.raises(InputError):
        engine.step(batch_of([(sequence, 7, [1])], flags=0))
    feed(engine, [(sequence, tokens_of(MAX_STEP + 1))])
    profile = engine.profile_stop()
    check_whole(profile)
    assert (profile.steps, profile.tokens) == (2, MAX_STEP + 1)


def test_kv_dtype_counts(fake_program: Path, artifact: Path) -> None:
    with Engine(artifact, fake_program.read_bytes(), threads=1, kv_dtype="f32") as engine:
        sequence = engine.sequence_create()
        engine.profile_start()
        feed(engine, [(sequence, tokens_of(3))])
        assert engine.profile_stop().tasks[1].bytes == 3 * VALUES * 4


def test_forked_process_is_refused(engine: Engine) -> None:
    engine.profile_start()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        for call in (engine.profile_start, engine.profile_stop, lambda: engine.limits(1)):
            try:
                call()
            except RuntimeError as error:
                os.write(writer, b"refused" if b"forked" in str(error).encode() else b"?")
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"refused" * 3
    os.waitpid(child, 0)
    feed(engine, [(engine.sequence_create(), [1])])
    assert engine.profile_stop().tokens == 1


def test_limits(fake_program: Path, artifact: Path) -> None:
    """Between what the slowest machine does and what none does; 97 bytes of weights are too few to measure."""
    with Engine(artifact, fake_program.read_bytes(), threads=2) as engine:
        limits = engine.limits(2)
        assert limits.threads == 2
        assert 1e8 < limits.memory_bytes < 1e13
        assert limits.weights_bytes == 0
        for threads in (0, 3, -1):
            with pytest.raises(InputError, match="1 to 2 threads"):
                engine.limits(threads)
        sequence = engine.sequence_create()  # and the pool goes on as before
        np.testing.assert_array_equal(feed(engine, [(sequence, tokens_of(9))]), expected(Reference(), tokens_of(9)))
