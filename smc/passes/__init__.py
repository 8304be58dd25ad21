"""Passes (ir → ir): their base, the registry, the pass manager, recipes, and the passes that come with smc."""

from smc.passes.activations import ChangeActivations
from smc.passes.awq import AWQ
from smc.passes.base import Context, Pass
from smc.passes.calibration import Calibration, Runner
from smc.passes.convert import Convert
from smc.passes.expand_blocks import ExpandBlocks
from smc.passes.functional_tokens import FunctionalTokens
from smc.passes.fusion import FUSIONS, FuseGatedActivation, FuseNormResidual, FuseResidual
from smc.passes.manager import apply
from smc.passes.map_layers import DropLayers, MapLayers
from smc.passes.prune_depth import PruneDepth
from smc.passes.prune_width import PruneWidth
from smc.passes.quantize_codebook import QuantizeCodebook
from smc.passes.quantize_gptq import QuantizeGPTQ
from smc.passes.quantize_guided import QuantizeGuided
from smc.passes.quantize_nf4 import QuantizeNF4
from smc.passes.quantize_rtn import QuantizeRTN
from smc.passes.quantize_ternary import QuantizeTernary
from smc.passes.recipe import Recipe, load_recipe, recipe_names
from smc.passes.registry import parse_pass, register, registered_passes
from smc.passes.rotate import Rotate
from smc.passes.sequential import SequentialQuantizer
from smc.passes.smooth import Smooth
from smc.passes.sparsify import SparsifyMagnitude, SparsifySparseGPT, SparsifyWanda
from smc.passes.statistics import GroupStatistics, InputStatistics, Statistic
from smc.passes.training import Distill, Train, Training
from smc.passes.untie import Untie
from smc.passes.up_scale import UpScale
from smc.passes.weight_quantizer import WeightQuantizer

__all__ = [
    "AWQ",
    "FUSIONS",
    "Calibration",
    "ChangeActivations",
    "Context",
    "Convert",
    "Distill",
    "DropLayers",
    "ExpandBlocks",
    "FunctionalTokens",
    "FuseGatedActivation",
    "FuseNormResidual",
    "FuseResidual",
    "GroupStatistics",
    "InputStatistics",
    "MapLayers",
    "Pass",
    "PruneDepth",
    "PruneWidth",
    "QuantizeCodebook",
    "QuantizeGPTQ",
    "QuantizeGuided",
    "QuantizeNF4",
    "QuantizeRTN",
    "QuantizeTernary",
    "Recipe",
    "Rotate",
    "Runner",
    "SequentialQuantizer",
    "Smooth",
    "SparsifyMagnitude",
    "SparsifySparseGPT",
    "SparsifyWanda",
    "Statistic",
    "Train",
    "Training",
    "Untie",
    "UpScale",
    "WeightQuantizer",
    "apply",
    "load_recipe",
    "parse_pass",
    "recipe_names",
    "register",
    "registered_passes",
]
