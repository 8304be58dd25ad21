"""Training modules in torch: what the passes `train` and `distill` run."""

from smc.training.run import curve_of, train

__all__ = ["curve_of", "train"]
