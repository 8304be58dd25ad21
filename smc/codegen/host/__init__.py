"""plan → C: the host program, text made to be read (`smc compile --emit c`)."""

from smc.codegen.host.kernel_table import program_kernels
from smc.codegen.host.program import host_program

__all__ = ["host_program", "program_kernels"]
