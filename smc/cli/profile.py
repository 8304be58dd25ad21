"""The report of `smc bench --profile`: every kernel's time, bytes and multiply-adds, beside the machine's limits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smc.runtime.profile import Limits, Profile, TaskProfile

_COLUMNS = ("calls", "µs", "share", "GB/s", "limit", "GMAC/s", "peak", "wait µs")
_WIDTHS = (7, 10, 8, 8, 8, 9, 8, 9)


def thread_counts(threads: int) -> list[int]:
    """The numbers of threads for which limits are measured: 1, 2, 4 … and all."""
    return [*(1 << i for i in range(threads.bit_length()) if 1 << i < threads), threads]


def limits_report(limits: Iterable[Limits]) -> list[dict[str, Any]]:
    """Limits in GB/s and 10⁹ multiply-adds per second, for JSON."""
    return [
        {
            "threads": limit.threads,
            "memory_gb_per_s": limit.memory_bytes / 1e9,
            "weights_gb_per_s": limit.weights_bytes / 1e9,
            "i8_gmac_per_s": limit.i8_macs / 1e9,
            "f32_gmac_per_s": limit.f32_macs / 1e9,
        }
        for limit in limits
    ]


def profile_report(whole_seconds: float, profile: Profile, limit: Limits, plain_seconds: float) -> dict[str, Any]:
    """A profile for JSON; all times are of one step, in µs, divided by the number of threads: they add up to `step_us`.

    whole_seconds: the time of the steps by the caller's clock, which includes the time between them; plain_seconds:
    their time without a profile. limit: of all threads.
    """
    us = 1e6 / profile.steps / profile.threads
    step_us = 1e6 * profile.seconds / profile.steps
    kernels_us = us * profile.kernel_seconds
    return {
        "steps": profile.steps,
        "tokens": profile.tokens,
        "step_us": step_us,
        "kernels_us": kernels_us,
        "barriers_us": us * profile.wait_seconds,
        "claims_us": us * profile.claim_seconds,
        "outside_us": us * profile.outside_seconds,
        "outside_kernels_share": 1 - kernels_us / step_us,
        "between_steps_us": 1e6 * (whole_seconds - profile.seconds) / profile.steps,
        "slowdown": whole_seconds / plain_seconds - 1,
        "tasks": [_task_report(task, profile, limit) for task in profile.tasks],
    }


def _task_report(task: TaskProfile, profile: Profile, limit: Limits) -> dict[str, Any]:
    seconds = task.kernel_seconds / profile.threads  # as if all threads had run it all the time
    bytes_rate, macs_rate = (amount / seconds if seconds else 0.0 for amount in (task.bytes, task.macs))
    bandwidth, peak = limit.weights_bytes or limit.memory_bytes, limit.i8_macs if task.integer else limit.f32_macs
    return {
        "function": task.function,
        "name": task.name,
        "kernel": task.kernel,
        "calls": task.calls / profile.steps,
        "pieces": task.pieces / profile.steps,
        "us": 1e6 * seconds / profile.steps,
        "share": seconds / profile.seconds,
        "wait_us": 1e6 * task.wait_seconds / profile.threads / profile.steps,
        "bytes": task.bytes / profile.steps,
        "macs": task.macs / profile.steps,
        "dtype": "int8" if task.integer else "float32",
        "gb_per_s": bytes_rate / 1e9,
        "gmac_per_s": macs_rate / 1e9,
        "limit_share": bytes_rate / bandwidth if bandwidth else None,
        "peak_share": macs_rate / peak if peak and task.macs else None,
    }


def profile_table(name: str, report: dict[str, Any]) -> str:
    """Print a profile for people."""
    steps = f"{report['steps']} step{'s' if report['steps'] > 1 else ''}"
    lines = [f"{name}: {steps}, {report['step_us']:,.1f} µs each ({100 * report['slowdown']:+.1f} % by profiling)"]
    tasks = [(f"{t['function']} {t['name']}", t["kernel"], t) for t in report["tasks"] if t["calls"]]
    first, second = (max([len(row[i]) for row in tasks], default=0) for i in (0, 1))
    lines.append(f"  {'task':{first}}  {'kernel':{second}}{_row(_COLUMNS)}")
    for task, kernel, t in tasks:
        cells = (f"{t['calls']:.0f}", f"{t['us']:,.1f}", _percent(t["share"]), f"{t['gb_per_s']:.1f}")
        macs = (f"{t['gmac_per_s']:.1f}" if t["macs"] else "", _percent(t["peak_share"]))
        row = _row((*cells, _percent(t["limit_share"]), *macs, f"{t['wait_us']:,.1f}"))
        lines.append(f"  {task:{first}}  {kernel:{second}}{row}")
    for part in ("kernels", "barriers", "claims", "outside"):
        us = report[f"{part}_us"]
        lines.append(f"  {part:{first + second + 2}}{_row(('', f'{us:,.1f}', _percent(us / report['step_us'])))}")
    lines.append(f"  outside kernels: {100 * report['outside_kernels_share']:.1f} % of a step")
    return "\n".join(lines)


def limits_table(limits: list[dict[str, Any]]) -> str:
    """Print the limits for people; those that are unknown are left out."""
    lines = []
    for limit in limits:
        memory = [("memory", limit["memory_gb_per_s"]), ("these weights", limit["weights_gb_per_s"])]
        macs = [("i8", limit["i8_gmac_per_s"]), ("f32", limit["f32_gmac_per_s"])]
        parts = [
            f"{', '.join(f'{name} {rate:,.{digits}f}' for name, rate in rates if rate)} {unit}"
            for rates, digits, unit in ((memory, 1, "GB/s"), (macs, 0, "GMAC/s"))
            if any(rate for _, rate in rates)
        ]
        lines.append(f"{limit['threads']:8} threads: {'; '.join(parts)}")
    return "\n".join(["limits of this machine", *lines])


def _row(cells: Iterable[str]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=False))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
