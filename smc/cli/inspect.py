"""`smc inspect`: describes a model without running it."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smc.cli import messages
from smc.cli.options import verbosity_options
from smc.cli.output import check_replaceable
from smc.errors import InputError

if TYPE_CHECKING:
    from smc.runtime.manifest import Manifest, MatrixQuality

UNBOUNDED = 10_000
"""The width of output that is no terminal, in columns: nothing is wrapped or cut there."""


@click.command()
@click.argument("model", type=click.Path())
@click.option("--ir", is_flag=True, help="Print the ir: the parameters with their encodings, and every function.")
@click.option("--verify", is_flag=True, help="Read all of an artifact first and compare it with its checksums.")
@click.option("--json", "as_json", is_flag=True, help="Print the description as JSON.")
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a page to FILE instead: the graph, every matrix with its encoding, and what a token costs.",
)
@verbosity_options
def inspect(model: str, ir: bool, verify: bool, as_json: bool, html: Path | None) -> None:
    """Describe MODEL (a folder, a hub id, a GGUF file or an artifact): its shapes, parameters, bits and memory.

    This reads the headers of files, and one matrix to see whether it lies on a grid; with --verify it reads everything.
    For an artifact, --json prints the manifest.

    \b
    smc inspect SmolLM2-135M-Instruct.gguf
    smc inspect SmolLM2-135M-Instruct --ir
    smc inspect smollm2.smc
    smc inspect smollm2.smc --html smollm2.html
    """
    if html is not None:
        if ir or as_json:
            raise InputError("--html writes a page: leave out --ir and --json")
        check_replaceable(html, "page", b"<!doctype html>")
    if is_artifact(Path(model)):
        if ir:
            raise InputError(f"{model} is an artifact and has no ir: inspect the checkpoint that it was made from")
        _inspect_artifact(Path(model), verify, as_json, html)
        return
    if verify:
        raise InputError(f"{model} is not an artifact: --verify compares an artifact with the checksums in it")

    from smc.frontend import load_checkpoint

    module = load_checkpoint(model)
    if ir:
        from smc.ir import print_module

        text = print_module(module)
        click.echo(json.dumps({"ir": text}) if as_json else text, nl=as_json)
        return
    from smc.ir.description import describe_module

    description = describe_module(module)
    if html is not None:
        from smc.pages import module_page

        _write_page(html, module_page(module, _summary(description)))
        return
    if as_json:
        click.echo(json.dumps(description, indent=2))
    else:
        _print_description(description)


def is_artifact(path: Path) -> bool:
    """Whether the user means an artifact: the name or the content says so."""
    return path.is_file() and (path.suffix == ".smc" or zipfile.is_zipfile(path))


def _write_page(path: Path, page: str) -> None:
    path.write_text(page, encoding="utf-8")
    messages.note(f"wrote {path}")


def _inspect_artifact(path: Path, verify: bool, as_json: bool, html: Path | None) -> None:
    from smc.runtime.artifact import read_manifest

    manifest = read_manifest(path)
    facts = _artifact_summary(path, manifest)
    if verify:
        from smc.runtime.integrity import verify_artifact

        verified = verify_artifact(path)
        facts["verified"] = f"all {verified.members} members, {verified.bytes / 1e6:,.1f} MB, are as they were compiled"
    if html is not None:
        from smc.pages import artifact_page

        _write_page(html, artifact_page(manifest, facts))
        return
    if as_json:
        click.echo(json.dumps(manifest.to_json(), indent=2))
        return
    _print_facts(facts)
    click.echo()
    of: dict[str, Counter[str]] = {}
    for name, encoding in manifest.encodings.items():
        of.setdefault(encoding, Counter())[_slot_of(name)] += 1
    rows = [[encoding, str(sum(found.values())), _counted(found)] for encoding, found in sorted(of.items())]
    _print_table(["encoding", "tensors", "which"], rows)
    if manifest.quality is not None and manifest.quality.matrices:
        click.echo()
        _print_table(["slot", "bits of codes", "error", "expected loss", "a width less", "more"], _chosen(manifest))


def _chosen(manifest: Manifest) -> list[list[str]]:
    """By slot: which widths were chosen, the mean error of the matrices, and why these widths: the KL divergence that
    they were expected to add, all together, and what one width less or more would have added."""
    assert manifest.quality is not None
    of: dict[str, list[MatrixQuality]] = {}
    for name, matrix in manifest.quality.matrices.items():
        of.setdefault(_slot_of(name), []).append(matrix)
    rows = []
    for slot, matrices in of.items():
        widths = _counted(Counter(str(matrix.bits) for matrix in sorted(matrices, key=lambda m: m.bits)))
        error = sum(matrix.error for matrix in matrices) / len(matrices)
        losses = [[matrix.cost(further) for matrix in matrices] for further in (0, -1, 1)]
        rows.append([slot, widths, f"{error:.3f}", *(_total(found) for found in losses)])
    return rows


def _total(losses: list[float | None]) -> str:
    """The sum, where there is something of every matrix."""
    found = [loss for loss in losses if loss is not None]
    return f"{sum(found):.2g}" if len(found) == len(losses) else ""


def _slot_of(name: str) -> str:
    """A parameter's name without its layer and common parts: q_proj of model.layers.3.self_attn.q_proj."""
    return name.removesuffix(".weight").rpartition(".")[2]


def _counted(found: Counter[str]) -> str:
    """The number of tensors of each kind."""
    return ", ".join(f"{name} × {count}" if count > 1 else name for name, count in found.items())


def _artifact_summary(path: Path, manifest: Manifest) -> dict[str, str]:
    """The lines for an artifact: labels and texts; those that the manifest lacks are left out."""
    lines = {"artifact": f"{manifest.name} ({manifest.architecture or 'unknown'})"}
    if manifest.provenance:
        lines["made from"] = "; ".join(manifest.provenance)
    levels = ", ".join(level.name for level in manifest.levels)
    lines["target"] = f"{manifest.target}: {levels}" if levels else manifest.target
    if manifest.proof is not None:
        lines["proof"] = str(manifest.proof)
    if manifest.quality is not None:
        lines["quality"] = str(manifest.quality)
    lines["vocabulary"] = f"{manifest.vocab_size:,} tokens"
    lines["context"] = f"{manifest.context_length:,} tokens"
    if manifest.parameters is not None:
        lines["parameters"] = f"{manifest.parameters:,}"
    lines["file"] = f"{path.stat().st_size / 1e6:,.1f} MB"
    if manifest.bits_per_weight is not None:
        lines["file"] += f", {manifest.bits_per_weight:.2f} bits per weight"
    if manifest.executable is not None:
        lines["file"] += ", an executable"
    if manifest.versions:
        lines["compiled by"] = ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items()))
    return lines


def _print_description(description: dict[str, Any]) -> None:
    _print_facts(_summary(description))
    click.echo()
    rows = []
    for row in description["slots"]:
        size = f"tied to {row['tied_to']}" if row["tied_to"] else f"{row['bytes'] / 1e6:,.2f}"
        rows.append([row["slot"], str(row["tensors"]), _shapes_text(row["shapes"]), ", ".join(row["encodings"]), size])
    _print_table(["slot", "tensors", "shape", "encoding", "MB"], rows)


def _print_facts(facts: dict[str, str]) -> None:
    _print_table(None, [list(item) for item in facts.items()])


def _print_table(columns: list[str] | None, rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=columns is not None, pad_edge=False)
    for name in columns or ():
        table.add_column(name, justify="right" if name in ("tensors", "MB") else "left")
    for row in rows:
        table.add_row(*row)
    if sys.stdout.isatty():
        plain = messages.color() is False
        Console(highlight=False, markup=False, color_system=None if plain else "auto").print(table)
        return
    text = io.StringIO()
    Console(width=UNBOUNDED, highlight=False, markup=False, file=text).print(table)
    for line in text.getvalue().splitlines():
        click.echo(line.rstrip())


def _summary(description: dict[str, Any]) -> dict[str, str]:
    """The lines above the table: labels and texts."""
    tokenizer, kv_bytes = description["tokenizer"], description["kv_bytes_per_token"]
    heads = f"{_text(description['heads'])} of {_text(description['head_dim'])} channels"
    whole_context = kv_bytes * description["context_length"]
    lines = {
        "model": f"{description['name']} ({description['architecture']})",
        "made from": "; ".join(description["provenance"]),
        "layers": f"{description['layers']}",
        "hidden size": f"{description['hidden_size']}, FFN {_text(description['ffn_width'])}",
        "attention heads": f"{heads}, {_text(description['kv_heads'])} for keys and values",
        "vocabulary": f"{description['vocab_size']:,} tokens",
        "context": f"{description['context_length']:,} tokens",
        "parameters": f"{description['parameters']:,}",
        "weights": f"{description['weight_bytes'] / 1e6:,.1f} MB, {description['bits_per_weight']:.2f} bits per weight",
        "KV cache": f"{kv_bytes:,} bytes per token in f16, {whole_context / 1e6:,.1f} MB for the whole context",
        "tokenizer": f"{tokenizer['kind']}, {tokenizer['tokens']:,} tokens" if tokenizer else "none",
        "chat template": "yes" if description["chat_template"] else "none",
    }
    if description["experts"]:
        of = f"{_text(description['experts'])}, of which a token chooses {_text(description['experts_per_token'])}"
        lines["hidden size"] += f"; experts {of}"
    if description["sliding_window"]:
        lines["attention heads"] += f", sliding window {_text(description['sliding_window'])}"
    return lines


def _text(value: Any) -> str:
    """A number, or the range of the numbers of all layers."""
    return f"{value[0]} to {value[-1]}" if isinstance(value, list) else str(value)


def _shapes_text(shapes: list[list[int]]) -> str:
    first, last = (" × ".join(map(str, shape)) for shape in (shapes[0], shapes[-1]))
    return first if len(shapes) == 1 else f"{first} to {last} ({len(shapes)} different)"
