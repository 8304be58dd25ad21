"""The curve of a loss, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, MARGIN = 720, 360, 48
COLORS = ("#1f77b4", "#d62728")

Points = Sequence[tuple[int, float]]


def draw(curves: Mapping[str, Points]) -> str:
    """An SVG of curves by name, each a list of (step, value). The y axis goes from 0 to the largest value shown."""
    shown = {name: points for name, points in curves.items() if points}
    values = sorted(value for points in shown.values() for _, value in points)
    last = max((step for points in shown.values() for step, _ in points), default=1) or 1
    low = values[0] if values else 0.0
    high = values[min(len(values) - 1, int(0.98 * len(values)))] if values else 1.0  # the first steps may be outliers
    span = (high - low) or 1.0

    def place(step: int, value: float) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * step / last
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (min(value, high) - low) / span
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    ]
    for mark in range(5):
        value = low + span * mark / 4
        y = float(place(0, value).split(",")[1])
        parts.append(f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for index, (name, points) in enumerate(shown.items()):
        color = COLORS[index % len(COLORS)]
        line = " ".join(place(step, value) for step, value in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        parts.append(f'<text x="{MARGIN + 10 + 160 * index}" y="{MARGIN - 16}" fill="{color}">{escape(name)}</text>')
    parts.append(f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - MARGIN + 20}" text-anchor="end">step {last}</text></svg>\n')
    return "".join(parts)
