"""A profile as a picture: rooflines with a point for every kernel, and a bar of a step's time.

The SVG is written without a library, because a device may lack one.
"""

from __future__ import annotations

import math
from html import escape
from typing import Any

_WIDTH, _PANEL = 960, 520
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 640, 60, 400
_COLORS = {"int8": "#1f6fb4", "float32": "#d9660a", "waiting": "#999999"}
_LABELLED = 0.01
"""Kernels with less than this share of a step have a point, but no label."""
_LINE = 14
"""The distance of labels in pixels."""


def roofline_svg(report: dict[str, Any]) -> str:
    """The profiles of a report of `smc bench --profile` as one SVG document."""
    limit = report["limits"][-1]
    panels = [
        _Panel(name + (f" after {report['depth']} tokens" if report["depth"] else ""), profile, limit).elements()
        for name, profile in report["profile"].items()
    ]
    title = f"{report['artifact']}: {report['threads']} threads, level {report['level']}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {30 + _PANEL * len(panels)}"'
        ' font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        _text(_LEFT, 22, title, size=14),
    ]
    for number, elements in enumerate(panels):
        lines += [f'<g transform="translate(0 {30 + number * _PANEL})">', *elements, "</g>"]
    return "\n".join([*lines, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 11, turn: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{turn}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'


class _Panel:
    """One profile: log-log axes of multiply-adds per byte and 10⁹ multiply-adds per second."""

    def __init__(self, title: str, profile: dict[str, Any], limit: dict[str, Any]) -> None:
        self.title, self.profile, self.limit = title, profile, limit
        self.tasks = [t for t in profile["tasks"] if t["macs"] and t["gmac_per_s"]]
        self.peaks = {"int8": limit["i8_gmac_per_s"], "float32": limit["f32_gmac_per_s"]}
        bandwidths = [limit["memory_gb_per_s"], limit["weights_gb_per_s"]]
        ridges = [peak / width for peak in self.peaks.values() for width in bandwidths if width and peak]
        intensities = [t["macs"] / t["bytes"] for t in self.tasks] + ridges
        rates = [t["gmac_per_s"] for t in self.tasks] + [peak for peak in self.peaks.values() if peak]
        self.x = _decades(intensities)
        self.y = _decades(rates)

    def elements(self) -> list[str]:
        return [
            _text(_LEFT, _TOP - 30, self.title, size=13),
            *self._axes(),
            *self._roofs(),
            *self._points(),
            *self._bar(),
        ]

    def _at(self, intensity: float, rate: float) -> tuple[float, float]:
        x = (math.log10(intensity) - self.x[0]) / (self.x[1] - self.x[0])
        y = (math.log10(rate) - self.y[0]) / (self.y[1] - self.y[0])
        return _LEFT + x * (_RIGHT - _LEFT), _BOTTOM - y * (_BOTTOM - _TOP)

    def _axes(self) -> list[str]:
        grid, lines = 'stroke="#dddddd"', []
        for decade in range(self.x[0], self.x[1] + 1):
            x, _ = self._at(10.0**decade, 10.0 ** self.y[0])
            lines += [_line(x, _TOP, x, _BOTTOM, grid), _text(x, _BOTTOM + 15, f"{10.0**decade:g}", "middle")]
        for decade in range(self.y[0], self.y[1] + 1):
            _, y = self._at(10.0 ** self.x[0], 10.0**decade)
            lines += [_line(_LEFT, y, _RIGHT, y, grid), _text(_LEFT - 6, y + 4, f"{10.0**decade:g}", "end")]
        middle = (_TOP + _BOTTOM) / 2
        turn = f' transform="rotate(-90 20 {middle})"'
        return [
            *lines,
            _text((_LEFT + _RIGHT) / 2, _BOTTOM + 32, "multiply-adds per byte", "middle"),
            _text(20, middle, "10⁹ multiply-adds per second", "middle", turn=turn),
        ]

    def _roofs(self) -> list[str]:
        lines = []
        left, right = 10.0 ** self.x[0], 10.0 ** self.x[1]
        top = max(self.peaks.values()) or 10.0 ** self.y[1]
        for name, bandwidth, dash, place, anchor in (
            ("memory", self.limit["memory_gb_per_s"], "6 3", 0.4, "start"),
            ("weights", self.limit["weights_gb_per_s"], "none", 0.7, "end"),
        ):
            if not bandwidth:
                continue
            low = max(left, 10.0 ** self.y[0] / bandwidth)
            high = min(right, top / bandwidth)
            if low < high:
                style = f'stroke="black" stroke-dasharray="{dash}"'
                lines.append(_line(*self._at(low, low * bandwidth), *self._at(high, high * bandwidth), style))
                middle = low * (high / low) ** place
                x, y = self._at(middle, middle * bandwidth)
                lines.append(_text(x + (8 if anchor == "start" else -8), y + 4, f"{name} {bandwidth:.0f} GB/s", anchor))
        for dtype, peak in self.peaks.items():
            if peak:
                x, y = self._at(right, peak)
                bandwidth = max(self.limit["memory_gb_per_s"], self.limit["weights_gb_per_s"])
                ridge = self._at(max(left, peak / bandwidth), peak)[0] if bandwidth else _LEFT
                lines.append(_line(ridge, y, x, y, f'stroke="{_COLORS[dtype]}" stroke-width="1.5"'))
                lines.append(_text(x - 4, y - 4, f"{dtype} {peak:,.0f} GMAC/s", "end"))
        return lines

    def _points(self) -> list[str]:
        """Circles with areas by their shares; labels in a column beside them, which do not overlap."""
        circles, labels = [], []
        for task in self.tasks:
            x, y = self._at(task["macs"] / task["bytes"], task["gmac_per_s"])
            radius = 3 + 12 * math.sqrt(task["share"])
            rates = f"{task['gb_per_s']:.1f} GB/s, {task['gmac_per_s']:.0f} GMAC/s"
            label = f"{task['name']} {100 * task['share']:.1f} %, {rates}"
            color = _COLORS[task["dtype"]]
            circles.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{color}" fill-opacity="0.5">'
                f"<title>{escape(task['kernel'])}: {escape(label)}</title></circle>"
            )
            if task["share"] >= _LABELLED:
                labels.append((y, x, label))
        lines, below = [], float(_TOP)
        for y, x, label in sorted(labels):
            place = max(float(y), below)
            below = place + _LINE
            lines.append(_line(x, y, _RIGHT + 8, place, 'stroke="#bbbbbb" stroke-width="0.6"'))
            lines.append(_text(_RIGHT + 12, place + 4, label))
        return [*lines, *circles]

    def _bar(self) -> list[str]:
        """The time of a step from left to right."""
        parts = [(t["name"], t["us"], _COLORS[t["dtype"]]) for t in self.profile["tasks"]]
        parts += [(name, self.profile[f"{name}_us"], _COLORS["waiting"]) for name in ("barriers", "claims", "outside")]
        whole, x, y, width = self.profile["step_us"], float(_LEFT), _BOTTOM + 52, _WIDTH - 2 * _LEFT
        lines = [_text(_LEFT, y - 5, f"a step: {whole:,.0f} µs")]
        for name, us, color in parts:
            length = max(0.0, us / whole * width)
            lines.append(
                f'<rect x="{x:.1f}" y="{y}" width="{length:.2f}" height="20" fill="{color}" fill-opacity="0.6"'
                f' stroke="white" stroke-width="0.5"><title>{escape(name)}: {us:,.1f} µs</title></rect>'
            )
            if length > 7 * len(name):
                lines.append(_text(x + length / 2, y + 14, name, "middle"))
            x += length
        return lines


def _decades(values: list[float]) -> tuple[int, int]:
    """The powers of ten around all values."""
    low = math.floor(math.log10(min(values, default=1.0)))
    return low, max(low + 1, math.ceil(math.log10(max(values, default=10.0))))
