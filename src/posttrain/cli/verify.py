"""``posttrain verify``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from posttrain.cli._options import home_of, home_option, json_option, print_json


@click.command(short_help="Derive every digest again and say what is damaged.")
@json_option
@home_option
def verify(*, as_json: bool, home: Path | None) -> int:
    """Derive every digest in the home again: files, manifests, the index and the journal.

    Exits with 1 when anything differs.
    """
    import dataclasses

    from posttrain.releases.verify import verify_everything

    opened = home_of(home)
    shows_progress = not as_json and sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if shows_progress:
            click.echo(f"\r{done}/{total} files", nl=False, err=True)

    problems = verify_everything(opened, progress)
    if shows_progress:
        click.echo("", err=True)
    artifacts = sum(1 for _ in opened.store.digests())
    if as_json:
        print_json(
            {"artifacts": artifacts, "problems": [dataclasses.asdict(problem) for problem in problems]}
        )
    else:
        for problem in problems:
            click.echo(f"{problem.digest or 'registry'}  {problem.path}: {problem.what}")
        if problems:
            click.echo(
                f"{len(problems)} problems in {artifacts} artifacts; run the recipes that made them again"
            )
        else:
            click.echo(f"{artifacts} artifacts, every digest as it should be")
    return 1 if problems else 0
