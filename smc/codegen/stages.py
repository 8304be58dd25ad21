"""Stages of a compilation: how long each takes, and how much of it is done."""

from __future__ import annotations

import time
from collections.abc import Callable


class Stages:
    """Times stages and reports their progress: `with stages(name) as report`, report(fraction)."""

    def __init__(self, progress: Callable[[str, float], None] | None) -> None:
        self.progress = progress or (lambda stage, fraction: None)
        self.seconds, self.name, self.began = dict[str, float](), "", 0.0

    def __call__(self, name: str) -> Stages:
        """The stage that `with` begins."""
        self.name = name
        return self

    def __enter__(self) -> Callable[[float], None]:
        name, self.began = self.name, time.perf_counter()
        self.progress(name, 0.0)
        return lambda fraction: self.progress(name, fraction)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.seconds[self.name] = self.seconds.get(self.name, 0.0) + time.perf_counter() - self.began
            self.progress(self.name, 1.0)
