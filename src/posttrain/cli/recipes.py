"""``posttrain recipes``."""

from __future__ import annotations

import click

from posttrain.cli._options import json_option, print_json, stages_of


@click.command(short_help="List the recipes that come with posttrain.")
@json_option
@click.pass_context
def recipes(context: click.Context, *, as_json: bool) -> None:
    """List the recipes that come with posttrain. `posttrain show RECIPE` prints one with every default."""
    from posttrain.pipelines.show import list_recipes

    listed = list_recipes(stages=stages_of(context))
    if as_json:
        print_json(listed)
        return
    for item in listed:
        click.echo(f"{item['name']}: {item['title'] or item['error'] or ''}")
        if item["stages"]:
            click.echo(f"  {' > '.join(item['stages'])}")
        for name, summary in item["variants"].items():
            click.echo(f"  --variant {name}: {summary}")
    if not listed:
        click.echo("no recipes are installed")
