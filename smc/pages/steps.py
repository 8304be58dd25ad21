"""The page of a chain: the model's size and quality after every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from smc.pages.html import page

if TYPE_CHECKING:
    from smc.steps import Step

WIDTH, HEIGHT = 680, 360
LEFT, RIGHT, TOP, BOTTOM = 70, 40, 20, 45
"""Margins of the plot."""

STYLE = """
.plot text { font-size: 12px; fill: currentColor; } .plot .axis { stroke: var(--line); }
.plot .way { fill: none; stroke: var(--accent); } .plot circle { fill: var(--accent); }
.plot .step { fill: white; text-anchor: middle; } .curve svg { max-width: 100%; }
"""

HEAD = ("", "step", "what it did", "layers", "million weights", "MB", "bits per weight", "perplexity", "KL divergence",
        "same top token")  # fmt: skip


def steps_page(title: str, steps: Sequence[Step], text: str) -> str:
    """One page without links to other files. text: the name of the text that quality was measured on."""
    curves = "".join(
        f"<details><summary>Loss of {escape(step.name)}, step {number}</summary><div class=curve>{step.curve}</div>"
        "</details>"
        for number, step in enumerate(steps)
        if step.curve is not None
    )
    scored = next((step.quality.tokens for step in steps if step.quality is not None), 0)
    footer = (
        f"Quality is measured on {scored:,} tokens of {text}, by the reference in torch, of an artifact by the engine; "
        "KL divergence in nats from the model as it was read."
    )
    return page(title, f"{_table(steps)}{_plot(steps)}{curves}", footer, STYLE)


def _table(steps: Sequence[Step]) -> str:
    rows = []
    for number, step in enumerate(steps):
        numbers = [f"{step.layers}", f"{step.weights / 1e6:,.2f}", f"{step.bytes / 1e6:,.2f}"]
        numbers.append(f"{step.bits_per_weight:.2f}")
        quality = step.quality
        if quality is None:
            numbers += ["not run here", "", ""]
        else:
            numbers.append(f"{quality.perplexity:.3f}")
            numbers.append("" if quality.kl_divergence is None else f"{quality.kl_divergence:.4f}")
            numbers.append("" if quality.same_top is None else f"{100 * quality.same_top:.1f} %")
        cells = f"<td class=number>{number}</td><td>{escape(step.name)}</td><td>{escape(step.done)}</td>"
        rows.append(f"<tr>{cells}{''.join(f'<td class=number>{escape(text)}</td>' for text in numbers)}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in HEAD)
    return f"<div class=wide><table><tr>{head}</tr>{''.join(rows)}</table></div>"


def _plot(steps: Sequence[Step]) -> str:
    """A plot of perplexity (logarithmic) over size, with a line from step to step."""
    shown = [(n, step.bytes / 1e6, step.quality.perplexity) for n, step in enumerate(steps) if step.quality is not None]
    shown = [point for point in shown if math.isfinite(point[2])]
    if len(shown) < 2:
        return ""
    right = 1.05 * max(size for _, size, _ in shown)
    logs = [math.log(perplexity) for *_, perplexity in shown]
    margin = 0.1 * (max(logs) - min(logs)) or 0.1
    low, high = min(logs) - margin, max(logs) + margin

    def at(size: float, log: float) -> tuple[float, float]:
        x = LEFT + size / right * (WIDTH - LEFT - RIGHT)
        return x, TOP + (high - log) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for mark in range(5):
        log = low + margin + mark / 4 * (high - low - 2 * margin)
        x, y = at(0, log)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{math.exp(log):.4g}</text>')
        x, y = at(mark / 4 * right, low)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{mark / 4 * right:,.4g}</text>')
    places = [at(size, math.log(perplexity)) for _, size, perplexity in shown]
    parts.append(f'<polyline class="way" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
    for (number, _, perplexity), (x, y) in zip(shown, places, strict=True):
        name = escape(f"{steps[number].name}: perplexity {perplexity:.3f}")
        parts.append(f'<g><title>{name}</title><circle cx="{x:.1f}" cy="{y:.1f}" r="9"/>')
        parts.append(f'<text class="step" x="{x:.1f}" y="{y + 4:.1f}">{number}</text></g>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">MB</text>')
    return (
        "<h2>Perplexity by size</h2><p>The numbers are those of the steps.</p><div class=wide>"
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="perplexity by size">{"".join(parts)}</svg></div>'
    )
