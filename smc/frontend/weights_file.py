"""A file of weights, which are read part by part, long after its head."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from smc.errors import InputError


@dataclass(frozen=True)
class WeightsFile:
    """The file as it was when its head was read; one that changed meanwhile is refused instead of misread."""

    path: Path
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> WeightsFile:
        """The file as it is now; OSError where there is none."""
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)

    def read(self, offset: int, size: int) -> np.ndarray:
        """uint8 [size]: the bytes from `offset` on, in memory of their own.

        Reading is faster than faulting in mapped pages, and nothing of the file stays in memory.
        InputError if the file has changed, is gone, or fails to be read.
        """
        data = np.empty(size, np.uint8)
        try:
            with self.path.open("rb", buffering=0) as file:
                unchanged = WeightsFile.of(self.path) == self
                if unchanged and _fill(file, offset, data):
                    return data
        except OSError as error:
            raise InputError(f"{self.path} can no longer be read: {error.strerror}") from None
        raise InputError(f"{self.path} has changed since it was opened: load it again")


def _fill(file: BinaryIO, offset: int, data: np.ndarray) -> bool:
    """Whether the file holds enough bytes from `offset` on to fill `data`."""
    file.seek(offset)
    rest = data.data
    while rest:
        count = file.readinto(rest)  # type: ignore[attr-defined]  # a raw file has it
        if not count:
            return False
        rest = rest[count:]
    return True
