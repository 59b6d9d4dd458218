"""``posttrain evaluate``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posttrain.cli._options import home_option, json_option, print_json, settings_of, stages_of

if TYPE_CHECKING:
    from posttrain.core.events import EventSink
    from posttrain.evaluation.suites.proof import Proof
    from posttrain.evaluation.suites.summary import SuiteSummary
    from posttrain.pipelines.suites import FinishedEvaluation


@click.command(short_help="Evaluate a model on a frozen suite.")
@click.argument("model", metavar="MODEL")
@click.option(
    "--suite", default="standard", show_default=True, metavar="SUITE", help="A folder or an artifact."
)
@click.option("--baseline", metavar="REPORT", help="A report of the same suite: say which cases changed.")
@click.option(
    "--samples", type=click.IntRange(min=1), metavar="K", help="Answers a case.  [default: the suite's]"
)
@click.option("--served-model", metavar="NAME", help="The model's name, where MODEL is a server.")
@click.option("--api-key-env", metavar="VARIABLE", help="Environment variable with the server's key.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="A key of the stage evaluate-suite: model.batch_size=1, concurrency=4. May be given several times.",
)
@click.option("--prove", is_flag=True, help="Play it twice, in different ways, and compare every byte.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Also write the report's files there.",
)
@json_option
@home_option
@click.pass_context
def evaluate(context: click.Context, /, model: str, **options: Any) -> None:
    """Play every case of a frozen suite with MODEL, grade it, and keep the report.

    MODEL is an artifact, a Hugging Face folder, an OpenAI-compatible server (http://host/v1 with --served-model), a
    script that ships (policy:perfect), or the answers of an earlier report (replay:REPORT).

    What is in the store already is shown again; `--set attempt=2` measures anew. An evaluation that was stopped goes
    on where it was. With --prove the exit code is 1 where the two runs differ.
    """
    from posttrain.artifacts.stage import StopRequest
    from posttrain.cli._signals import stop_on_signals
    from posttrain.evaluation.suites.summary import summarise
    from posttrain.pipelines.suites import (
        EvaluationRequest,
        evaluate_model,
        prove_evaluation,
        read_baseline,
        write_report,
    )

    settings, as_json = settings_of(options["home"]), options["as_json"]
    names = ("suite", "samples", "served_model", "api_key_env", "overrides")
    request = EvaluationRequest(model, **{name: options[name] for name in names})
    baseline = read_baseline(settings, options["baseline"]) if options["baseline"] else None
    stop, proof = StopRequest(), None
    with stop_on_signals(stop):
        with _display(as_json) as events:
            done = evaluate_model(
                settings, request, baseline=baseline, events=events, stop=stop, stages=stages_of(context)
            )
        if options["prove"]:
            with _display(as_json) as events:
                proof, _ = prove_evaluation(settings, done, events=events, stop=stop)
    summary = summarise(done.report, baseline)
    if options["out"] is not None:
        write_report(settings, done, options["out"], summary=summary, proof=proof)
    _print(done, summary, proof, as_json=as_json)
    context.exit(1 if proof is not None and not proof.equal else 0)


@contextlib.contextmanager
def _display(as_json: bool) -> Iterator[EventSink]:
    """Progress on the terminal; nothing where one JSON document is to be all of the output."""
    from posttrain.cli._progress import choose_display
    from posttrain.core.events import ignore_events

    if as_json:
        yield ignore_events
        return
    with choose_display(as_json=False) as display:
        yield display


def _print(done: FinishedEvaluation, summary: SuiteSummary, proof: Proof | None, *, as_json: bool) -> None:
    from posttrain.evaluation.suites.proof import render_proof
    from posttrain.evaluation.suites.summary import render_summary

    if as_json:
        record = {"report": done.artifact.digest, "run": done.run_id, **summary.model_dump(mode="json")}
        print_json(record if proof is None else record | {"proof": proof.to_json()})
        return
    click.echo("\n" + render_summary(summary).rstrip())
    click.echo(f"report {done.artifact.digest}")
    if proof is not None:
        click.echo("\n" + render_proof(proof).rstrip())
