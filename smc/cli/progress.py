"""Shows the progress of long work on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

import click

from smc.cli import messages

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_SECONDS = 10.0
"""How often a stage prints its progress without a terminal."""


class StageProgress:
    """Shows stages one after the other; `update` is a callback: (stage, fraction done).

    A context manager. A stage is over when it reaches 1, when another starts, or at the end.
    `seconds` has the time of each stage, in order. With -q nothing is shown.
    """

    def __init__(self, *, still: bool = False) -> None:
        """Show a bar if standard error is a terminal. still: draw in `update` only, so that nothing runs during a
        measurement."""
        self.seconds: dict[str, float] = {}
        self._still = still
        self._stage: str | None = None
        self._started = self._said = 0.0
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> StageProgress:
        """Start drawing."""
        if sys.stderr.isatty() and not messages.is_quiet():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                Progress,
                TaskProgressColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            remaining = (TextColumn("left"), TimeRemainingColumn())
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
            console = Console(stderr=True)
            self._bar = Progress(*columns, *remaining, console=console, transient=True, auto_refresh=not self._still)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop drawing; a stage that an error ended is not reported as done."""
        if kind is None:
            self._finish()
        if self._bar is not None:
            self._bar.stop()

    def update(self, stage: str, fraction: float) -> None:
        """Report that `fraction` (0 … 1) of stage `stage` is done."""
        if stage != self._stage:
            if fraction >= 1 and stage in self.seconds:
                return  # reported twice as done
            self._finish()
            self._stage, self._started = stage, time.perf_counter()
            self._said = self._started
            if self._bar is not None:
                self._task = self._bar.add_task(stage, total=1.0)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=fraction, refresh=self._still)
        elif fraction < 1:
            self._say(stage, fraction)
        if fraction >= 1:
            self._finish()

    def note(self, line: str) -> None:
        """Print a line without disturbing the bar."""
        if messages.is_quiet():
            return
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            click.echo(line, err=True)

    def detail(self, line: str) -> None:
        """Print a line with -v."""
        if messages.is_verbose():
            self.note(line)

    def _say(self, stage: str, fraction: float) -> None:
        """Print a plain line from time to time, with an estimate of the remaining time."""
        now = time.perf_counter()
        if now - self._said < LINE_SECONDS:
            return
        self._said = now
        left = f", about {(now - self._started) * (1 / fraction - 1):.0f} s left" if fraction > 0 else ""
        self.note(f"{stage}: {100 * fraction:.0f} %{left}")

    def _finish(self) -> None:
        if self._stage is None:
            return
        stage, self._stage = self._stage, None
        elapsed = time.perf_counter() - self._started
        self.seconds[stage] = self.seconds.get(stage, 0.0) + elapsed
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        self.note(f"{stage}: {elapsed:.1f} s")
