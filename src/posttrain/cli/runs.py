"""``posttrain runs`` and ``posttrain runs rm``."""

from __future__ import annotations

from pathlib import Path

import click

from posttrain.cli._options import home_of, home_option, json_option, print_json, print_table, settings_of


@click.group(invoke_without_command=True, short_help="List runs; `runs rm` forgets one.")
@json_option
@home_option
@click.pass_context
def runs(context: click.Context, *, as_json: bool, home: Path | None) -> None:
    """List runs, the youngest first.

    A run whose process was killed is `interrupted`; `posttrain run --resume RUN` takes it up.
    """
    if context.invoked_subcommand is not None:
        context.meta["home"] = home
        return
    from posttrain.pipelines.plan import existing_home
    from posttrain.pipelines.show import list_runs

    listed = list_runs(existing_home(settings_of(home)))
    if as_json:
        print_json(listed)
    elif not listed:
        click.echo("no runs yet")
    else:
        rows = [
            [
                item["id"],
                item["recipe"],
                item["status"],
                f"{item['stages_done']}/{item['stages']}",
                str(item["seed"]),
                item["error"] or "",
            ]
            for item in listed
        ]
        print_table([["RUN", "RECIPE", "STATUS", "STAGES", "SEED", "ERROR"], *rows])


@runs.command("rm", short_help="Forget a run.")
@click.argument("run_ids", nargs=-1, required=True, metavar="RUN...")
@home_option
@click.pass_context
def remove(context: click.Context, run_ids: tuple[str, ...], *, home: Path | None) -> None:
    """Forget runs. What they made stays in the store until `posttrain gc`."""
    from posttrain.pipelines.runs import find_run, remove_run

    opened = home_of(home or context.meta["home"])
    for found in [find_run(opened, run_id) for run_id in run_ids]:
        remove_run(opened, found)
        click.echo(f"removed run {found.id}")
