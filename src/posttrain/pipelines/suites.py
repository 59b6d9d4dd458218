"""Suites and evaluations by what a person types: finding, keeping, running, comparing, proving.

Here: what the command line and the console call. Not here: what a suite is (``environments``), playing one
(``evaluation``). An evaluation is a run of one stage, so it is reused where it was done before and taken up where it
was killed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.artifacts.home import Home, open_home, resolve
from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageContext, StageSpec, StopRequest
from posttrain.core.atomic import write_atomic
from posttrain.core.canonical import canonical_json
from posttrain.core.errors import DataError, UnknownReferenceError
from posttrain.core.events import EventSink, ignore_events
from posttrain.core.settings import Settings
from posttrain.environments.suites.files import SUITE_FILE, check_files, parse_suite, read_files
from posttrain.evaluation.suites.build import STANDARD, SuiteConfig, build_files, keep_files
from posttrain.pipelines.overrides import apply_overrides
from posttrain.pipelines.plan import existing_home, lookup_in
from posttrain.pipelines.registry import STAGES
from posttrain.pipelines.resolve import ResolvedRecipe, resolve_recipe
from posttrain.pipelines.runner import run_recipe
from posttrain.pipelines.single import stage_recipe

if TYPE_CHECKING:
    from posttrain.environments.suites.suite import Suite
    from posttrain.evaluation.suites.proof import Proof
    from posttrain.evaluation.suites.report import SuiteReport
    from posttrain.evaluation.suites.summary import SuiteSummary

PROOF_FILE = "proof.json"
_STAGE = "evaluate_suite"
_POLICY, _REPLAY = "policy:", "replay:"


def find_suite(settings: Settings, reference: str) -> dict[str, bytes]:
    """The files of a suite: ``standard``, a folder that holds one, or an artifact. Not checked yet.

    Raises UnknownReferenceError or DataError.
    """
    if reference == STANDARD:
        return build_files(SuiteConfig())
    folder = Path(reference)
    if folder.is_dir():
        return read_files(folder)
    home = existing_home(settings)
    if home is None:
        raise UnknownReferenceError(
            f"{reference!r} is no folder, and there is no home at {settings.home} yet",
            hint=f"write `{STANDARD}`, a folder with {SUITE_FILE}, or the digest of a suite in another --home",
        )
    artifact = resolve(home, reference)
    _check_kind(artifact, "suite", reference)
    return read_files(home.store.view(artifact))


def keep_suite(home: Home, files: Mapping[str, bytes]) -> Artifact:
    """Keep a suite as an artifact, every byte checked; the same suite is the same artifact."""
    with home.store.writer("suite") as writer:
        artifact = keep_files(writer, files)
    home.registry.record(artifact)
    return artifact


def verify_suite(files: Mapping[str, bytes]) -> Suite:
    """Check every byte, and derive again what is derived: canonical form, search indexes. Raises DataError.

    Whether it was built with the code that is installed is told by ``evaluation.frozen_code.check_code``.
    """
    from posttrain.environments.suites.files import parse_contents, suite_files

    suite = parse_suite(files)
    again = suite_files(parse_contents(files))
    for path in sorted(again.keys() | files.keys()):
        if again.get(path) != files.get(path):
            raise DataError(
                f"{path} of the suite is not what `posttrain suite build` makes of it",
                hint="its digests are right, so it was made by something else; build it again",
            )
    return suite


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """What a person asks for."""

    model: str
    """``policy:NAME``, ``replay:REPORT``, a server's URL, a Hugging Face folder, or an artifact."""
    suite: str = STANDARD
    samples: int | None = None
    served_model: str | None = None
    """The model's name on a server."""
    api_key_env: str | None = None
    overrides: Sequence[str] = ()
    """``KEY=VALUE`` of the stage's configuration."""


@dataclass(frozen=True, slots=True)
class FinishedEvaluation:
    """A report and where it came from."""

    artifact: Artifact
    report: SuiteReport
    run_id: str
    key: str
    """Of the stage."""
    resolved: ResolvedRecipe
    inputs: Mapping[str, Artifact]


def evaluate_model(
    settings: Settings,
    request: EvaluationRequest,
    *,
    baseline: SuiteReport | None = None,
    events: EventSink = ignore_events,
    stop: StopRequest | None = None,
    stages: Mapping[str, StageSpec] = STAGES,
) -> FinishedEvaluation:
    """Evaluate, or find that it was done before.

    Raises DataError, before anything runs, where the baseline was measured on another suite.
    """
    from posttrain.evaluation.suites.report import check_suite, read_report

    files = find_suite(settings, request.suite)
    if baseline is not None:
        check_suite(check_files(files).root, baseline.outcomes)
    home = open_home(settings)
    inputs = {"suite": keep_suite(home, files)}
    config: dict[str, Any] = {} if request.samples is None else {"samples": request.samples}
    config["model"] = _model(home, request, inputs)
    references = {name: artifact.digest for name, artifact in inputs.items()}
    source = stage_recipe(stages[_STAGE], references, config)
    source = apply_overrides(
        source, [f"{_STAGE.replace('_', '-')}.{text}" for text in request.overrides], stages
    )
    resolved = resolve_recipe(source, stages=stages, lookup=lookup_in(settings))
    outcome = run_recipe(home, resolved, events=events, stop=stop)
    (artifact,) = outcome.outputs.values()
    report = read_report(home.store.view(artifact))
    return FinishedEvaluation(artifact, report, outcome.run_id, outcome.stages[0].key, resolved, inputs)


def read_baseline(settings: Settings, reference: str) -> SuiteReport:
    """The report that ``reference`` names: an artifact, or a folder. Raises DataError, UnknownReferenceError."""
    from posttrain.evaluation.suites.report import read_report

    folder = Path(reference)
    if folder.is_dir():
        return read_report(folder)
    artifact = lookup_in(settings)(reference)
    _check_kind(artifact, "report", reference)
    home = existing_home(settings)
    assert home is not None  # the artifact came from it
    return read_report(home.store.view(artifact))


def write_report(
    settings: Settings, done: FinishedEvaluation, folder: Path, *, summary: SuiteSummary, proof: Proof | None
) -> None:
    """Write a report's files into ``folder``, with the summary and the proof beside them."""
    store = open_home(settings).store
    for entry in done.artifact.files:
        write_atomic(folder / entry.path, store.read_bytes(done.artifact, entry.path))
    write_atomic(folder / "summary.json", canonical_json(summary.model_dump(mode="json")) + b"\n")
    if proof is not None:
        write_atomic(folder / PROOF_FILE, proof.to_bytes() + b"\n")


def prove_evaluation(
    settings: Settings,
    done: FinishedEvaluation,
    *,
    events: EventSink = ignore_events,
    stop: StopRequest | None = None,
) -> tuple[Proof, Artifact]:
    """Play again, otherwise, and keep the proof, whatever it says, as an artifact made from the report."""
    from posttrain.evaluation.suites.proof import prove

    home = open_home(settings)
    stage = done.resolved.stages[0]
    with tempfile.TemporaryDirectory(dir=home.store.temporary) as folder:
        context = StageContext(
            home.store,
            stage.name,
            _STAGE,
            key=done.key,
            workdir=Path(folder),
            threads=settings.threads,
            events=events,
            stop=stop or StopRequest(),
        )
        proof = prove(done.report, stage.config, done.inputs, context)  # type: ignore[arg-type]
    meta = {"suite": proof.suite, "equal": proof.equal}
    with home.store.writer("proof", meta=meta, inputs={"report": done.artifact.digest}) as writer:
        writer.add_bytes(PROOF_FILE, proof.to_bytes() + b"\n")
        artifact = writer.commit()
    home.registry.record(artifact)
    return proof, artifact


def _model(home: Home, request: EvaluationRequest, inputs: dict[str, Artifact]) -> dict[str, Any]:
    """The stage's ``model`` for what a person typed; artifacts that it needs are added to ``inputs``."""
    text = request.model
    if text.startswith(_POLICY):
        from posttrain.evaluation.suites.scripted import read_policy

        return {"kind": "policy", "policy": read_policy(text).model_dump(mode="json")}
    if text.startswith(("http://", "https://")):
        if request.served_model is None:
            raise DataError(f"which model of {text}?", hint="add --served-model NAME")
        endpoint = {"base_url": text, "model": request.served_model, "api_key_env": request.api_key_env}
        return {"kind": "endpoint", "endpoint": endpoint}
    if text.startswith(_REPLAY):
        inputs["answers"] = resolve(home, text.removeprefix(_REPLAY))
        _check_kind(inputs["answers"], "report", text)
        return {"kind": "recorded"}
    if Path(text).is_dir():
        return {"kind": "folder", "path": str(Path(text).absolute())}
    inputs["model"] = resolve(home, text)
    _check_kind(inputs["model"], "model", text)
    return {"kind": "store"}


def _check_kind(artifact: Artifact, kind: str, reference: str) -> None:
    if artifact.kind != kind:
        raise UnknownReferenceError(
            f"{reference!r} is a {artifact.kind}, not a {kind}",
            hint="`posttrain show` says what an artifact is",
        )
