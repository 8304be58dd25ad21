"""Prints answers while they are generated: plain, or as Markdown on a terminal."""

from __future__ import annotations

from collections.abc import Iterable

import click


def show_plain(pieces: Iterable[str]) -> None:
    """Prints parts of a text as they come."""
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()


def show_stream(pieces: Iterable[str]) -> None:
    """Shows Markdown; a complete paragraph stays, and the last one is drawn again with every new part."""
    from rich.console import Console
    from rich.live import Live
    from rich.markdown import Markdown

    console = Console(highlight=False)
    growing = ""
    with Live(console=console, auto_refresh=False, vertical_overflow="visible", transient=True) as live:
        try:
            for piece in pieces:
                done, growing = complete_blocks(growing + piece)
                if done:
                    live.update("", refresh=True)
                    console.print(Markdown(done))
                live.update(Markdown(growing), refresh=True)
        finally:
            live.update("", refresh=True)
    if growing.strip():
        console.print(Markdown(growing))


def complete_blocks(text: str) -> tuple[str, str]:
    """The part of a Markdown text that can't change any more, up to the last empty line outside of code, and the
    rest."""
    end, position, fenced = 0, 0, False
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        position += len(line)
        if not fenced and not line.strip() and line.endswith("\n"):
            end = position
    return text[:end], text[end:]
