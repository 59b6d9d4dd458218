"""``posttrain gc``."""

from __future__ import annotations

from pathlib import Path

import click

from posttrain.cli._options import home_of, home_option, json_option, print_json, size_text

_DEFAULT_MIN_AGE_SECONDS = 3600.0


@click.command(short_help="Remove what no run, ref or release names.")
@click.option("--dry-run", is_flag=True, help="Say what would go; remove nothing.")
@click.option(
    "--min-age",
    "min_age_seconds",
    type=click.FloatRange(min=0),
    default=_DEFAULT_MIN_AGE_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Keep everything younger than this.",
)
@json_option
@home_option
def gc(*, dry_run: bool, min_age_seconds: float, as_json: bool, home: Path | None) -> None:
    """Remove artifacts that no run, ref or release names and that nothing kept was made from."""
    import dataclasses

    from posttrain.artifacts.gc import collect_garbage

    report = collect_garbage(home_of(home), dry_run=dry_run, min_age_seconds=min_age_seconds)
    if as_json:
        print_json(dataclasses.asdict(report))
        return
    click.echo(
        f"{'would remove' if dry_run else 'removed'} {len(report.removed)} artifacts, {report.objects} files "
        f"({size_text(report.freed_bytes)}) and {report.folders} folders; {report.kept} artifacts stay"
    )
    for digest in report.removed:
        click.echo(f"  {digest}")
