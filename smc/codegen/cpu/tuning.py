"""Tuning records: how long a kernel's candidates took on some CPU, and the choice that follows from them.

A record file is JSON lines, one measurement per line (docs/tuning.md), so that files are joined by `cat` and a
measurement that was cut off loses one line. All candidates of a kernel give the same bits and read the same packed
weights: records change speed and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from smc.codegen.cpu.tiles import candidates
from smc.codegen.kernels.specs import KernelSpec, LinearKernel
from smc.codegen.output import output_file, work_folder
from smc.errors import InputError
from smc.targets import CpuLevel, find_target

RECORD_VERSION = 1
MAX_FILE_BYTES = 64 << 20
MAX_CANDIDATES = 1000
MAX_NANOSECONDS = 10**15
MARGIN = 0.02
"""The default stays unless another candidate takes less time by this fraction: medians still jitter by a percent."""

LLVM_CPUS = {
    "arm-0x41-0xd03": "cortex-a53",
    "arm-0x41-0xd07": "cortex-a57",
    "arm-0x41-0xd08": "cortex-a72",
    "arm-0x41-0xd0b": "cortex-a76",
    "arm-0x41-0xd41": "cortex-a78",
    "arm-0x41-0xd42": "cortex-a78",  # the AE, which differs in safety only
    "arm-0x4e-0x004": "carmel",
    "arm-0x41-0xd0c": "neoverse-n1",
    "arm-0x41-0xd40": "neoverse-v1",
}
"""From what records call a CPU, implementer and part number, to LLVM's name, which targets use."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}")
_KEYS = {"version", "cpu", "level", "kernel", "workload", "nanoseconds"}

Workload = tuple[tuple[str, int], ...]
"""What a kernel was called with, such as (("rows", 1536), ("columns", 576), ("tokens", 1)): its shape class."""


@dataclass(frozen=True)
class Record:
    """One measurement. nanoseconds: of one call, the median, by the candidate's name."""

    cpu: str
    level: str
    kernel: str
    workload: Workload
    nanoseconds: tuple[tuple[str, int], ...]

    @property
    def key(self) -> tuple[str, str, str, Workload]:
        """What was measured; of several records with the same key the last one counts."""
        return self.cpu, self.level, self.kernel, self.workload

    def line(self) -> str:
        """The record as a line of a file, without its end; the tuner writes the same bytes."""
        return json.dumps(
            {
                "version": RECORD_VERSION,
                "cpu": self.cpu,
                "level": self.level,
                "kernel": self.kernel,
                "workload": dict(self.workload),
                "nanoseconds": dict(self.nanoseconds),
            }
        )


def parse_record(line: str) -> Record:
    """A record from a line of a file; ValueError, which says what is wrong, where it is none."""
    try:
        value = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict) or set(value) != _KEYS:
        raise ValueError(f"a record is an object with the keys {', '.join(sorted(_KEYS))}")
    if value["version"] != RECORD_VERSION:
        raise ValueError(f"it has version {value['version']!r}, this smc reads version {RECORD_VERSION}")
    for key in ("cpu", "level", "kernel"):
        if not isinstance(value[key], str) or not _NAME.fullmatch(value[key]):
            raise ValueError(f"{str(value[key])[:40]!r} is not a name of a {key}")
    workload = _numbers(value["workload"], "workload", 1 << 40)
    nanoseconds = _numbers(value["nanoseconds"], "nanoseconds", MAX_NANOSECONDS)
    return Record(value["cpu"], value["level"], value["kernel"], workload, nanoseconds)


def _numbers(value: Any, name: str, limit: int) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, dict) or not 1 <= len(value) <= MAX_CANDIDATES:
        raise ValueError(f"{name} is an object of 1 to {MAX_CANDIDATES} numbers")
    for key, number in value.items():
        if not _NAME.fullmatch(key) or type(number) is not int or not 1 <= number <= limit:
            raise ValueError(f"{name}: {key[:40]!r} has no whole number from 1 to {limit:,}")
    return tuple(value.items())


def read_records(path: Path) -> list[Record]:
    """All records of a file, in order. InputError names the first line that is none."""
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder, not a file of tuning records")
        if path.exists() and not path.is_file():  # a pipe without a writer would be read for ever
            raise InputError(f"{path} is not a regular file of tuning records")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"there is no file of tuning records {path}") from None
    except OSError as error:
        raise InputError(f"the tuning records {path} can't be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"{path} is not a file of tuning records: it is larger than {MAX_FILE_BYTES >> 20} MiB")
    records = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            try:
                records.append(parse_record(line.decode()))
            except ValueError as error:  # of json, of the text's encoding, or ours
                raise InputError(f"{path} line {number} is not a tuning record: {error}") from None
    return records


def merge_records(*parts: Iterable[Record]) -> list[Record]:
    """All records, of those with the same key the last, in the order of first appearance."""
    merged: dict[object, Record] = {}
    for part in parts:
        for record in part:
            merged[record.key] = record
    return list(merged.values())


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write a file that appears only when it is complete; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = output_file(path)
    with work_folder(file) as folder:
        partial = folder / "records"
        partial.write_text("".join(record.line() + "\n" for record in records), encoding="utf-8")
        os.replace(partial, file)


def user_records() -> Path | None:
    """The user's own records: $SMC_RECORDS, or smc/tuning.jsonl in the user's folder of settings; None without one."""
    named = os.environ.get("SMC_RECORDS")
    if named:
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "smc" / "tuning.jsonl"
    except RuntimeError:
        return None


def shipped_records() -> list[Path]:
    """The files of records that come with smc."""
    return sorted((Path(__file__).parent / "records").glob("*.jsonl"))


def cpu_names(cpuinfo: str, machine: str) -> frozenset[str]:
    """What records call the CPUs of a machine (several kinds where there are fast and slow cores).

    cpuinfo: the text of Linux's /proc/cpuinfo; machine: as `platform.machine()` says it.
    """
    fields = ("vendor_id", "cpu family", "model") if machine == "x86_64" else ("CPU implementer", "CPU part")
    names = set()
    for processor in cpuinfo.split("\n\n"):
        facts = dict(re.findall(r"^([^:\n]*?)\s*:[ \t]*(.*)$", processor, re.MULTILINE))
        if all(field in facts for field in fields):
            names.add("-".join([*(["arm"] if machine != "x86_64" else []), *(facts[field] for field in fields)]))
    return frozenset(names)


def host_cpus() -> frozenset[str]:
    """What records call this machine's CPUs; empty where /proc does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    return cpu_names(text, platform.machine())


# ---------------------------------------------------------------- choosing


@dataclass(frozen=True)
class Choice:
    """The kernel to build: `name` of its candidate, and the records that spoke for it (none: the default).

    speedup: how many times as fast as the default it was, 1 where that is not known.
    """

    spec: KernelSpec
    name: str = ""
    records: tuple[Record, ...] = ()
    speedup: float = 1.0


def records_hash(choices: Iterable[Choice]) -> str | None:
    """Hex SHA-256 of all records that choices rest on; None if there are none."""
    lines = sorted({record.line() for choice in choices for record in choice.records})
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else None


@dataclass(frozen=True)
class Tuning:
    """Records in order of preference, and the CPUs that are meant; chooses the candidates of kernels.

    sources: lists of records, the first that knows a kernel decides: the user's, then those that ship.
    cpus: names of the CPUs that the artifact is for; empty: none in particular.
    """

    sources: Sequence[Sequence[Record]] = ()
    cpus: frozenset[str] = field(default=frozenset())

    def choose(
        self, spec: KernelSpec, level: CpuLevel, workloads: Mapping[LinearKernel, Mapping[Workload, float]]
    ) -> Choice:
        """The candidate that takes the least time for the kernel's workloads, which have weights; else the default.

        Records of the CPUs that are meant come before those of others, which count alike. A workload that was not
        measured takes the place of the nearest that was.
        """
        if not isinstance(spec, LinearKernel):
            return Choice(spec)
        measured = replace(spec, argmax=False)  # what is done with the results takes little time
        wanted, names = workloads[measured], candidates(spec, level)
        known = [_by_cpu(records, measured.name(), level.name) for records in self.sources]
        meant = [{cpu: table for cpu, table in tables.items() if cpu in self.cpus} for tables in known]
        for tables in (*meant, *known):
            scores, used = _scores([*tables.values()], wanted, [*names])
            if scores:
                return _best(spec, names, scores, used)
        return Choice(spec)


def _best(spec: KernelSpec, names: Mapping[str, KernelSpec], scores: dict[str, float], used: list[Record]) -> Choice:
    default, best = next(iter(names)), min(scores, key=lambda name: scores[name])
    if default in scores and scores[best] > scores[default] + math.log(1 - MARGIN):
        best = default
    speedup = math.exp(scores[default] - scores[best]) if default in scores else 1.0
    return Choice(names[best], best, tuple(used), speedup)


def _by_cpu(records: Iterable[Record], kernel: str, level: str) -> dict[str, dict[Workload, Record]]:
    tables: dict[str, dict[Workload, Record]] = {}
    for record in records:
        if record.kernel == kernel and record.level == level:
            tables.setdefault(record.cpu, {})[record.workload] = record
    return tables


def _scores(
    tables: Sequence[Mapping[Workload, Record]], workloads: Mapping[Workload, float], names: Sequence[str]
) -> tuple[dict[str, float], list[Record]]:
    """For every candidate that all needed records know: the mean logarithm of its time over the fastest's."""
    total: dict[str, float] = dict.fromkeys(names, 0.0)
    used: dict[Record, None] = {}
    for table in tables:
        for workload, weight in workloads.items():
            nearest = min(
                (other for other in table if _comparable(workload, other)),
                key=lambda other: (_distance(workload, other), other),
                default=None,
            )
            if nearest is None:
                continue
            times = {name: t for name, t in table[nearest].nanoseconds if name in total}
            total = {name: total[name] + weight * math.log(t / min(times.values())) for name, t in times.items()}
            used[table[nearest]] = None
    weight = len(tables) * sum(workloads.values())
    return ({name: value / weight for name, value in total.items()} if used else {}), list(used)


def _comparable(a: Workload, b: Workload) -> bool:
    return [key for key, _ in a] == [key for key, _ in b]


def _distance(a: Workload, b: Workload) -> float:
    return sum(abs(math.log2(x / y)) for (_, x), (_, y) in zip(a, b, strict=True))


def target_cpus(target: str) -> frozenset[str]:
    """What records call the CPUs that a target is for: this machine's ("native"), a device's, or none in particular."""
    if target == "native":
        return host_cpus()
    cpu = find_target(target).cpu
    return frozenset(name for name, llvm in LLVM_CPUS.items() if llvm == cpu)


def load_tuning(target: str, records: Path | None = None) -> Tuning:
    """The records to compile with for a target: of the file, or else the user's; then those that ship with smc."""
    path = records or user_records()
    own = read_records(path) if path is not None and (records is not None or path.exists()) else []
    shipped = [record for file in shipped_records() for record in read_records(file)]
    return Tuning((own, shipped), target_cpus(target))
