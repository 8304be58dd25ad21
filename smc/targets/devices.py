"""Single devices: each target has only the best level of the device's CPU, for smaller artifacts."""

from __future__ import annotations

from dataclasses import replace

from smc.targets.arm import ARM64, ARM64_MACOS, DOTPROD, I8MM, NEON
from smc.targets.target import CpuLevel, Target

_ARM64_TESTED = "as arm64: under qemu's emulation, never on the device"


def _linux(name: str, description: str, cpu: str, level: CpuLevel) -> Target:
    return replace(ARM64, name=name, description=description, cpu=cpu, levels=(level,), tested=_ARM64_TESTED)


def _macos(name: str, description: str, cpu: str, level: CpuLevel) -> Target:
    return replace(ARM64_MACOS, name=name, description=description, cpu=cpu, levels=(level,))


DEVICES: tuple[Target, ...] = (
    _linux("raspberry-pi-3", "Raspberry Pi 3 and Zero 2 W (64-bit system)", "cortex-a53", NEON),
    _linux("raspberry-pi-4", "Raspberry Pi 4 and 400 (64-bit system)", "cortex-a72", NEON),
    _linux("raspberry-pi-5", "Raspberry Pi 5 and 500", "cortex-a76", DOTPROD),
    _linux("rk3588", "boards with a Rockchip RK3588, such as Orange Pi 5 and Rock 5", "cortex-a76", DOTPROD),
    _linux("jetson-nano", "the CPU of a Jetson Nano (2019)", "cortex-a57", NEON),
    _linux("jetson-xavier", "the CPU of a Jetson Xavier", "carmel", NEON),
    _linux("jetson-orin", "the CPU of a Jetson Orin", "cortex-a78", DOTPROD),
    _linux("graviton2", "AWS Graviton 2", "neoverse-n1", DOTPROD),
    _linux("graviton3", "AWS Graviton 3", "neoverse-v1", I8MM),
    _macos("apple-m1", "Macs with an M1", "apple-m1", DOTPROD),
    _macos("apple-m2", "Macs with an M2 or later", "apple-m2", I8MM),
)
