"""Runs a sweep: cells in processes or on a Dask cluster; the folder keeps each result, so that none is computed
twice."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from smc.errors import InputError
from smc.sweep.cell import Cell, judge

PROMPT_TOKENS, DECODED_TOKENS, ROUNDS = 128, 64, 5
"""Rounds of a measurement of speed: artifacts alternate, and medians count."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a cell: the `result` of `judge`, with "speed" if it was measured, or the sentence of an error."""

    cell: Cell
    result: dict[str, Any] | None = None
    error: str | None = None


def run_sweep(
    cells: Sequence[Cell],
    folder: Path,
    jobs: int = 1,
    scheduler: str | None = None,
    speed: bool = True,
    progress: Callable[[str, float], None] = lambda stage, fraction: None,
) -> list[Outcome]:
    """Evaluate all cells, in their order; results that `folder` has already are read from it.

    jobs: how many run at once, each in a process of its own. scheduler: the address of a Dask scheduler whose workers
    see the same files, in place of processes. speed: measure tokens per second at the end, on this machine.
    progress: is called with a stage and how much of it is done. The outcome of a cell that fails has an error's
    sentence; the next run tries it again. Raises InputError if `folder` can't be written, or no scheduler answers at
    the address.
    """
    try:
        (folder / "artifacts").mkdir(parents=True, exist_ok=True)
        (folder / "results").mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"can't write to the folder {folder}: {error.strerror}") from None
    outcomes = {cell.key: Outcome(cell, _read(_file(folder, cell))) for cell in cells}
    open_cells = [outcome.cell for outcome in outcomes.values() if outcome.result is None]
    progress("judge", 1 - len(open_cells) / max(1, len(outcomes)))
    for done, outcome in enumerate(_judged(open_cells, folder, jobs, scheduler), 1):
        if outcome.result is not None:
            _write(_file(folder, outcome.cell), outcome.result)
        outcomes[outcome.cell.key] = outcome
        progress("judge", 1 - (len(open_cells) - done) / len(outcomes))
    if speed:
        _measure([o for o in outcomes.values() if o.result is not None], folder, progress)
    return [outcomes[cell.key] for cell in cells]


def _file(folder: Path, cell: Cell) -> Path:
    return folder / "results" / f"{cell.key}.json"


def _artifact(folder: Path, cell: Cell) -> Path:
    return folder / "artifacts" / f"{cell.key}.smc"


def _read(path: Path) -> dict[str, Any] | None:
    """A saved result; None if there is none, or an incomplete one of a killed process."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "quality" in found else None


def _write(path: Path, result: dict[str, Any]) -> None:
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
    unfinished.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def _attempt(cell: Cell, artifact: Path) -> Outcome:
    """Evaluate a cell in a worker."""
    try:
        return Outcome(cell, judge(cell, artifact))
    except InputError as error:
        return Outcome(cell, error=str(error))


def _judged(cells: Sequence[Cell], folder: Path, jobs: int, scheduler: str | None) -> Iterator[Outcome]:
    """Yield outcomes as they come."""
    if not cells:
        return
    if scheduler is not None:
        yield from _on_cluster(cells, folder, scheduler)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        running: set[Future[Outcome]] = {pool.submit(_attempt, cell, _artifact(folder, cell)) for cell in cells}
        try:
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _on_cluster(cells: Sequence[Cell], folder: Path, scheduler: str) -> Iterator[Outcome]:
    from distributed import Client, as_completed

    try:
        client = Client(scheduler, timeout="10s")  # type: ignore[no-untyped-call]  # dask has no types
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {scheduler} ({error})") from None
    with client:
        futures = [client.submit(_attempt, cell, _artifact(folder.absolute(), cell), pure=False) for cell in cells]
        for future in as_completed(futures):  # type: ignore[no-untyped-call]
            yield future.result()


def _measure(outcomes: Sequence[Outcome], folder: Path, progress: Callable[[str, float], None]) -> None:
    """Add tokens per second to the results that lack them. Artifacts alternate, so that other load hits all of them."""
    from smc.runtime import load

    lacking = [o for o in outcomes if o.result is not None and "speed" not in o.result]
    lacking = [o for o in lacking if _artifact(folder, o.cell).is_file()]
    rates: dict[str, list[tuple[float, float]]] = {o.cell.key: [] for o in lacking}
    for number in range(ROUNDS):
        for place, outcome in enumerate(lacking):
            with load(_artifact(folder, outcome.cell), context_length=PROMPT_TOKENS + DECODED_TOKENS) as model:
                prompt = [(7 * i * i + 3) % model.vocab_size for i in range(PROMPT_TOKENS)]
                with model.new_sequence() as sequence:
                    started = time.perf_counter()
                    token = sequence.next_token(prompt)
                    middle = time.perf_counter()
                    for _ in range(DECODED_TOKENS - 1):
                        token = sequence.next_token([token])
                    end = time.perf_counter()
            prefill, decode = PROMPT_TOKENS / (middle - started), (DECODED_TOKENS - 1) / (end - middle)
            rates[outcome.cell.key].append((prefill, decode))
            progress("measure speed", (number * len(lacking) + place + 1) / (ROUNDS * len(lacking)))
    for outcome in lacking:
        assert outcome.result is not None
        prefill, decode = (statistics.median(column) for column in zip(*rates[outcome.cell.key], strict=True))
        outcome.result["speed"] = {"prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode}
        _write(_file(folder, outcome.cell), outcome.result)
