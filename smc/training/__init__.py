"""Training modules in torch: what the passes `train` and `distill` run."""

from smc.training.run import train

__all__ = ["train"]
