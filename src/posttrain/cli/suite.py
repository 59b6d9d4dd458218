"""``posttrain suite``: build, show, verify and diff frozen suites."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posttrain.cli._options import home_option, json_option, print_json, print_table, settings_of

if TYPE_CHECKING:
    from posttrain.environments.suites.suite import Suite, SuiteDiff

_MAX_ENTRIES_SHOWN = 40


@click.group(short_help="Build, show, verify and compare frozen suites.")
def suite() -> None:
    """Frozen suites: what a model is judged on, known by one digest.

    SUITE is `standard`, a folder that holds a suite, or an artifact of the home.
    """


@suite.command()
@click.argument("source", metavar="SOURCE")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write the suite there.  [default: keep it in the home]",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting: decoding.temperature=0.7. May be given several times.",
)
@json_option
@home_option
def build(
    source: str, *, output: Path | None, overrides: tuple[str, ...], as_json: bool, home: Path | None
) -> None:
    """Build a suite from SOURCE: `standard` (the four shipped slices) or a folder with settings.json and slices/."""
    import yaml

    from posttrain.artifacts.home import open_home
    from posttrain.environments.suites.files import parse_suite, write_suite
    from posttrain.evaluation.suites.build import SuiteConfig, build_files
    from posttrain.pipelines.suites import keep_suite

    pairs = [text.partition("=") for text in overrides]
    if not all(equals for _, equals, _ in pairs):
        raise click.UsageError("--set wants KEY=VALUE")
    settings = {key: yaml.safe_load(value) for key, _, value in pairs}
    files = build_files(SuiteConfig(source=source, settings=settings))
    built = parse_suite(files)
    if output is not None:
        write_suite(output, files)
        where = str(output)
    else:
        where = keep_suite(open_home(settings_of(home)), files).digest
    if as_json:
        print_json({"suite": where, **facts(built)})
        return
    _print_suite(built)
    click.echo(f"\nin {where}" if output is not None else f"\nartifact {where}")


@suite.command()
@click.argument("reference", metavar="SUITE")
@json_option
@home_option
def show(reference: str, *, as_json: bool, home: Path | None) -> None:
    """Show what SUITE holds: its identity, settings, slices, tools."""
    from posttrain.environments.suites.files import parse_suite
    from posttrain.pipelines.suites import find_suite

    found = parse_suite(find_suite(settings_of(home), reference))
    if as_json:
        print_json(facts(found))
    else:
        _print_suite(found)


@suite.command()
@click.argument("reference", metavar="SUITE")
@click.option("--expect", metavar="ROOT", help="Fail unless the identity begins with this.")
@json_option
@home_option
def verify(reference: str, *, expect: str | None, as_json: bool, home: Path | None) -> None:
    """Hash every byte of SUITE again, and derive again what is derived."""
    from posttrain.core.errors import DataError
    from posttrain.evaluation.suites.frozen_code import check_code
    from posttrain.pipelines.suites import find_suite, verify_suite

    found = verify_suite(find_suite(settings_of(home), reference))
    root = found.identity.root
    if expect is not None and not root.removeprefix("sha256:").startswith(expect.removeprefix("sha256:")):
        raise DataError(f"the suite is {root}, not {expect}", hint="`posttrain suite diff` says what differs")
    code = "as installed"
    try:
        check_code(found)
    except DataError as error:
        code = error.message
    if as_json:
        print_json({"identity": found.identity.to_json(), "sound": True, "code": code})
        return
    click.echo(f"{root}  every byte as it was built")
    click.echo(f"code: {code}")


@suite.command()
@click.argument("first", metavar="SUITE")
@click.argument("second", metavar="SUITE")
@json_option
@home_option
@click.pass_context
def diff(context: click.Context, first: str, second: str, *, as_json: bool, home: Path | None) -> None:
    """Say in what two suites differ: parts, files, cases, recorded replies, settings. Exit code 1 where they do."""
    from posttrain.environments.suites.diff import diff_suites
    from posttrain.pipelines.suites import find_suite

    settings = settings_of(home)
    found = diff_suites(find_suite(settings, first), find_suite(settings, second))
    if as_json:
        print_json({"same": found.same, **found.model_dump(mode="json")})
    else:
        _print_diff(found)
    context.exit(0 if found.same else 1)


def facts(found: Suite) -> dict[str, Any]:
    """A suite as JSON, without its cases."""
    return {
        "identity": found.identity.to_json(),
        "settings": found.settings.model_dump(mode="json"),
        "prompts": dict(found.prompts),
        "slices": [
            {
                "name": spec.name,
                "summary": spec.summary,
                "cases": len(spec.cases),
                "required": list(spec.required),
                "graders": [dict(grader) for grader in spec.graders],
                "tools": {tool.name: len(tool.replies) for tool in spec.tools},
                "files": len(spec.files),
                "documents": len(spec.documents),
            }
            for spec in found.slices
        ],
    }


def _print_suite(found: Suite) -> None:
    settings = found.settings
    click.echo(f"{settings.name}  {found.identity.root}  (scheme {found.identity.scheme})")
    if settings.title:
        click.echo(settings.title)
    decoding = settings.decoding
    click.echo(
        f"clock {settings.clock}, seed {settings.seed}, temperature {decoding.temperature:g}, "
        f"{decoding.max_new_tokens} tokens a turn, {settings.max_turns} turns, {settings.samples} a case\n"
    )
    rows = [["SLICE", "CASES", "PASSES WHERE", "TOOLS", "FILES", "DOCUMENTS"]]
    for spec in found.slices:
        tools = ", ".join(tool.name for tool in spec.tools)
        counts = [str(len(spec.files)), str(len(spec.documents))]
        rows.append([spec.name, str(len(spec.cases)), " and ".join(spec.required), tools or "-", *counts])
    print_table(rows)
    click.echo("\nparts")
    print_table([[name, digest] for name, digest in found.identity.parts.items()], indent="  ")


def _print_diff(found: SuiteDiff) -> None:
    if found.same:
        click.echo(f"the same suite, {found.before}")
        return
    click.echo(f"{found.before}\n{found.after}")
    for title, entries in (("parts", found.parts), ("files", found.files), ("in them", found.entries)):
        if entries:
            click.echo(title)
            shown = entries[:_MAX_ENTRIES_SHOWN]
            print_table([[entry.what, entry.where, entry.detail] for entry in shown], indent="  ")
        if len(entries) > _MAX_ENTRIES_SHOWN:
            click.echo(f"  and {len(entries) - _MAX_ENTRIES_SHOWN} more")
