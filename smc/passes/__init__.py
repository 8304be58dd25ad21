"""Passes (ir → ir): their base, the registry, the pass manager, recipes, and the passes that smc brings."""

from smc.passes.activations import ChangeActivations
from smc.passes.base import Context, Pass
from smc.passes.calibration import Calibration, Runner
from smc.passes.convert import Convert
from smc.passes.fusion import FUSIONS, FuseGatedActivation, FuseNormResidual, FuseResidual
from smc.passes.manager import apply
from smc.passes.quantize_gptq import QuantizeGPTQ
from smc.passes.quantize_nf4 import QuantizeNF4
from smc.passes.quantize_rtn import QuantizeRTN
from smc.passes.quantize_ternary import QuantizeTernary
from smc.passes.recipe import Recipe, load_recipe, recipe_names
from smc.passes.registry import parse_pass, register, registered_passes
from smc.passes.sequential import SequentialQuantizer
from smc.passes.statistics import GroupStatistics, InputStatistics, Statistic
from smc.passes.untie import Untie
from smc.passes.weight_quantizer import WeightQuantizer

__all__ = [
    "FUSIONS",
    "Calibration",
    "ChangeActivations",
    "Context",
    "Convert",
    "FuseGatedActivation",
    "FuseNormResidual",
    "FuseResidual",
    "GroupStatistics",
    "InputStatistics",
    "Pass",
    "QuantizeGPTQ",
    "QuantizeNF4",
    "QuantizeRTN",
    "QuantizeTernary",
    "Recipe",
    "Runner",
    "SequentialQuantizer",
    "Statistic",
    "Untie",
    "WeightQuantizer",
    "apply",
    "load_recipe",
    "parse_pass",
    "recipe_names",
    "register",
    "registered_passes",
]
