"""``posttrain gate``, ``posttrain gate lint`` and ``posttrain gate verify``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posttrain.cli._options import home_of, home_option, json_option, print_json

if TYPE_CHECKING:
    from posttrain.promotion.gate import Report
    from posttrain.promotion.records import Decision


_SUITE = "posttrain.suite"


class _Assignment(click.ParamType[tuple[str, float]]):
    """``NAME=NUMBER``."""

    name = "assignment"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        if isinstance(value, tuple):
            return value
        name, _, number = str(value).rpartition("=")
        try:
            return (
                (name, float(number))
                if name
                else self.fail(f"expected NAME=NUMBER, not {value!r}", param, ctx)
            )
        except ValueError:
            self.fail(f"{number!r} is no number", param, ctx)


class _DefaultGroup(click.Group):
    """A group whose first word need not be a sub-command: then it is a contract, and ``apply`` is meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            args = ["apply", *args]
        return super().resolve_command(ctx, args)


@click.group(
    cls=_DefaultGroup, short_help="Apply a contract of promotion rules: GO, NO-GO, or not known yet."
)
def gate() -> None:
    """Apply a contract of promotion rules to a report.

    `posttrain gate CONTRACT --candidate REPORT` is short for `posttrain gate apply CONTRACT ...`.

    Exit codes: 0 GO, 1 NO-GO (the data refute a rule), 3 INCONCLUSIVE (too little data), 2 ERROR or INVALID.
    """


def _reports(command: Any) -> Any:
    for name, text in (
        ("canary", "Records of production traffic, for the canary rules."),
        ("baseline", "The model in production, on the same suite, for rules that compare."),
    ):
        command = click.option(f"--{name}", metavar="REPORT", help=text)(command)
    return command


@gate.command("apply", short_help="Decide, and print the arithmetic of every rule.")
@click.argument("contract", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--candidate", required=True, metavar="REPORT", help="The model that wants to go on.")
@_reports
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write the decision as a page."
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Also keep the decision in this folder."
)
@json_option
@home_option
def apply_contract(
    contract: Path,
    *,
    html: Path | None,
    out: Path | None,
    as_json: bool,
    home: Path | None,
    **reports: str | None,
) -> int:
    """Apply CONTRACT, a file of promotion rules, to the candidate's REPORT.

    REPORT is a folder with a report.json, or a reference to an artifact of the home. Exit codes: 0 GO, 1 NO-GO,
    3 INCONCLUSIVE, 2 ERROR or INVALID.
    """
    from posttrain.core.atomic import write_atomic
    from posttrain.promotion.gate import gate as decide
    from posttrain.promotion.gate_stage import decision_files
    from posttrain.promotion.grammar import read_contract
    from posttrain.promotion.page import render_page
    from posttrain.promotion.terminal import render_decision

    rules = read_contract(contract)
    found = {name: _report(reference, home) for name, reference in reports.items() if reference is not None}
    decision = decide(rules, found["candidate"], baseline=found.get("baseline"), canary=found.get("canary"))
    if html is not None:
        write_atomic(html, render_page(decision).encode())
    if out is not None:
        for name, data in decision_files(decision).items():
            write_atomic(out / name, data)
    if as_json:
        print_json(decision.to_json())
    else:
        click.echo(render_decision(decision), nl=False)
    return decision.exit_code


@gate.command("lint", short_help="Say what is wrong with a contract before any run.")
@click.argument("contract", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--report", metavar="REPORT", help="A report of the same suite: slices, sizes, columns, lane.")
@click.option(
    "--suite",
    metavar="SUITE",
    expose_value=False,
    callback=lambda context, _, suite: context.meta.update({_SUITE: suite}),
    help="The suite that will be played: slices and sizes. `standard`, a folder or an artifact.",
)
@click.option(
    "--n",
    "sizes",
    multiple=True,
    type=_Assignment(),
    metavar="SLICE=CASES",
    help="Cases of a slice. May be given several times.",
)
@click.option(
    "--true",
    "values",
    multiple=True,
    type=_Assignment(),
    metavar="METRIC=VALUE",
    help="A value that the candidate is expected to have: math_correct_rate(math_basic)=0.99.",
)
@click.option(
    "--discordance",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.1,
    show_default=True,
    help="Share of cases that are expected to change between baseline and candidate.",
)
@json_option
@home_option
def lint_contract(
    contract: Path,
    *,
    report: str | None,
    sizes: tuple[tuple[str, float], ...],
    values: tuple[tuple[str, float], ...],
    discordance: float,
    as_json: bool,
    home: Path | None,
) -> int:
    """Say what is wrong with CONTRACT before any run: rules that cannot pass at this number of cases, bounds that
    point the wrong way, names that the report does not have, and which true values pass with 80 % power.

    Exit code 2 where a rule can never pass, else 0.
    """
    from posttrain.promotion.grammar import read_contract
    from posttrain.promotion.lint import Known, lint, parse_call

    rules = read_contract(contract)
    known = Known() if report is None else Known.of_report(_report(report, home).outcomes.header)
    known = replace(
        known,
        sizes={
            **_sizes_of(click.get_current_context().meta[_SUITE], home),
            **known.sizes,
            **{name: int(cases) for name, cases in sizes},
        },
        true={parse_call(name): value for name, value in values},
        discordance=discordance,
    )
    findings = lint(rules, known)
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        for finding in findings:
            place = f"{contract.name}:{finding.line}:{finding.column}: " if finding.rule else ""
            click.echo(f"{place}{finding.level}: {finding.message}")
            if finding.rule:
                click.echo(f"    {finding.rule}")
        if not known.sizes:
            click.echo(
                "sizes are not known: --suite, --report or --n SLICE=CASES says what can be reached with them"
            )
    return 2 if any(finding.level == "error" for finding in findings) else 0


def _sizes_of(suite: str | None, home: Path | None) -> dict[str, int]:
    """Slice to its cases; empty where no suite is named."""
    if suite is None:
        return {}
    from posttrain.cli._options import settings_of
    from posttrain.environments.suites.files import parse_suite
    from posttrain.pipelines.suites import find_suite

    slices = parse_suite(find_suite(settings_of(home), suite)).slices
    return {spec.name: len(spec.cases) for spec in slices}


@gate.command("verify", short_help="Make a decision again from its records and compare the bytes.")
@click.argument("decision")
@click.option("--candidate", metavar="REPORT", help="Where the candidate's report is, if it is in no store.")
@_reports
@home_option
def verify_decision(
    *, decision: str, candidate: str | None, baseline: str | None, canary: str | None, home: Path | None
) -> int:
    """Make DECISION again from the records that it rests on, and compare byte by byte.

    DECISION is a decision.json, a folder with one, or a reference to an artifact of the home. Reports that the
    decision knows by their artifact are found in the home; others must be given. Exit code 1 where a byte differs.
    """
    from posttrain.promotion.gate import remake

    written, record = _decision(decision, home)
    given = {"candidate": candidate, "baseline": baseline, "canary": canary}
    reports = {name: _evidence(name, record, reference, home) for name, reference in given.items()}
    first = reports["candidate"]
    assert first is not None, "a decision always has a candidate"
    made = remake(record, first, baseline=reports["baseline"], canary=reports["canary"])
    if made.to_bytes() == written.rstrip(b"\n"):
        click.echo(f"{record.outcome}: the same decision to the byte ({record.digest})")
        return 0
    click.echo(f"{record.outcome} was written, {made.outcome} is what the records give:")
    for line in _differences(record.to_json(), made.to_json()):
        click.echo(f"  {line}")
    return 1


def _report(reference: str, home: Path | None) -> Report:
    """A report by folder or by reference."""
    from posttrain.artifacts.home import resolve
    from posttrain.promotion.gate_stage import read_report

    folder = Path(reference)
    if folder.is_dir():
        return read_report(folder)
    opened = home_of(home)
    artifact = resolve(opened, reference)
    return read_report(opened.store.view(artifact), artifact.digest)


def _decision(reference: str, home: Path | None) -> tuple[bytes, Decision]:
    from posttrain.artifacts.home import resolve
    from posttrain.promotion.gate_stage import DECISION_FILE
    from posttrain.promotion.records import Decision

    path = Path(reference)
    if path.is_dir():
        path /= DECISION_FILE
    if path.is_file():
        written = path.read_bytes()
    else:
        opened = home_of(home)
        written = opened.store.read_bytes(resolve(opened, reference), DECISION_FILE)
    return written, Decision.from_json(written)


def _evidence(name: str, record: Decision, reference: str | None, home: Path | None) -> Report | None:
    """The report that the decision rests on. Raises UsageError where it is not there or is another."""
    from posttrain.core.errors import UsageError

    evidence = getattr(record, name)
    if evidence is None:
        return None
    if reference is None and evidence.artifact is None:
        raise UsageError(
            f"the decision does not say where the {name}'s report is", hint=f"give its folder with --{name}"
        )
    report = _report(reference or evidence.artifact, home)
    if report.outcomes.header.digest != evidence.header:
        raise UsageError(
            f"the {name}'s report is not the one that was judged: its header is {report.outcomes.header.digest}, "
            f"the decision names {evidence.header}"
        )
    # The same report may be kept as a folder here and as an artifact there; the decision knows it by its content.
    return type(report)(report.outcomes, evidence.artifact)


def _differences(written: Any, made: Any, path: str = "") -> list[str]:
    if isinstance(written, dict) and isinstance(made, dict):
        keys = sorted(written.keys() | made.keys())
        return [
            line
            for key in keys
            for line in _differences(written.get(key), made.get(key), f"{path}.{key}".lstrip("."))
        ]
    if isinstance(written, list) and isinstance(made, list) and len(written) == len(made):
        pairs = enumerate(zip(written, made, strict=True))
        return [line for index, (a, b) in pairs for line in _differences(a, b, f"{path}[{index}]")]
    return [] if written == made else [f"{path}: {written!r} was written, {made!r} is right"]
