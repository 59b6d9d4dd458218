"""``posttrain rollout``: how a candidate meets traffic in stages.

Here: the group and its commands, each with the code that it needs loaded inside. To add a command: a function with
``@rollout.command``.
"""

from __future__ import annotations

from pathlib import Path

import click

from posttrain.cli._options import json_option, print_json
from posttrain.cli._rollout_live import COMMANDS


@click.group(short_help="Let a candidate meet traffic in stages: shadow, canary, production.")
def rollout() -> None:
    """Let a candidate meet traffic in stages: gated, shadow, canary 1, 5, 25, 50 %, production.

    Going on needs a GO decision, requests and time. Going back needs nobody: triggers that were registered with the
    contract roll back by themselves. docs/rollouts.md has it on a page.
    """


@rollout.command("plan", short_help="What N requests in H hours can and cannot detect.")
@click.option(
    "--requests",
    type=click.IntRange(min=1, max=1_000_000),
    default=5000,
    show_default=True,
    help="Requests that the candidate answers in the canary stages.",
)
@click.option(
    "--hours",
    type=click.FloatRange(min=0, min_open=True),
    default=24.0,
    show_default=True,
    help="Least time of the canary stages.",
)
@click.option(
    "--traffic",
    type=click.FloatRange(min=0, min_open=True),
    metavar="PER_HOUR",
    help="Requests an hour on the whole route.  [default: as many as the stages need for their least time]",
)
@click.option(
    "--looks",
    type=click.IntRange(min=1),
    help="How often triggers look.  [default: after every request, as a rollout does]",
)
@click.option(
    "--contract",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of promotion rules.  [default: abandon rate, incidents, latency and cost of the staging rules]",
)
@json_option
def plan(
    *,
    requests: int,
    hours: float,
    traffic: float | None,
    looks: int | None,
    contract: Path | None,
    as_json: bool,
) -> None:
    """Print what a canary can and cannot detect before it is started.

    For every rule on traffic of the contract: the chance of a rollback by the end of each stage at a grid of true
    values, the requests by which half of the rollbacks have come, and the chance that a candidate exactly at its limit
    is rolled back. For every stage: the requests that it needs and the time that it takes.
    """
    from posttrain.promotion.grammar import parse_contract, read_contract
    from posttrain.rollouts.plan import STAGING_RULES, make_plan
    from posttrain.rollouts.plan_text import render_plan

    rules = parse_contract(STAGING_RULES) if contract is None else read_contract(contract)
    made = make_plan(rules, requests=requests, hours=hours, traffic=traffic, looks=looks)
    if as_json:
        print_json(made.to_json())
    else:
        click.echo(render_plan(made), nl=False)


for command in COMMANDS:
    rollout.add_command(command)
