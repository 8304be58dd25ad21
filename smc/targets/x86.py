"""x86-64: AVX2 is the floor; AVX-VNNI is what most laptops have, AVX-512 VNNI servers and AMD's cores from Zen 4 on."""

from __future__ import annotations

from smc.targets.target import CpuLevel, Target

_AVX2_FEATURES = ("sse4.2", "avx", "avx2", "fma", "f16c", "bmi", "bmi2", "popcnt", "lzcnt")
_AVX512_FEATURES = (*_AVX2_FEATURES, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni")

AVX2 = CpuLevel("avx2", "x86", _AVX2_FEATURES, lanes=8, registers=16, dot="vpmaddubsw", source_order=True)
AVX_VNNI = CpuLevel("avxvnni", "x86", (*_AVX2_FEATURES, "avxvnni"), lanes=8, registers=16, dot="vpdpbusd")
AVX512_VNNI = CpuLevel("avx512vnni", "x86", _AVX512_FEATURES, lanes=16, registers=32, dot="vpdpbusd")

X86_64 = Target(
    name="x86-64",
    description="Linux on Intel or AMD CPUs with AVX2 (2013 and later)",
    machine="x86_64",
    system="Linux",
    llvm_triple="x86_64-linux-gnu",
    zig_target="x86_64-linux-gnu.2.17",
    executable_target="x86_64-linux-musl",
    levels=(AVX512_VNNI, AVX_VNNI, AVX2),
    tested="avx512vnni and avx2 on AMD Zen 4 and 5, avx2 under qemu as a Haswell; avxvnni: its kernels only",
)
