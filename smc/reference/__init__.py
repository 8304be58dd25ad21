"""Executes the ir in torch: golden results for codegen, and the model that calibration and evaluation run."""

from smc.reference.calibration import SHIPPED_TEXT, CalibrationText
from smc.reference.evaluation import Evaluation, evaluate, kl_divergence, text_windows
from smc.reference.exact import ExactReference
from smc.reference.execution import Batch, Hook, Reference

__all__ = [
    "SHIPPED_TEXT",
    "Batch",
    "CalibrationText",
    "Evaluation",
    "ExactReference",
    "Hook",
    "Reference",
    "evaluate",
    "kl_divergence",
    "text_windows",
]
