"""Sweeps: settings tried on models, each compiled, evaluated and timed, in one report."""

from smc.sweep.cell import Cell, Setting
from smc.sweep.run import Outcome, run_sweep

__all__ = ["Cell", "Outcome", "Setting", "run_sweep"]
