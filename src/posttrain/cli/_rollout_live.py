"""The commands of ``posttrain rollout`` that talk to a running gateway.

Here: start, status, advance, hold, resume, abort, clear. Not here: ``plan``, which needs none (``rollout``).
To add one: a command below and in ``COMMANDS``, and an action of the admin surface.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from posttrain.cli._options import json_option, print_json, print_table
from posttrain.cli._serving import admin_of, gateway_option, who

_MARKS = {"quiet": "✓", "hold": "…", "invalid": "✗", "tripped": "✗"}


@click.command("start", short_help="Write a rollout down, verify and load its candidate, and begin.")
@click.argument("release", metavar="RELEASE")
@click.option(
    "--contract",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="File of promotion rules; its `canary.` rules become the triggers.",
)
@click.option(
    "--decision", metavar="REF", help="The gate's GO about this candidate, an artifact of the home."
)
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="YAML with any of route, stages, shadow, sampling, adapter, prices, auto_advance, suite.",
)
@click.option("--auto", is_flag=True, help="Go on by itself when everything that a stage asks for is there.")
@json_option
@gateway_option
def start(
    release: str,
    *,
    contract: Path,
    decision: str | None,
    plan_file: Path | None,
    auto: bool,
    as_json: bool,
    folder: Path,
) -> None:
    """Let RELEASE, the candidate, meet traffic in stages beside what is production now.

    The stages and triggers are fixed here, under the contract's digest; nothing that is seen later changes them. The
    candidate needs a GO decision about itself. `posttrain rollout plan` says what its window can detect.
    """
    from posttrain.core.yaml_text import parse_document

    asked: dict[str, Any] = {}
    if plan_file is not None:
        value = parse_document(plan_file.read_text(encoding="utf-8"), plan_file.name).value
        if not isinstance(value, dict):
            raise click.UsageError(f"{plan_file}: expected a mapping of keys")
        asked |= value
    asked |= {"release": release, "contract": contract.read_text(encoding="utf-8"), "by": who()}
    if decision is not None:
        asked["decision"] = decision
    if auto:
        asked["auto_advance"] = True
    _show(admin_of(folder).call("POST", "/v1/rollouts", asked), as_json=as_json)


@click.command("status", short_help="Where a rollout is, what its triggers say, what it still needs.")
@click.argument("name", required=False, metavar="[ROLLOUT]")
@json_option
@gateway_option
def status(name: str | None, *, as_json: bool, folder: Path) -> None:
    """Show ROLLOUT; without one, the gateway and every rollout."""
    admin = admin_of(folder)
    if name is not None:
        _show(admin.call("GET", f"/v1/rollouts/{name}"), as_json=as_json)
        return
    gateway, rollouts = admin.call("GET", "/v1/status"), admin.call("GET", "/v1/rollouts")
    if as_json:
        print_json({"gateway": gateway, "rollouts": rollouts})
        return
    click.echo(f"{gateway['gateway']} at {gateway['url']}: epoch {gateway['epoch']}, {gateway['reason']}")
    for route in gateway["routes"]:
        beside = "".join(
            f", {lane} {route[lane]['share'] / 100:g} % {route[lane]['target']['name']}"
            for lane in ("canary", "shadow")
            if route[lane] is not None
        )
        latched = (
            "  LATCHED: " + gateway["latched"][route["model"]] if route["model"] in gateway["latched"] else ""
        )
        click.echo(f"  {route['model']}: {route['production']['name']}{beside}{latched}")
    if gateway["failure"]:
        click.echo(f"  not done yet: {gateway['failure']}")
    for found in rollouts:
        click.echo(
            f"  rollout {found['id']}  {found['candidate']}  {found['label']}  {found['progress']}".rstrip()
        )


def _action(name: str, summary: str, text: str) -> click.Command:
    @click.command(name, short_help=summary, help=text)
    @click.argument("rollout_id", required=False, metavar="[ROLLOUT]")
    @click.option("--reason", default="", metavar="TEXT", help="One line for the journal.")
    @json_option
    @gateway_option
    def command(rollout_id: str | None, *, reason: str, as_json: bool, folder: Path) -> None:
        asked = {"reason": reason, "by": who()}
        found = admin_of(folder).call("POST", f"/v1/rollouts/{rollout_id or '-'}/{name}", asked)
        _show(found, as_json=as_json)

    return command


COMMANDS = (
    start,
    status,
    _action(
        "advance",
        "Go on to the next stage.",
        "Go on to the next stage, if the stage has all that it asks for.",
    ),
    _action(
        "hold",
        "Stay at this stage.",
        "Stay at this stage, whatever is there, until `posttrain rollout resume`.",
    ),
    _action("resume", "Lift a hold.", "Lift a hold. What a trigger holds is lifted when its cause is gone."),
    _action(
        "abort",
        "End it; production stays.",
        "End the rollout. Production stays what it was; nothing is latched.",
    ),
    _action(
        "clear",
        "A rollback was looked at.",
        "Say that a rollback was looked at: the route may have another rollout.",
    ),
)
"""What ``posttrain rollout`` takes up, in the order of its help."""


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    click.echo(f"rollout {found['id']} of {found['candidate']} on {found['route']}: {found['label']}")
    stages = [
        f"[{stage}]" if index == found["stage"] else stage for index, stage in enumerate(found["stages"])
    ]
    click.echo("  " + " > ".join(stages))
    if found["progress"]:
        click.echo(f"  {found['progress']}")
    print_table(
        [[_MARKS[trigger["state"]], trigger["name"], trigger["line"]] for trigger in found["triggers"]],
        indent="  ",
    )
    pairs = found["pairs"]
    if pairs["win_rate"] is not None:
        click.echo(
            f"  beside production, unseen: {pairs['shadow']} better, {pairs['production']} worse, "
            f"{pairs['tie']} equal, {pairs['unknown']} not judged; win rate {pairs['win_rate']:.2f}"
        )
    if found["advance"]:
        click.echo("  to go on it still needs: " + "; ".join(found["advance"]))
    if found["latched"]:
        click.echo(f"  latched: look into it, then `posttrain rollout clear {found['id']}`")
