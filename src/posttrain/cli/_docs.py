"""``docs/cli.md``, written from the commands themselves: ``python -m posttrain.cli._docs > docs/cli.md``.

A test compares the file with what this makes, so the help and the page cannot drift apart.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from posttrain.cli._app import app

_WIDTH = 100


def render() -> str:
    """The whole page."""
    parts = [
        "# The command line",
        "Made from the commands' own help by `python -m posttrain.cli._docs > docs/cli.md`; do not edit.",
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped with Ctrl-C.",
    ]
    top = click.Context(app, info_name="posttrain", terminal_width=_WIDTH, **app.context_settings)
    for title, text in _pages(app, top):
        parts.append(f"## {title}\n\n```text\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def _pages(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None:
                child = click.Context(below, parent=context, info_name=name, terminal_width=_WIDTH)
                yield from _pages(below, child)


if __name__ == "__main__":
    sys.stdout.write(render())
