"""64-bit ARM: NEON is the floor, which every such CPU has; dot products (2018 on) and int8 matrices (2021 on) above."""

from __future__ import annotations

from smc.targets.target import Level, Target

_NEON_FEATURES = ("fp-armv8", "neon")
_DOTPROD_FEATURES = (*_NEON_FEATURES, "dotprod")
_I8MM_FEATURES = (*_DOTPROD_FEATURES, "i8mm")

NEON = Level("neon", "arm64", _NEON_FEATURES, lanes=4, registers=32, dot="smull")
DOTPROD = Level("dotprod", "arm64", _DOTPROD_FEATURES, lanes=4, registers=32, dot="sdot")
I8MM = Level("i8mm", "arm64", _I8MM_FEATURES, lanes=4, registers=32, dot="smmla")

ARM64 = Target(
    name="arm64",
    description="Linux on 64-bit ARM: Raspberry Pi 3 and later, Jetson, servers",
    machine="aarch64",
    system="Linux",
    llvm_triple="aarch64-linux-gnu",
    zig_target="aarch64-linux-gnu.2.17",
    levels=(I8MM, DOTPROD, NEON),
)
