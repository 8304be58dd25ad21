"""A function of the ir as a picture: a node per op, from top to bottom, an arrow per value that an op reads."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from smc.ir import Function, Node

WIDTH, HEIGHT = 168, 44
"""The size of a node's box, in pixels."""
GAP_X, GAP_Y = 20, 34
"""Between boxes."""
MARGIN = 12


@dataclass(frozen=True)
class _Box:
    node: Node
    column: int
    row: int

    @property
    def x(self) -> int:
        return MARGIN + self.column * (WIDTH + GAP_X)

    @property
    def y(self) -> int:
        return MARGIN + self.row * (HEIGHT + GAP_Y)


def graph_svg(function: Function) -> str:
    """The function as an SVG element; parameters are named in the box of the op that reads them."""
    boxes = _place(function)
    width = max(box.x for box in boxes.values()) + WIDTH + MARGIN
    height = max(box.y for box in boxes.values()) + HEIGHT + MARGIN
    arrows = [
        _arrow(boxes[source], box)
        for box in boxes.values()
        for source in dict.fromkeys(box.node.inputs)
        if source in boxes
    ]
    parts = [*arrows, *(_box(function, box) for box in boxes.values())]
    return (
        f'<svg class="graph" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="the function {escape(function.name)}">{"".join(parts)}</svg>'
    )


def _place(function: Function) -> dict[str, _Box]:
    """A box for every value except parameters: below all that it reads, in columns filled from the left."""
    rows: dict[str, int] = {}
    filled: dict[int, int] = {}
    boxes: dict[str, _Box] = {}
    for node in function.nodes():
        if node.op == "parameter" or (node.op == "input" and not function.users(node.name)):
            continue
        row = 1 + max((rows[source] for source in node.inputs if source in rows), default=-1)
        rows[node.name] = row
        boxes[node.name] = _Box(node, filled.get(row, 0), row)
        filled[row] = filled.get(row, 0) + 1
    return boxes


def _box(function: Function, box: _Box) -> str:
    node = box.node
    weights = [source for source in node.inputs if function.node(source).op == "parameter"]
    title = node.name if node.op == "input" else node.op
    below = ", ".join(weights) if weights else (str(node.type) if node.op == "input" else node.name)
    details = "; ".join(f"{key} {value}" for key, value in node.attributes.items() if value is not None)
    kind = "input" if node.op == "input" else "weights" if weights else "op"
    middle = box.x + WIDTH / 2
    return (
        f'<g class="{kind}"><title>{escape(f"{node.name}: {node.type}" + (f" ({details})" if details else ""))}</title>'
        f'<rect x="{box.x}" y="{box.y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text x="{middle}" y="{box.y + 18}">{escape(title)}</text>'
        f'<text class="small" x="{middle}" y="{box.y + 34}">{escape(_shortened(below))}</text></g>'
    )


def _shortened(text: str, most: int = 26) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _arrow(source: _Box, target: _Box) -> str:
    """A curve from a box's bottom to another's top; if there are rows between, it passes them on the right."""
    x1, y1 = source.x + WIDTH / 2, source.y + HEIGHT
    x2, y2 = target.x + WIDTH / 2, target.y
    if target.row == source.row + 1:
        bend = f"C {x1} {y1 + GAP_Y / 2}, {x2} {y2 - GAP_Y / 2}, {x2} {y2}"
    else:
        side = max(source.x, target.x) + WIDTH + GAP_X / 2
        bend = f"C {side} {y1 + GAP_Y}, {side} {y1 + GAP_Y}, {side} {(y1 + y2) / 2} S {x2} {y2 - GAP_Y}, {x2} {y2}"
    return f'<path d="M {x1} {y1} {bend}"/>'
