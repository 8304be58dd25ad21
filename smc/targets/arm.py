"""64-bit ARM: NEON is the floor, which every such CPU has; dot products (2018 on) and int8 matrices (2021 on) above."""

from __future__ import annotations

from smc.targets.target import CpuLevel, Target

_NEON_FEATURES = ("fp-armv8", "neon")
_DOTPROD_FEATURES = (*_NEON_FEATURES, "dotprod")
_I8MM_FEATURES = (*_DOTPROD_FEATURES, "i8mm")

# The CPU for whose pipeline LLVM orders instructions; for an unknown CPU it spills registers. Cores of the first two
# levels execute in order and lose half their speed with another order (llvm-mca); other cores hardly depend on it. But
# for in-order CPUs LLVM also unrolls loops four times, which makes attention three times the code, spills registers and
# is slower. So these levels name such a CPU for matmuls only, whose loops are too long to be unrolled.
_IN_ORDER, _WIDE = "cortex-a53", "apple-a7"

NEON = CpuLevel("neon", "arm64", _NEON_FEATURES, lanes=4, registers=32, dot="smull", matmul_schedule=_IN_ORDER)
DOTPROD = CpuLevel("dotprod", "arm64", _DOTPROD_FEATURES, lanes=4, registers=32, dot="sdot", matmul_schedule=_IN_ORDER)
I8MM = CpuLevel(
    "i8mm", "arm64", _I8MM_FEATURES, lanes=4, registers=32, dot="smmla", schedule=_WIDE, matmul_schedule=_WIDE
)

ARM64 = Target(
    name="arm64",
    description="Linux on 64-bit ARM: Raspberry Pi 3 and later, Jetson, servers",
    machine="aarch64",
    system="Linux",
    llvm_triple="aarch64-linux-gnu",
    zig_target="aarch64-linux-gnu.2.17",
    executable_target="aarch64-linux-musl",
    levels=(I8MM, DOTPROD, NEON),
    tested="every level under qemu's emulation (Cortex-A53, Cortex-A76, max), never on a board",
)

ARM64_ANDROID = Target(
    name="arm64-android",
    description="Android 7 and later on 64-bit ARM; the executable is for adb shell and Termux",
    machine="aarch64",
    system="Android",
    llvm_triple="aarch64-linux-android24",  # unlike Linux, Android reserves register x18
    zig_target="aarch64-linux-android",
    executable_target="aarch64-linux-musl",
    levels=(I8MM, DOTPROD, NEON),
    tested="the executable under qemu's emulation, never on a phone; the library is only linked",
)

ARM64_MACOS = Target(
    name="arm64-macos",
    description="macOS 11 and later on Apple silicon",
    machine="arm64",
    system="Darwin",
    llvm_triple="arm64-apple-macos11",
    zig_target="aarch64-macos.11.0",
    executable_target=None,
    levels=(I8MM, DOTPROD, NEON),
    tested="only linked, never run",
)
