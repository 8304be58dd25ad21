"""The page of a sweep: a table, plots of quality against size and speed, and the errors of each setting's matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from smc.pages.html import heat_cell, heat_map, page
from smc.pages.model import Weight

PLOT_WIDTH, PLOT_HEIGHT = 680, 380
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 20, 45
"""The margins of a plot; labels of points are on the right."""

PLOT_STYLE = """
.plot text { font-size: 12px; fill: currentColor; } .plot .axis { stroke: var(--line); }
.plot .best { fill: none; stroke: var(--accent); } .plot circle { fill: var(--accent); }
.failed { color: #c33; }
"""

Result = Mapping[str, Any]


def sweep_page(results: Sequence[Result]) -> str:
    """One page without links to other files. results: of `smc.sweep.cell.judge`, or with an "error" instead."""
    good = [result for result in results if "error" not in result]
    plots = _plot(good, "bits per weight", lambda result: float(result["bits_per_weight"]), less_is_better=True)
    timed = [result for result in good if "speed" in result]
    plots += _plot(
        timed, "tokens per second in decode", lambda r: float(r["speed"]["decode_tokens_per_s"]), less_is_better=False
    )
    title = "Sweep: " + ", ".join(dict.fromkeys(Path(result["model"]).name for result in results))
    footer = (
        "Made by smc sweep. KL divergence is from the reference, in nats, over the second half of every window, "
        "through the "
        "engine."
    )
    return page(title, f"{_table(results)}{plots}{''.join(map(_errors, good))}", footer, PLOT_STYLE)


def _table(results: Sequence[Result]) -> str:
    head = [
        "model",
        "setting",
        "bits per weight",
        "MB",
        "perplexity",
        "KL divergence",
        "same top token",
        "prefill",
        "decode",
    ]
    rows = []
    for result in results:
        name = f"<td>{escape(Path(result['model']).name)}</td><td>{escape(result['setting'])}</td>"
        if "error" in result:
            rows.append(f'<tr>{name}<td class="failed" colspan="{len(head) - 2}">{escape(result["error"])}</td></tr>')
            continue
        quality, speed = result["quality"], result.get("speed", {})
        error = "" if quality["kl_error"] is None else f" ± {quality['kl_error']:.5f}"
        cells = [
            f"{result['bits_per_weight']:.3f}",
            f"{result['bytes'] / 1e6:,.1f}",
            f"{quality['perplexity']:.3f}",
            f"{quality['kl_divergence']:.5f}{error}",
            f"{100 * quality['same_top']:.2f} %",
            *(f"{speed[f'{part}_tokens_per_s']:,.0f}" if speed else "" for part in ("prefill", "decode")),
        ]
        rows.append(f"<tr>{name}{''.join(f'<td class=number>{cell}</td>' for cell in cells)}</tr>")
    columns = "".join(f"<th>{escape(column)}</th>" for column in head)
    return f"<div class=wide><table><tr>{columns}</tr>{''.join(rows)}</table></div><p>Speeds are tokens per second.</p>"


# ---- plots


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that no other beats in both coordinates (less is better), sorted by the first."""
    best: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if not best or points[index][1] < points[best[-1]][1]:
            best.append(index)
    return best


def _plot(results: Sequence[Result], label: str, of: Any, less_is_better: bool) -> str:
    """A plot of KL divergence (logarithmic) over a cost; a line joins the settings that no other beats."""
    points = [(of(result), max(result["quality"]["kl_divergence"], 1e-7)) for result in results]
    if not points:
        return ""
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    margin = 0.05 * (right - left) or 0.5
    left, right = left - margin, right + margin
    bottom, top = (
        math.floor(math.log10(min(y for _, y in points))),
        math.ceil(math.log10(max(y for _, y in points)) + 1e-9),
    )
    top = max(top, bottom + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - left) / (right - left) * (PLOT_WIDTH - LEFT - RIGHT),
            TOP + (top - math.log10(y)) / (top - bottom) * (PLOT_HEIGHT - TOP - BOTTOM),
        )

    parts = []
    for decade in range(bottom, top + 1):
        x, y = at(left, 10.0**decade)
        end = PLOT_WIDTH - RIGHT
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{10.0**decade:g}</text>')
    for step in range(5):
        value = left + margin + step / 4 * (right - left - 2 * margin)
        x, y = at(value, 10.0**bottom)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{value:,.4g}</text>')
    sign = 1 if less_is_better else -1
    best = [at(*points[index]) for index in pareto([(sign * x, y) for x, y in points])]
    parts.append(f'<polyline class="best" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in best)}"/>')
    for result, point in zip(results, points, strict=True):
        x, y = at(*point)
        name = f"{result['setting']}, {Path(result['model']).name}"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(name)}: {point[1]:.5f}</title></circle>')
        parts.append(f'<text x="{x + 8:.1f}" y="{y + 4:.1f}">{escape(result["setting"])}</text>')
    middle = (LEFT + PLOT_WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{PLOT_HEIGHT - 6}" text-anchor="middle">{escape(label)}</text>')
    return (
        f"<h2>KL divergence by {escape(label)}</h2><div class=wide>"
        f'<svg class="plot" viewBox="0 0 {PLOT_WIDTH} {PLOT_HEIGHT}" width="{PLOT_WIDTH}" height="{PLOT_HEIGHT}" '
        f'role="img" aria-label="KL divergence by {escape(label)}">{"".join(parts)}</svg></div>'
    )


# ---- errors


def _errors(result: Result) -> str:
    """A heat map of a setting: layers by matrices, darker with more error."""
    rows: dict[int | None, dict[str, tuple[float, str]]] = {}
    for name, error in result["errors"].items():
        layer, slot = Weight(name, (1, 1), "", 0).place
        rows.setdefault(layer, {})[slot] = (error, result["encodings"].get(name, ""))
    largest = max((error for row in rows.values() for error, _ in row.values()), default=0.0) or 1.0

    def cell(entry: tuple[float, str]) -> str:
        return heat_cell(f"{100 * entry[0]:.1f}", round(entry[0] / largest * 70), entry[1])

    layers = {
        layer: {slot: cell(entry) for slot, entry in row.items()} for layer, row in rows.items() if layer is not None
    }
    outside = "".join(f"<tr><th>{escape(slot)}</th>{cell(entry)}</tr>" for slot, entry in rows.get(None, {}).items())
    return (
        f"<details><summary>Errors of {escape(Path(result['model']).name)}, {escape(result['setting'])}</summary>"
        "<p>Distance of a matrix from the reference's, in per cent of its norm; point at a cell for its encoding.</p>"
        f"<div class=wide>{heat_map(layers)}"
        f'<table class="map">{outside}</table></div></details>'
    )
