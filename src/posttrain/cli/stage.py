"""``posttrain stage``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from posttrain.cli._options import home_option, json_option, print_json, settings_of, stages_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from posttrain.artifacts.stage import StageSpec


@click.command(short_help="Run one stage by itself, or list the kinds there are.")
@click.argument("kind", required=False)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=ARTIFACT",
    help="An input: a digest or the beginning of one, as `posttrain show` prints it. May be given several times.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="A key of the stage's configuration, or seed=3. May be given several times.",
)
@click.option("--dry-run", is_flag=True, help="Show what would run, every default filled in; run nothing.")
@json_option
@home_option
@click.pass_context
def stage(
    context: click.Context,
    kind: str | None,
    *,
    inputs: tuple[str, ...],
    overrides: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    home: Path | None,
) -> None:
    """Run the stage KIND (rejection-sample, sft, ...) on artifacts of the store.

    It is a run like any other: reused where its work was done before, resumed where it was stopped. Without
    KIND, the kinds are listed with their inputs and outputs; --dry-run shows every key of one.
    """
    from posttrain.cli.run import execute, show_plan
    from posttrain.pipelines.overrides import apply_overrides
    from posttrain.pipelines.plan import lookup_in
    from posttrain.pipelines.resolve import resolve_recipe
    from posttrain.pipelines.single import find_stage, stage_recipe

    stages = stages_of(context)
    if kind is None:
        _list(stages, as_json=as_json)
        return
    spec = find_stage(kind, stages)
    source = stage_recipe(spec, dict(_pair(text, context) for text in inputs))
    name = spec.kind.replace("_", "-")
    keys = [text if text.startswith("seed=") else f"{name}.{text}" for text in overrides]
    source = apply_overrides(source, keys, stages)
    resolved = resolve_recipe(source, stages=stages, lookup=lookup_in(settings_of(home)))
    if dry_run:
        show_plan(resolved, home, as_json=as_json)
    else:
        execute(context, resolved, None, home, as_json=as_json)


def _pair(text: str, context: click.Context) -> tuple[str, str]:
    name, equals, reference = text.partition("=")
    if not equals or not name or not reference:
        raise click.UsageError(f"--input wants NAME=ARTIFACT, not {text!r}", context)
    return name, reference


def _list(stages: Mapping[str, StageSpec], *, as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "kind": spec.kind,
                    "summary": spec.summary,
                    "inputs": dict(spec.inputs),
                    "outputs": dict(spec.outputs),
                }
                for spec in stages.values()
            ]
        )
        return
    for spec in stages.values():
        click.echo(f"{spec.kind.replace('_', '-')}: {spec.summary}")
        click.echo(f"  {', '.join(spec.inputs) or 'no inputs'} > {', '.join(spec.outputs)}")
    click.echo("\n? is optional, * takes any number (--input sets.name=...)")
