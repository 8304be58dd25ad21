"""A quantization method of your own is one class. Compile with it, on every target and with a real kernel:

smc compile MODEL -p ./examples/log_levels.py:log-levels:group=128
"""

from dataclasses import dataclass

import torch

from smc.ir import Encoding
from smc.passes import GroupStatistics, WeightQuantizer, register

ENTRIES = (-127, -92, -67, -48, -34, -22, -13, -4, 4, 13, 22, 34, 48, 67, 92, 127)


@register("log-levels")
@dataclass(frozen=True)
class LogLevels(WeightQuantizer):
    """4-bit codebook whose entries are denser near zero."""

    group: int = 64

    def encoding(self) -> Encoding:
        """Integer entries up to 127 keep the dot products in int8."""
        return Encoding.of(bits=4, codebook=ENTRIES, group=self.group)

    def quantize(self, groups: torch.Tensor, statistics: GroupStatistics) -> tuple[torch.Tensor, ...]:
        """The nearest entry for every weight; the largest weight of a group becomes 127 or -127."""
        scales = self.round_scales(groups.abs().amax(-1) / 127)
        codes = (groups / scales[..., None])[..., None].sub(torch.tensor(ENTRIES)).abs().argmin(-1)
        return codes, scales
