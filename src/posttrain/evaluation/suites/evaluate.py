"""Stage ``evaluate_suite``: a model on a frozen suite, every case played and graded, as a report artifact.

Here: config, and putting model, suite, runner and report together. Not here: any of them (``suite_models``,
``suite_runner``, ``suite_report``). A stage that was killed goes on from its journal, and ends with the same frozen
half.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult
from posttrain.core.errors import ConfigError
from posttrain.evaluation.suites.models import (
    FolderModel,
    StoreModel,
    SuiteModel,
    may_vary,
    usual_concurrency,
)

if TYPE_CHECKING:
    from pathlib import Path

    from posttrain.environments.suites.suite import Suite
    from posttrain.evaluation.suites.report import SuiteReport
    from posttrain.evaluation.suites.runner import PlayPlan

_JOURNAL_FILE = "journal.jsonl"
_MAX_CODE = 8


class PricesConfig(BaseModel):
    """What a thousand tokens cost, US dollars; with it the report has ``cost_usd``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_usd_per_1k: float = Field(ge=0)
    completion_usd_per_1k: float = Field(ge=0)


class EvaluateSuiteConfig(StageConfig):
    """Config of the ``evaluate_suite`` stage."""

    model: SuiteModel = StoreModel()
    samples: int | None = Field(None, ge=1)
    """Answers to each case; by default as many as the suite says."""
    concurrency: int | None = Field(None, ge=1, le=256)
    """Batches that are asked at once; by default what suits the model. It decides no result."""
    graders: int | None = Field(None, ge=1, le=64)
    """Grading processes; by default the usable cores."""
    timeout_seconds: float = Field(900.0, gt=0)
    """For all turns of one batch; what takes longer is a row with an error."""
    grader_timeout_seconds: float = Field(60.0, gt=0)
    """For one answer."""
    prices: PricesConfig | None = None
    latency: bool = True
    """Whether the report has latency. Without it a model's report is the same bytes whenever it is made; a rule about
    latency needs it."""
    attempt: int = 1
    """With another number, what is in the store is measured again."""

    def external_files(self) -> Mapping[str, Path]:
        """See :class:`StageConfig`."""
        return {"model.path": self.model.path} if isinstance(self.model, FolderModel) else {}


def run_evaluate_suite(
    config: EvaluateSuiteConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> StageResult:
    """Evaluate. Output: ``report``.

    Inputs: ``suite``; ``model`` or ``answers`` where the config asks for one; ``reward_model`` and ``judge_model``
    where a grader does.
    """
    from posttrain.environments.suites.files import read_suite
    from posttrain.evaluation.outcomes import write_outcomes
    from posttrain.evaluation.suites.report import REPORT_TEXT
    from posttrain.evaluation.suites.rows import LINES_FILE, dump_lines
    from posttrain.evaluation.suites.summary import render_summary, summarise

    suite = read_suite(context.store.view(inputs["suite"]))
    report = evaluate_suite(config, suite, inputs, context)
    summary = summarise(report)
    overall = summary.slices[-1]
    meta = {"suite": suite.identity.root, "cases": overall.cases, "rows": overall.rows}
    with context.writer("report", "report", meta=meta) as writer:
        write_outcomes(writer.directory, report.outcomes)
        writer.add_bytes(LINES_FILE, dump_lines(report.rows))
        writer.add_bytes(REPORT_TEXT, render_summary(summary).encode())
        artifact = writer.commit()
    if overall.unscored:
        text = f"{overall.unscored} of {overall.rows} rows could not be scored: {next(iter(summary.errors))}"
        context.emit("warning", text=text, hint=None)
    return StageResult({"report": artifact}, {line.name: line.success_at_1 for line in summary.slices})


def evaluate_suite(
    config: EvaluateSuiteConfig,
    suite: Suite,
    inputs: Mapping[str, Artifact],
    context: StageContext,
    *,
    changed_plan: Mapping[str, Any] | None = None,
) -> SuiteReport:
    """Play the suite and make its report; nothing is kept but the journal in the work folder.

    ``changed_plan`` replaces fields of the plan that may decide no result (``suite_proof``).
    """
    from posttrain.evaluation.suites.frozen_code import check_code
    from posttrain.evaluation.suites.grading import grader_columns
    from posttrain.evaluation.suites.journal import Journal
    from posttrain.evaluation.suites.players import grading_resources, judge_endpoints, open_model
    from posttrain.evaluation.suites.report import Subject, make_report, without_latency
    from posttrain.evaluation.suites.runner import Outside, play_suite

    check_code(suite)
    samples = config.samples or suite.settings.samples
    _check_sampling(config, suite, samples)

    def progress(done: int, total: int, rate: float | None) -> None:
        figures = {} if rate is None else {"accuracy": rate}
        context.emit("progress", step=done, total=total, **figures)

    resources = grading_resources(inputs, context)
    with open_model(config.model, suite, inputs, context) as model:
        plan = _plan(config, samples, changed_plan or {})
        key = f"{context.key}/{suite.identity.root}/{plan.samples}/{model.player.batch_size}"
        with Journal(context.workdir / _JOURNAL_FILE, key) as journal:
            if journal.batches:
                context.emit("stage_resumed", from_step=sum(map(len, journal.batches.values())))
            rows = play_suite(
                suite,
                model.player,
                plan,
                journal=journal,
                outside=Outside((*model.endpoints, *judge_endpoints(suite)), resources),
                stop=context.stop,
                progress=progress,
            )
        facts = {"batch_size": model.player.batch_size}
        subject = Subject(model.name, model.lane, samples, facts)
    if not config.latency:
        rows = [without_latency(row) for row in rows]
    columns = [column for spec in suite.slices for column in grader_columns(spec, resources)]
    return make_report(suite, subject, rows, columns)


def planned_threads(config: EvaluateSuiteConfig) -> tuple[int, int]:
    """How many batches are asked at once, and how many grading processes there are."""
    from posttrain.core.settings import usable_cores

    usual = usual_concurrency(config.model)
    asked = config.concurrency if config.concurrency and may_vary(config.model) else usual
    return asked, config.graders or min(_MAX_CODE, usable_cores())


def _plan(config: EvaluateSuiteConfig, samples: int, changed: Mapping[str, Any]) -> PlayPlan:
    from posttrain.evaluation.suites.runner import PlayPlan, Prices

    concurrency, graders = planned_threads(config)
    prices = config.prices and Prices(config.prices.prompt_usd_per_1k, config.prices.completion_usd_per_1k)
    fields: dict[str, Any] = {
        "samples": samples,
        "concurrency": concurrency,
        "graders": graders,
        "timeout_seconds": config.timeout_seconds,
        "grader_timeout_seconds": config.grader_timeout_seconds,
        "prices": prices,
        **changed,
    }
    return PlayPlan(**fields)


def _check_sampling(config: EvaluateSuiteConfig, suite: Suite, samples: int) -> None:
    greedy = suite.settings.decoding.temperature == 0
    if greedy and samples > 1 and config.model.kind in ("store", "folder", "endpoint"):
        raise ConfigError(
            f"{samples} samples a case of a suite whose decoding is greedy would all be the same",
            hint="build the suite with `--set decoding.temperature=0.7`, or take one sample",
        )
