"""``posttrain run``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from posttrain.cli._options import home_of, home_option, json_option, print_json, settings_of, stages_of

if TYPE_CHECKING:
    from posttrain.artifacts.home import Home
    from posttrain.core.events import Event
    from posttrain.pipelines.records import RunOutcome
    from posttrain.pipelines.resolve import ResolvedRecipe

_LATEST = "latest"
_TEXTS = {"report": "report.txt", "decision": "decision.txt"}
_VARIANTS = "posttrain.variants"


@click.command(short_help="Run a recipe; what was done before is reused.")
@click.argument("recipe", required=False)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a key: stage.key=value, or seed=3. May be given several times.",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="NAME",
    expose_value=False,
    callback=lambda context, _, names: context.meta.update({_VARIANTS: names}),
    help="Apply a variant of the recipe (`posttrain recipes` lists them), before any --set.",
)
@click.option("--dry-run", is_flag=True, help="Show what would run, every default filled in; run nothing.")
@click.option(
    "--resume",
    is_flag=False,
    flag_value=_LATEST,
    metavar="[RUN]",
    help="Take up an unfinished run with the recipe it was started with: the one named, else the latest.",
)
@json_option
@home_option
@click.pass_context
def run(
    context: click.Context,
    recipe: str | None,
    *,
    overrides: tuple[str, ...],
    dry_run: bool,
    resume: str | None,
    as_json: bool,
    home: Path | None,
) -> None:
    """Run RECIPE: the name of a shipped recipe (see `posttrain recipes`) or a YAML file.

    A stage whose configuration, inputs and code are those of earlier work is reused. Ctrl-C stops at the
    next safe point and prints how to go on. With --json each event is one JSON object on a line of its own.
    """
    from posttrain.pipelines.overrides import apply_overrides, apply_variants
    from posttrain.pipelines.plan import lookup_in
    from posttrain.pipelines.recipe import read_recipe, shipped_recipes
    from posttrain.pipelines.resolve import resolve_recipe

    variants: tuple[str, ...] = context.meta[_VARIANTS]
    if recipe is None and resume is not None and _is_recipe(resume):
        recipe, resume = resume, _LATEST  # `run --resume RECIPE`: the option took the argument
    if recipe is None and resume is None:
        raise click.UsageError(f"name a recipe: {', '.join(shipped_recipes()) or 'a YAML file'}", context)
    if resume is not None and (dry_run or overrides or variants):
        raise click.UsageError(
            "--resume uses the stored recipe: give neither --set nor --variant nor --dry-run", context
        )
    resolved = None
    if recipe is not None:
        stages = stages_of(context)
        source = apply_overrides(apply_variants(read_recipe(recipe), variants, stages), overrides, stages)
        resolved = resolve_recipe(source, stages=stages, lookup=lookup_in(settings_of(home)))
    if dry_run and resolved is not None:
        show_plan(resolved, home, as_json=as_json)
        return
    execute(context, resolved, resume, home, as_json=as_json)


def _is_recipe(text: str) -> bool:
    from posttrain.pipelines.recipe import shipped_recipes

    return text in shipped_recipes() or Path(text).suffix in (".yaml", ".yml")


def execute(
    context: click.Context,
    resolved: ResolvedRecipe | None,
    resume: str | None,
    home_path: Path | None,
    *,
    as_json: bool,
) -> None:
    """Run a resolved recipe, or resume a run, with progress and clean stops."""
    from posttrain.artifacts.home import open_home
    from posttrain.artifacts.stage import StopRequest
    from posttrain.cli._progress import choose_display
    from posttrain.cli._signals import stop_on_signals
    from posttrain.pipelines.runner import resume_run, run_recipe
    from posttrain.pipelines.runs import latest_unfinished, resume_command

    home = home_of(home_path) if resolved is None else open_home(settings_of(home_path))
    reference = None if resume == _LATEST else resume
    if resume is not None and resolved is not None and reference is None:
        unfinished = latest_unfinished(home, resolved.digest)
        reference = unfinished.id if unfinished else None
        resume = resume if unfinished else None  # nothing to take up: a new run, which reuses what is done
    display, stop, started = choose_display(as_json=as_json), StopRequest(), list[str]()

    def watch(event: Event) -> None:
        if event.kind == "run_started":
            started.append(event.data["run"])
        display(event)

    try:
        with display, stop_on_signals(stop):
            if resume is not None:
                outcome = resume_run(home, reference, events=watch, stop=stop, stages=stages_of(context))
            elif resolved is not None:
                outcome = run_recipe(home, resolved, events=watch, stop=stop)
    except KeyboardInterrupt:
        if started:
            click.echo(f"stopped at once; go on with: {resume_command(home, started[-1])}", err=True)
        raise
    if not as_json:
        _show_outcome(home, outcome)


def _show_outcome(home: Home, outcome: RunOutcome) -> None:
    from posttrain.cli._options import print_table
    from posttrain.cli._progress import duration
    from posttrain.core.canonical import short

    for artifact in outcome.outputs.values():
        text = _TEXTS.get(artifact.kind)
        if text is not None and any(entry.path == text for entry in artifact.files):
            click.echo("\n" + home.store.read_bytes(artifact, text).decode().rstrip())
    reused = sum(stage.status == "reused" for stage in outcome.stages)
    counts = f"{len(outcome.stages)} stages, {reused} reused"
    click.echo(f"\nrun {outcome.run_id} finished in {duration(outcome.seconds)}: {counts}")
    print_table(
        [
            [name, artifact.kind, short(artifact.digest), str(outcome.reports.get(name, ""))]
            for name, artifact in outcome.outputs.items()
        ],
        indent="  ",
    )


def show_plan(resolved: ResolvedRecipe, home_path: Path | None, *, as_json: bool) -> None:
    """Print what would run, with every default."""
    import dataclasses

    import yaml

    from posttrain.cli._options import print_table
    from posttrain.core.canonical import short
    from posttrain.pipelines.plan import existing_home, plan_recipe

    planned = plan_recipe(resolved, existing_home(settings_of(home_path)))
    if as_json:
        print_json(
            {
                "recipe": json.loads(json.dumps(resolved.document)),
                "digest": resolved.digest,
                "stages": [dataclasses.asdict(stage) for stage in planned],
            }
        )
        return
    click.echo(f"{resolved.name}  {short(resolved.digest)}  (nothing was run)\n")
    rows = [[s.name, s.kind, s.status, short(s.key) if s.key else "-"] for s in planned]
    print_table([["STAGE", "KIND", "STATUS", "KEY"], *rows])
    if any(stage.status == "unknown" for stage in planned):
        click.echo("\nunknown: depends on outputs that do not exist yet")
    plain = json.loads(json.dumps(resolved.document))
    click.echo("\n" + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
