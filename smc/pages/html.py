"""Parts of all pages: the frame with its style, and maps of layers by matrices."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

STYLE = """
:root { color-scheme: light dark; --line: #8886; --faint: #8881; --accent: #1f6fb4; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .6rem; text-align: left; vertical-align: top; }
th { font-weight: 600; } tr + tr td { border-top: 1px solid var(--line); }
.wide { overflow-x: auto; } .number { text-align: right; font-variant-numeric: tabular-nums; }
.map td { text-align: center; font-size: .8rem; min-width: 3.2rem; }
.graph text { font-size: 13px; text-anchor: middle; fill: currentColor; }
.graph .small { font-size: 11px; opacity: .7; }
.graph rect { fill: var(--faint); stroke: var(--line); } .graph .weights rect { stroke: var(--accent); }
.graph .input rect { stroke-dasharray: 4 3; } .graph path { fill: none; stroke: currentColor; opacity: .4; }
footer { margin-top: 3rem; opacity: .7; font-size: .85rem; }
"""


def page(title: str, body: str, footer: str, style: str = "") -> str:
    """A whole document without links to other files. title and footer are text, body is HTML, style is additional
    CSS."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}{style}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>{body}<footer>{escape(footer)}</footer></body></html>\n"
    )


def heat_map(rows: Mapping[int, Mapping[str, str]]) -> str:
    """A table of layers: cells of `heat_cell` by the names of matrices; its head shows the last part of the names."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    head = "".join(f"<th>{escape(name.split('.')[-1])}</th>" for name in names)
    body = "".join(
        f"<tr><th>{layer}</th>{''.join(row.get(name, '<td></td>') for name in names)}</tr>"
        for layer, row in sorted(rows.items())
    )
    return f'<table class="map"><tr><th></th>{head}</tr>{body}</table>'


def heat_cell(text: str, shade: int, title: str) -> str:
    """A cell; shade: per cent of the accent's color. title: shown when the mouse is over the cell."""
    style = f"background: color-mix(in srgb, var(--accent) {shade}%, transparent)"
    return f'<td style="{style}" title="{escape(title)}">{escape(text)}</td>'
