"""Stage ``report``: evaluations of several models side by side, as one page and one JSON record.

Here: reading evaluation artifacts, pairing each model with the first, rendering. Not here: what the page looks like
(``report``) or how anything is measured (``measures``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult
from posttrain.core.canonical import canonical_json
from posttrain.core.errors import ConfigError
from posttrain.evaluation.heldout.evaluate import CASES_FILE, REPORT_FILE

if TYPE_CHECKING:
    from posttrain.evaluation.heldout.records import WinRateReport
    from posttrain.evaluation.heldout.summary import Preferred

HTML_FILE = "report.html"
TEXT_FILE = "report.txt"
JSON_FILE = "report.json"
REWARD_MODEL_REPORT_FILE = "reward_model_report.json"
"""What ``training.reward_model`` calls its report; the rooms meet in the artifact only."""


class Column(BaseModel):
    """One model of the report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    evaluation: str
    """Name under the input ``evaluations``."""
    label: str
    """Heading of its column."""


class ReportConfig(StageConfig):
    """Config of the ``report`` stage."""

    title: str
    recipe: str
    """Name of the recipe, for the reader."""
    columns: tuple[Column, ...] = Field(min_length=1)
    """Models in the order of the table: the base first, the result last."""
    examples: int = Field(5, ge=0)
    """Held-out problems shown with every model's completion."""
    facts: Mapping[str, str] = Field(default_factory=dict)
    """Further lines for the reader."""
    reproduce: tuple[str, ...] = ()
    """Commands that make this report again."""


def run_report(config: ReportConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageResult:
    """Render. Inputs: ``evaluations.<name>`` (reports), optional ``training.<name>`` (metrics of training stages),
    ``reward_models.<name>`` (reports of reward models) and ``win_rates`` (a ``win_rate`` stage whose models have the
    names of the evaluations).

    Output: ``report`` with ``report.html`` (self-contained), ``report.txt`` and ``report.json``.
    """
    from posttrain.evaluation.heldout.measures import compare
    from posttrain.evaluation.heldout.records import EvaluationReport, load_case_rows
    from posttrain.evaluation.heldout.report import (
        ModelRow,
        ReportData,
        pick_examples,
        render_report,
        render_text,
    )

    models, cases = [], {}
    for column in config.columns:
        artifact = inputs.get(f"evaluations.{column.evaluation}")
        if artifact is None:
            raise ConfigError(
                f"the report has a column for evaluation {column.evaluation!r}, which is not among its inputs",
                hint="add it to the stage's `inputs.evaluations`, or remove the column",
            )
        models.append(
            ModelRow(
                column.label, EvaluationReport.from_json(context.store.read_bytes(artifact, REPORT_FILE))
            )
        )
        cases[column.label] = load_case_rows(context.store.read_bytes(artifact, CASES_FILE))
    labels = [column.label for column in config.columns]
    comparisons = [
        compare(cases[labels[0]], cases[label], before_label=labels[0], after_label=label)
        for label in labels[1:]
    ]
    training = {
        _title(config, name): read_metrics(context, artifact)
        for name, artifact in _under(config, inputs, "training")
    }
    reward_models = {
        _title(config, name): json.loads(context.store.read_bytes(artifact, REWARD_MODEL_REPORT_FILE))
        for name, artifact in _under(config, inputs, "reward_models")
    }
    data = ReportData(
        title=config.title,
        recipe=config.recipe,
        rows=models,
        comparison=comparisons[-1] if comparisons else None,
        more_comparisons=comparisons[:-1],
        preferred=_preferred(config, inputs, context),
        training=training,
        reward_models=reward_models,
        examples=pick_examples(cases, count=config.examples) if config.examples else (),
        facts={**config.facts, **_facts(models[-1].report.sampling, training)},
        digests={
            "held-out set": models[0].report.suite,
            **{f"model {row.label}": row.report.model for row in models},
        },
        reproduce=config.reproduce,
    )
    record = {
        "schema": 1,
        "kind": "report",
        "recipe": config.recipe,
        "models": [{"label": row.label, "evaluation": row.report.to_json()} for row in models],
        "comparisons": [comparison.to_json() for comparison in comparisons],
        "win_rates": None if data.preferred is None else _win_rates(inputs, context).to_json(),
    }
    text = render_text(data, examples=False)
    with context.writer("report", "report", meta={"title": config.title, "columns": labels}) as writer:
        writer.add_bytes(HTML_FILE, render_report(data).encode())
        writer.add_bytes(TEXT_FILE, text.encode())
        writer.add_bytes(JSON_FILE, canonical_json(json.loads(json.dumps(record))))
        artifact = writer.commit()
    return StageResult({"report": artifact}, {"text": text})


def _win_rates(inputs: Mapping[str, Artifact], context: StageContext) -> WinRateReport:
    from posttrain.evaluation.heldout.records import WinRateReport
    from posttrain.evaluation.heldout.win_rate import WIN_RATES_FILE

    return WinRateReport.from_json(context.store.read_bytes(inputs["win_rates"], WIN_RATES_FILE))


def _preferred(
    config: ReportConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> Preferred | None:
    from posttrain.evaluation.heldout.summary import Preferred

    if "win_rates" not in inputs:
        return None
    report = _win_rates(inputs, context)
    labels = {column.evaluation: column.label for column in config.columns}
    return Preferred(
        baseline=labels.get(report.baseline, report.baseline),
        judge=report.judge,
        prompts=report.prompts,
        rates={labels[rate.name]: rate for rate in report.rates if rate.name in labels},
    )


def read_metrics(context: StageContext, artifact: Artifact) -> list[dict[str, Any]]:
    """Rows of a training stage's metrics table, nulls left out."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(context.store.file(artifact, "metrics.parquet"))
    return [{k: v for k, v in row.items() if v is not None} for row in table.to_pylist()]


def _under(config: ReportConfig, inputs: Mapping[str, Artifact], group: str) -> list[tuple[str, Artifact]]:
    """The inputs of a group by name: in the order of the columns, then of the alphabet."""
    order = {column.evaluation: place for place, column in enumerate(config.columns)}
    named = {
        name.removeprefix(f"{group}."): artifact
        for name, artifact in inputs.items()
        if name.startswith(f"{group}.")
    }
    return sorted(named.items(), key=lambda item: (order.get(item[0], len(order)), item[0]))


def _title(config: ReportConfig, name: str) -> str:
    """The label of the column of that name, else the name in words."""
    labels = {column.evaluation: column.label for column in config.columns}
    return labels.get(name, name.replace("_", " "))


def _facts(
    sampling: Mapping[str, Any], training: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, str]:
    facts = {f"evaluation {name.replace('_', ' ')}": str(value) for name, value in sampling.items()}
    for name, rows in training.items():
        if rows:
            facts[f"optimizer steps, {name}"] = str(rows[-1]["step"])
    return facts
