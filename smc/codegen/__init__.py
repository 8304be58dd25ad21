"""ir → kernels → machine code → artifact."""

from smc.codegen.compiler import CompileReport, compile_module
from smc.codegen.options import CompileOptions
from smc.codegen.proof import WrongProgramError

__all__ = ["CompileOptions", "CompileReport", "WrongProgramError", "compile_module"]
