"""``posttrain rollback``."""

from __future__ import annotations

from pathlib import Path

import click

from posttrain.cli._options import json_option, print_json
from posttrain.cli._serving import admin_of, gateway_option, who


@click.command(short_help="Move a route back to what it was before, now.")
@click.argument("route", required=False)
@click.option("--to", metavar="REF", help="Name or digest of an earlier release.  [default: the one before]")
@click.option("--reason", default="by hand", show_default=True, help="One line for the journal.")
@click.option("--drill", is_flag=True, help="Verify, load, probe and swap, and leave the traffic as it is.")
@click.option("--clear", is_flag=True, help="Somebody has looked: let candidates meet traffic again.")
@json_option
@gateway_option
def rollback(
    route: str | None,
    *,
    to: str | None,
    reason: str,
    drill: bool,
    clear: bool,
    as_json: bool,
    folder: Path,
) -> None:
    """Roll ROUTE back (the only one, where there is one).

    A candidate in shadow or canary loses its traffic; without one, production moves to the release before. It stays so
    until `posttrain rollback --clear`: no rollout of the route starts or advances meanwhile.
    """
    admin = admin_of(folder)
    if clear:
        cleared = admin.call("POST", "/v1/rollback/clear", {"route": route, "reason": reason, "by": who()})
        if as_json:
            print_json(cleared)
        else:
            said = "cleared" if cleared["cleared"] else "was not latched"
            click.echo(f"{cleared['route']} {said}")
        return
    asked = {"route": route, "to": to, "reason": reason, "drill": drill, "by": who()}
    report = admin.call("POST", "/v1/rollback", asked)
    if as_json:
        print_json(report)
        return
    times = report["milliseconds"]
    verb = "drill: traffic would move" if drill else "rolled back"
    away = f", away from {report['candidate']}" if report["candidate"] else ""
    click.echo(
        f"{report['route']}: {verb} to {report['after']}{away}; every worker on epoch {report['epoch']} after "
        f"{times['moved']:.0f} ms ({times['ready']:.0f} ms to verify, load and probe)"
    )
    if report["late"]:
        click.echo(f"not confirmed by {', '.join(report['late'])}: they get it when they answer again")
    if not report["drained"]:
        click.echo("some earlier requests were still being answered by the old target")
