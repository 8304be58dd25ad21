"""`smc doctor`: checks this machine and this installation, and names the command that installs what is missing."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from smc.cli.options import verbosity_options
from smc.distribution import NAME, install_command

Purpose = Literal["running", "compiling"]

CPUINFO_NAMES = {
    "abm": "lzcnt",
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fullfp16",
    "avx512_vnni": "avx512vnni",
    "avx_vnni": "avxvnni",
    "bmi1": "bmi",
    "fp": "fp-armv8",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
}
"""CPU features whose name in /proc/cpuinfo is not LLVM's."""


@dataclass(frozen=True)
class Check:
    """One finding. `fix` is the command or advice that repairs it; None if nothing is wrong."""

    name: str
    found: str
    needed_for: Purpose | None = None
    fix: str | None = None


@click.command()
@click.option("--clear-cache", is_flag=True, help="Delete the compiler's cache, and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@verbosity_options
def doctor(clear_cache: bool, as_json: bool) -> None:
    """Show what this machine has, what is missing, and how to get it.

    The exit status is 0 if this machine can run artifacts, else 2. What only the compiler needs may be missing: a
    device that runs artifacts does not need it.

    \b
    Examples:
      smc doctor --json
      smc doctor --clear-cache
    """
    if clear_cache:
        _clear_cache(as_json)
        return
    sections = {"software": software_checks(), "machine": machine_checks(), "toolchain": toolchain_checks()}
    checks = [check for section in sections.values() for check in section]
    lacking = {check.needed_for for check in checks if check.fix}
    ready = {"running": "running" not in lacking, "compiling": not lacking & {"running", "compiling"}}
    if as_json:
        report = {name: [asdict(check) for check in section] for name, section in sections.items()}
        click.echo(json.dumps({"ready": ready, **report}, indent=2))
    else:
        _print(sections, ready)
    if not ready["running"]:
        click.get_current_context().exit(2)


def _clear_cache(as_json: bool) -> None:
    from smc.codegen.cache import clear_cache
    from smc.folders import cache_folder

    folder, size = cache_folder(), clear_cache()
    facts = {"cache": None if folder is None else str(folder), "removed_bytes": size}
    click.echo(json.dumps(facts) if as_json else f"{size / 1e6:,.1f} MB removed from {folder}")


def _print(sections: dict[str, list[Check]], ready: dict[str, bool]) -> None:
    width = max(len(check.name) for section in sections.values() for check in section)
    for name, section in sections.items():
        click.secho(name, bold=True)
        for check in section:
            mark = click.style("✗", fg="red") if check.fix else click.style("✓", fg="green")
            click.echo(f"  {mark} {check.name.ljust(width)}  {check.found}")
            if check.fix:
                click.echo(f"    {' ' * width}  → {check.fix}")
    for purpose, good in ready.items():
        click.echo(f"ready for {purpose} models: {'yes' if good else 'no, see ✗ above'}")


# ---------------------------------------------------------------- software


def software_checks() -> list[Check]:
    """Python and every package that smc needs, with the versions found and required."""
    python = platform.python_version()
    old = sys.version_info < (3, 10)
    checks = [Check("Python", python, "running", "install Python 3.10 or newer" if old else None)]
    try:
        requirements = importlib.metadata.requires(NAME) or []
        checks.append(Check(NAME, importlib.metadata.version(NAME)))
    except importlib.metadata.PackageNotFoundError:
        found = "runs from a source tree: requirements are not checked"
        return [*checks, Check(NAME, found, fix=install_command())]
    for requirement in requirements:
        check = check_requirement(requirement)
        if check:
            checks.append(check)
    return checks


def check_requirement(requirement: str) -> Check | None:
    """Compare an installed package with a requirement such as `torch==2.13.0; extra == "compile"`.

    Only exact versions are compared (a local part such as "+cpu" is ignored); None for extras that users don't need.
    """
    specifier, _, marker = requirement.partition(";")
    match = re.match(r"([A-Za-z0-9._-]+)\s*(.*)", specifier.strip())
    if match is None or ("extra" in marker and "compile" not in marker):
        return None
    name, wanted = match[1], match[2].strip()
    purpose: Purpose = "compiling" if "extra" in marker else "running"
    install = f"{sys.executable} -m pip install '{name}{wanted}'"
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "missing", purpose, install)
    exact = wanted.removeprefix("==") if wanted.startswith("==") else None
    if exact and found.partition("+")[0] != exact:
        return Check(name, f"{found}, but smc needs {exact}", purpose, install)
    return Check(name, found, purpose)


# ---------------------------------------------------------------- machine


def machine_checks() -> list[Check]:
    """Operating system, CPU and the level it would run, cores, memory and disk."""
    system, machine = platform.system(), platform.machine()
    supported = system in ("Linux", "Darwin")
    checks = [
        Check(
            "system",
            f"{system} {platform.release()}, {machine}",
            "running",
            None if supported else "smc runs on Linux and macOS: use a Linux machine, container or virtual machine",
        )
    ]
    if not supported:
        return checks
    if system == "Darwin":
        command = ["sysctl", "machdep.cpu.brand_string", "hw.memsize", "hw.optional"]
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        model, features, total = read_sysctl(text)
        memory = f"{total / 2**30:.1f} GiB"
    else:
        model, features = read_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
        sizes = _meminfo()
        total, available = sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
        memory = f"{total / 2**30:.1f} GiB, {available / 2**30:.1f} GiB available"
    return [
        *checks,
        Check("CPU", model),
        _level_check(features),
        Check("cores", _cores()),
        Check("memory", memory),
    ]


def read_cpuinfo(text: str) -> tuple[str, set[str]]:
    """The CPU's name and its features, by LLVM's names, from the text of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip().lower(), value.strip())
    flags = fields.get("flags", fields.get("features", "")).split()
    model = fields.get("model name") or fields.get("cpu part") or "unknown"
    return model, {CPUINFO_NAMES.get(flag, flag) for flag in flags}


def read_sysctl(text: str) -> tuple[str, set[str], int]:
    """The CPU's name, its features, by LLVM's names, and the bytes of memory, from what macOS's `sysctl` prints."""
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    names = {key.rpartition(".FEAT_")[2].lower() for key, value in fields.items() if ".FEAT_" in key and value == "1"}
    arm = {"fp-armv8", "neon"}  # all Macs with Apple silicon
    return fields.get("machdep.cpu.brand_string", "unknown"), arm | names, int(fields.get("hw.memsize", "0"))


def _level_check(features: set[str]) -> Check:
    """The feature level at which an artifact for this machine would run."""
    from smc.errors import InputError
    from smc.targets import TARGETS, find_target

    try:
        levels = find_target("native").levels
    except InputError as error:
        machines = ", ".join(sorted({target.machine for target in TARGETS.values()}))
        return Check("feature level", str(error), "running", f"use a machine of the kind {machines}")
    missing = {level.name: [name for name in level.features if name not in features] for level in levels}
    fitting = [name for name, lacking in missing.items() if not lacking]
    if fitting:
        return Check("feature level", f"{fitting[0]} (this CPU can run {', '.join(fitting)})", "running")
    name, lacking = min(missing.items(), key=lambda item: len(item[1]))
    return Check("feature level", f"none: {name} needs {', '.join(lacking)}", "running", "use a newer CPU")


def _cores() -> str:
    if not hasattr(os, "sched_getaffinity"):
        return str(os.cpu_count())
    count = len(os.sched_getaffinity(0))
    quota = _cgroup_cpus()
    limit = f", limited to {quota:g} by the cgroup's quota" if quota is not None else ""
    return f"{count} of {os.cpu_count()} usable{limit}"


def _cgroup_cpus() -> float | None:
    """The number of CPUs that the cgroup's quota allows, or None if there is no quota."""
    root = Path("/sys/fs/cgroup")
    try:
        own = next(
            (line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), ""
        ).strip("/")
        folder = root / own
        quotas = []
        for place in [folder, *folder.parents][: len(Path(own).parts) + 1]:
            limit = place / "cpu.max"
            if limit.is_file() and not (text := limit.read_text()).startswith("max"):
                quota, period = text.split()
                quotas.append(int(quota) / int(period))
        version_1 = root / "cpu"
        if (version_1 / "cpu.cfs_quota_us").is_file():
            quota = (version_1 / "cpu.cfs_quota_us").read_text()
            if int(quota) > 0:
                quotas.append(int(quota) / int((version_1 / "cpu.cfs_period_us").read_text()))
    except (OSError, ValueError):
        return None
    return min(quotas, default=None)


def _meminfo() -> dict[str, int]:
    """The fields of /proc/meminfo in bytes."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}


# ---------------------------------------------------------------- toolchain


def toolchain_checks() -> list[Check]:
    """The C compiler that links artifacts, and the cache of compiled kernels, whose every entry is checked."""
    checks = []
    if importlib.util.find_spec("ziglang") is not None:  # otherwise the software section says that it is missing
        checks.append(_compiler_check())
    checks += _gpu_checks()
    if importlib.util.find_spec("tvm") is None:
        return checks
    return [*checks, _cache_check()]


def _gpu_checks() -> list[Check]:
    """CUDA's compiler and driver. Only GPUs need them, so their absence is no fault."""
    import ctypes

    checks = []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        checks.append(Check("GPU compiler", f"NVRTC {importlib.metadata.version('nvidia-cuda-nvrtc-cu12')}"))
    version = ctypes.c_int()
    with contextlib.suppress(OSError, AttributeError):
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) == 0:
            found = f"for CUDA {version.value // 1000}.{version.value % 1000 // 10} (12.0 or newer is needed)"
            checks.append(Check("GPU driver", found))
    return checks


def _cache_check() -> Check:
    from smc.codegen.cache import cache_state, cache_trouble
    from smc.folders import cache_folder

    folder, trouble, state = cache_folder(), cache_trouble(), cache_state()
    kept = f"{folder}, {state.entries:,} objects, {state.bytes / 1e6:,.1f} MB"
    if trouble is not None:
        fix = "set SMC_CACHE to a folder that can be written"
        return Check("cache", f"{kept}: it can't be written ({trouble})", fix=fix)
    assert folder is not None
    if state.damaged:
        kept += f", {state.damaged:,} of them damaged, which smc will compile again"
    free = shutil.disk_usage(next(path for path in [folder, *folder.parents] if path.exists())).free
    return Check("cache", f"{kept}, {free / 2**30:.1f} GiB free")


def _compiler_check() -> Check:
    command = [sys.executable, "-m", "ziglang", "version"]
    try:
        version = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        release = importlib.metadata.version("ziglang")
        install = f"{sys.executable} -m pip install --force-reinstall --no-deps ziglang=={release}"
        return Check("C compiler", "zig is installed but does not start", "compiling", install)
    return Check("C compiler", f"zig {version}", "compiling")
