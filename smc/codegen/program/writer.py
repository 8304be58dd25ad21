"""A writer of C: lines at the depth of the blocks that are open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class CWriter:
    """Lines of C, two spaces per open block."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._depth = 0

    def write(self, *lines: str) -> None:
        """Add lines; empty ones stay empty."""
        self.lines += [f"{'  ' * self._depth}{line}" if line else "" for line in lines]

    @contextmanager
    def block(self, head: str = "", end: str = "}") -> Iterator[None]:
        """head { … }"""
        self.write(f"{head} {{".lstrip())
        with self.deeper():
            yield
        self.write(end)

    @contextmanager
    def deeper(self) -> Iterator[None]:
        """Lines that belong to the one before, without braces."""
        self._depth += 1
        yield
        self._depth -= 1

    def text(self) -> str:
        """All lines."""
        return "\n".join(self.lines) + "\n"
