"""The user's cache folder, where smc keeps its results."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """$SMC_CACHE, or smc in the user's cache folder; None if the user has none."""
    try:
        named = os.environ.get("SMC_CACHE")
        return Path(named or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smc").absolute()
    except (OSError, RuntimeError):  # no home, or no working directory
        return None
