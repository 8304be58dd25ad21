"""The page of a model: facts, its layer as a graph, every matrix with its encoding, and what a token costs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from html import escape
from typing import TYPE_CHECKING

from smc.ir import ceil_div, parse_encoding
from smc.pages.html import heat_cell, heat_map, page

if TYPE_CHECKING:
    from smc.ir import Module
    from smc.runtime.manifest import Manifest

BANDWIDTHS = {"Raspberry Pi 4": 4, "Raspberry Pi 5": 9, "phone": 30, "laptop": 60, "desktop": 100}
"""Typical bandwidths of memory in GB/s, for an estimate."""


@dataclass(frozen=True)
class Weight:
    """A tensor of the model. bits: stored, of the whole tensor."""

    name: str
    shape: tuple[int, ...]
    encoding: str
    bits: int

    @property
    def count(self) -> int:
        """The number of its elements."""
        total = 1
        for size in self.shape:
            total *= size
        return total

    @property
    def place(self) -> tuple[int | None, str]:
        """Its layer (None outside of layers) and its name in the layer."""
        match = re.match(r"(?:.*?\.)?(\d+)\.(.+)$", self.name)
        if match is None:
            return None, self.name.removesuffix(".weight")
        return int(match[1]), match[2].removesuffix(".weight")


def module_page(module: Module, facts: Mapping[str, str]) -> str:
    """The page of a checkpoint. facts: labels and texts of the facts at the top."""
    from smc.pages.graph import graph_svg

    weights = [
        Weight(name, tuple(parameter.shape), str(parameter.encoding), parameter.encoding.stored_bits(parameter.shape))
        for name, parameter in module.parameters.items()
    ]
    functions = {function.name: function for _, function in module.calls()}
    graphs = "".join(
        f"<h2>{escape(name)}</h2><div class=wide>{graph_svg(function)}</div>" for name, function in functions.items()
    )
    read = {name for kind in ("embedding",) for name in module.parameters_of(kind)} - {
        name for call, function in module.calls() if function.name == "head" for name in _bound(call.attributes)
    }
    costs = _costs(weights, read, module.chosen_by_token())
    return _page(module.facts.name, facts, [graphs, costs, _map(weights), _outside(weights)])


def _bound(attributes: Mapping[str, object]) -> Sequence[str]:
    parameters = attributes["parameters"]
    assert isinstance(parameters, Mapping)
    return list(parameters.values())


def artifact_page(manifest: Manifest, facts: Mapping[str, str]) -> str:
    """The page of an artifact. facts: labels and texts of the facts at the top."""
    weights = [
        Weight(name, shape, manifest.encodings[name], stored_bits(manifest.encodings[name], shape))
        for name, shape in manifest.shapes.items()
        if name in manifest.encodings
    ]
    rows_only = {w.name for w in weights if "embed" in w.name} if _has_head(weights) else set()
    tuned = ""
    if manifest.tuning is not None:
        rows = [[escape(name), escape(chosen)] for name, chosen in sorted(manifest.tuning.candidates.items())]
        said = f"by records with SHA-256 {manifest.tuning.records}" if manifest.tuning.records else "as built in"
        tuned = f"<h2>Kernels</h2><p>Candidates were chosen {escape(said)}.</p>"
        tuned += _table(["kernel", "candidate"], rows) if rows else "<p>No kernel was tuned.</p>"
    costs = "" if any(len(w.shape) > 2 for w in weights) else _costs(weights, rows_only, {})
    return _page(manifest.name, facts, [costs, _map(weights), _losses(manifest), _outside(weights), tuned])


def _has_head(weights: Sequence[Weight]) -> bool:
    """Whether the head has a matrix of its own."""
    return any("lm_head" in weight.name for weight in weights)


def stored_bits(encoding: str, shape: tuple[int, ...]) -> int:
    """The bits per code from an encoding's name; a codebook has those of its codes."""
    text = re.sub(r"^levels(\d+)\.\w+", lambda match: f"int{(int(match[1]) - 1).bit_length()}", encoding)
    return parse_encoding(text).stored_bits(shape)


# ---- parts of the page


def _page(name: str, facts: Mapping[str, str], parts: Sequence[str]) -> str:
    lines = "".join(f"<tr><th>{escape(label)}</th><td>{escape(text)}</td></tr>" for label, text in facts.items())
    return page(name, f"<table>{lines}</table>\n{''.join(parts)}", "Made by smc inspect.")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"


def _costs(weights: Sequence[Weight], rows_only: set[str], chosen: Mapping[str, Fraction]) -> str:
    """How many bytes a decoded token reads, and the tokens per second that follow at most. chosen: how much it reads of
    the matrices of experts."""
    read = sum(w.bits // w.shape[0] if w.name in rows_only else w.bits * chosen.get(w.name, 1) for w in weights)
    bytes_read = ceil_div(int(read), 8)
    rows = [[escape(name), f"{speed}", f"{speed * 1e9 / bytes_read:,.0f}"] for name, speed in BANDWIDTHS.items()]
    return (
        f"<h2>A token</h2><p>Decoding one token reads {bytes_read / 1e6:,.1f} MB of weights, and the KV cache. "
        "So memory allows at most, for a short text:</p>"
        + _table(["machine, typically", "GB per second", "tokens per second"], rows)
    )


def _map(weights: Sequence[Weight]) -> str:
    """A map of layers by matrices; a cell is darker with more bits per weight."""
    cells: dict[int, dict[str, Weight]] = {}
    for weight in weights:
        layer, name = weight.place
        if layer is not None and len(weight.shape) > 1:
            cells.setdefault(layer, {})[name] = weight
    if not cells:
        return ""
    shown = {layer: {name: _cell(weight) for name, weight in row.items()} for layer, row in cells.items()}
    return (
        "<h2>Layers</h2><p>Bits per weight, scales included; point at a cell for its encoding.</p>"
        f"<div class=wide>{heat_map(shown)}</div>"
    )


def _cell(weight: Weight) -> str:
    bits = weight.bits / weight.count
    shape = " × ".join(map(str, weight.shape))
    title = f"{weight.name}: {shape}, {weight.encoding}, {weight.bits / 8e6:,.2f} MB"
    return heat_cell(f"{bits:.2f}", round(min(bits, 16) / 16 * 60), title)


def _losses(manifest: Manifest) -> str:
    """Layers by names in them: the error of every matrix, and what its width was expected to cost beside others."""
    if manifest.quality is None or not manifest.quality.matrices:
        return ""
    cells: dict[int, dict[str, str]] = {}
    most = max(matrix.error for matrix in manifest.quality.matrices.values()) or 1.0
    for name, matrix in manifest.quality.matrices.items():
        layer, short = Weight(name, (), "", 0).place
        costs = "; ".join(f"{bits} bits {cost:.2g}" for bits, cost in matrix.costs.items())
        title = f"{name}: {matrix.bits} bits, error {matrix.error:.4f}" + (f". Expected loss: {costs}" if costs else "")
        shade = round(matrix.error / most * 60)
        if layer is not None:
            cells.setdefault(layer, {})[short] = heat_cell(f"{matrix.error:.3f}", shade, title)
    return (
        "<h2>What quantizing cost</h2><p>The distance of every matrix from what it was, as part of its norm; point at "
        "a cell for the KL divergence that each width was expected to add, where widths were chosen by that.</p>"
        f"<div class=wide>{heat_map(cells)}</div>"
        if cells
        else ""
    )


def _outside(weights: Sequence[Weight]) -> str:
    """Matrices outside of layers, and the share of each encoding."""
    others = [w for w in weights if w.place[0] is None and len(w.shape) > 1]
    rows = [[escape(w.name), " × ".join(map(str, w.shape)), escape(w.encoding), f"{w.bits / 8e6:,.2f}"] for w in others]
    sizes: dict[str, list[int]] = {}
    for weight in weights:
        entry = sizes.setdefault(weight.encoding, [0, 0, 0])
        entry[0], entry[1], entry[2] = entry[0] + 1, entry[1] + weight.count, entry[2] + weight.bits
    shares = [
        [escape(name), f"{tensors}", f"{count:,}", f"{bits / 8e6:,.2f}", f"{bits / max(1, count):.2f}"]
        for name, (tensors, count, bits) in sorted(sizes.items(), key=lambda item: -item[1][2])
    ]
    return (
        ("<h2>Outside of layers</h2>" + _table(["tensor", "shape", "encoding", "MB"], rows) if rows else "")
        + "<h2>Encodings</h2>"
        + _table(["encoding", "tensors", "weights", "MB", "bits per weight"], shares)
    )
