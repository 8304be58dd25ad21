"""The counting artifact for benchmarks that run artifacts."""

from tests.runtime.conftest import artifact, build_program, program

__all__ = ["artifact", "build_program", "program"]
