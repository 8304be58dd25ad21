"""For the documentation's site: the commands' help, and no links to files of the repository, which the site lacks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click

from smc.cli import main


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    if "<!-- commands -->" in markdown:
        markdown = markdown.replace("<!-- commands -->", "\n".join(_help(main.cli, "smc")))
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", markdown)


def _help(command: click.Command, name: str, above: click.Context | None = None) -> Iterator[str]:
    """A heading and the help of a command and of all below it."""
    context = click.Context(command, info_name=name, parent=above, max_content_width=80, terminal_width=80)
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from _help(found, inner, context)
