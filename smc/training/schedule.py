"""The learning rate over a run."""

from __future__ import annotations

import math

from smc.passes.training import Training


def rate(job: Training, step: int, done: float) -> float:
    """The rate of a step (from 0) when the share `done` of the run (0 … 1) is done. It grows in the warm-up, then falls
    to the fraction `final` along a cosine (Loshchilov and Hutter, arXiv 1608.03983) or a line."""
    warm = min(1.0, (step + 1) / job.warmup) if job.warmup else 1.0
    left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[job.schedule]
    lowest = 1.0 if job.schedule == "constant" else job.final
    return job.learning_rate * warm * (lowest + (1 - lowest) * left)
