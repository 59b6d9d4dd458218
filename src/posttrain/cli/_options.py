"""Options that several commands share, and printing JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from posttrain.artifacts.home import Home
    from posttrain.artifacts.stage import StageSpec
    from posttrain.core.settings import Settings

home_option = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="PATH",
    help="Home folder, where everything is kept.  [default: POSTTRAIN_HOME, else .posttrain]",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def settings_of(home: Path | None) -> Settings:
    """The environment's settings with ``--home`` applied."""
    from posttrain.core.settings import Settings

    return Settings.from_environment(home)


def home_of(home: Path | None) -> Home:
    """The home, which must exist. Raises UnknownReferenceError."""
    from posttrain.core.errors import UnknownReferenceError
    from posttrain.pipelines.plan import existing_home

    settings = settings_of(home)
    found = existing_home(settings)
    if found is None:
        raise UnknownReferenceError(
            f"there is no home at {settings.home} yet",
            hint="`posttrain run` makes it; --home or POSTTRAIN_HOME names another",
        )
    return found


def stages_of(context: click.Context) -> Mapping[str, StageSpec]:
    """The stage kinds of this program: those handed to ``main``, else posttrain's own."""
    from posttrain.pipelines.registry import STAGES

    return STAGES if context.obj is None else context.obj


def print_json(value: Any) -> None:
    """One readable JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(rows: list[list[str]], indent: str = "") -> None:
    """Rows of text in columns as wide as their widest cell."""
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo((indent + "  ".join(cells)).rstrip())


def size_text(size_bytes: int) -> str:
    """``512 B``, ``3.4 MiB``."""
    value, units = float(size_bytes), ["B", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"
