"""``posttrain show``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from posttrain.cli._options import (
    home_option,
    json_option,
    print_json,
    print_table,
    settings_of,
    size_text,
    stages_of,
)

_MAX_FILES_SHOWN = 40


@click.command(short_help="Show an artifact, a run, a recipe or a stage.")
@click.argument("reference", metavar="REF")
@json_option
@home_option
@click.pass_context
def show(context: click.Context, reference: str, *, as_json: bool, home: Path | None) -> None:
    """Show what REF names.

    REF is a recipe, a run's id, an artifact (its digest or six or more digits of it, a ref,
    RUN:STAGE.OUTPUT), or a stage key.
    """
    from posttrain.pipelines.show import describe

    found = describe(settings_of(home), reference, stages=stages_of(context))
    if as_json:
        print_json(found)
        return
    {"recipe": _recipe, "run": _run, "artifact": _artifact, "stage": _stage}[found["type"]](found)


def _recipe(found: dict[str, Any]) -> None:
    import yaml

    click.echo(f"# {found['file']}  {_short(found['digest'])}, with every default filled in")
    click.echo(yaml.safe_dump(json.loads(json.dumps(found["recipe"])), sort_keys=False, allow_unicode=True))


def _run(found: dict[str, Any]) -> None:
    click.echo(f"run {found['id']}  {found['recipe']}  {found['status']}")
    _facts(found, ("created_at", "updated_at", "seed", "error", "events"))
    click.echo("stages")
    rows = [
        [
            stage["name"],
            stage["kind"],
            stage["status"],
            f"{stage['seconds']:.1f} s" if stage["seconds"] is not None else "",
            "  ".join(f"{name}={_short(digest)}" for name, digest in stage["outputs"].items()),
        ]
        for stage in found["stages"]
    ]
    print_table(rows, indent="  ")
    _mapping("outputs", found["outputs"])
    for page in found["reports"]:
        click.echo(f"report  {page}")
    if found["resume"]:
        click.echo(f"go on with: {found['resume']}")


def _artifact(found: dict[str, Any]) -> None:
    click.echo(f"{found['kind']}  {found['digest']}  {size_text(found['size_bytes'])}")
    if not found["complete"]:
        click.echo("  files are missing or damaged: `posttrain verify` says which")
    _facts(found, ("view", "refs"))
    for kept in found["provenance"]:
        if maker := kept["producer"]:
            click.echo(f"made by  {maker['stage']}  output {maker['output']}  key {_short(maker['key'])}")
        for name, value in kept["facts"].items():
            click.echo(
                f"  {name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
            )
    _mapping("inputs", found["inputs"])
    if found["children"]:
        click.echo("used by  " + "  ".join(_short(digest) for digest in found["children"]))
    if found["meta"]:
        click.echo("meta")
        for line in json.dumps(found["meta"], indent=2, ensure_ascii=False).splitlines()[1:-1]:
            click.echo(line)
    click.echo("files")
    rows = [[entry["path"], size_text(entry["size_bytes"])] for entry in found["files"][:_MAX_FILES_SHOWN]]
    print_table(rows, indent="  ")
    if len(found["files"]) > _MAX_FILES_SHOWN:
        click.echo(f"  and {len(found['files']) - _MAX_FILES_SHOWN} more")


def _stage(found: dict[str, Any]) -> None:
    click.echo(f"stage {found['kind']}  key {found['key']}")
    _facts(found, ("summary", "checkpoints", "runs"))
    _mapping("inputs", found["inputs"])
    if found["outputs"] is None:
        click.echo("not finished")
    else:
        _mapping("outputs", found["outputs"])


def _facts(found: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        value = found[name]
        if value not in (None, "", []):
            click.echo(f"  {name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")


def _mapping(title: str, digests: dict[str, str]) -> None:
    if digests:
        click.echo(title)
        print_table([[name, digest] for name, digest in digests.items()], indent="  ")


def _short(digest: str) -> str:
    from posttrain.core.canonical import short

    return short(digest)
