"""ir → kernels → machine code → artifact."""

from smc.codegen.compiler import CompileReport, compile_module

__all__ = ["CompileReport", "compile_module"]
