"""``posttrain doctor``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from posttrain.cli._options import home_option, json_option, print_json, print_table, settings_of, stages_of

_MARKS = {"ok": "ok", "absent": "-", "warning": "!", "failed": "FAILED"}


@click.command(short_help="Say what is installed, what works, and what to install for the rest.")
@json_option
@home_option
@click.pass_context
def doctor(context: click.Context, *, as_json: bool, home: Path | None) -> int:
    """Say what is installed, which engines and devices are usable, and what to install for the rest.

    Exits with 1 when something that is installed does not work.
    """
    import dataclasses

    from posttrain.pipelines.doctor import examine

    if not as_json and sys.stderr.isatty():
        click.echo("looking; engines are really loaded, which takes some seconds", err=True)
    checks = examine(settings_of(home), stages=stages_of(context))
    if as_json:
        print_json([dataclasses.asdict(check) for check in checks])
    else:
        for group in dict.fromkeys(check.group for check in checks):
            click.echo(group)
            ours = [check for check in checks if check.group == group]
            print_table([[_MARKS[check.status], check.name, check.detail] for check in ours], indent="  ")
        hints = [f"{check.name}: {check.hint}" for check in checks if check.hint]
        if hints:
            click.echo("to do")
            for hint in hints:
                click.echo(f"  {hint}")
    return 1 if any(check.status == "failed" for check in checks) else 0
