"""Runs side by side: what differed in their recipes, what came out, and the paired differences.

Here: reading, pairing, the record. Not here: any layout (``cli.compare``), how measures are taken (``evaluation``).
*Covered*: runs whose models were evaluated on the same held-out set. *Not covered*: others; they are shown, unpaired,
and the record says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.artifacts.home import Home, resolve
from posttrain.artifacts.records import Artifact, RunRecord
from posttrain.core.errors import UnknownReferenceError, UsageError
from posttrain.core.suggest import did_you_mean
from posttrain.evaluation.heldout.evaluate import CASES_FILE, REPORT_FILE
from posttrain.pipelines.recipe import split_stage_output
from posttrain.pipelines.runs import find_run

_ABSENT = "–"


@dataclass(frozen=True, slots=True)
class _Evaluated:
    """One run's evaluation of one column of its report."""

    run: RunRecord
    label: str
    artifact: Artifact


def compare_runs(home: Home, references: Sequence[str], column: str | None = None) -> dict[str, Any]:
    """Two or more runs as one record: ``config``, ``measures``, ``comparisons`` (each run against the first).

    ``column`` is the label of a column of their reports; by default the last one of each. Raises UnknownReferenceError
    and UsageError.
    """
    from posttrain.evaluation.heldout.measures import compare
    from posttrain.evaluation.heldout.records import EvaluationReport, load_case_rows

    runs = [find_run(home, reference) for reference in references]
    if len({run.id for run in runs}) < 2:
        raise UsageError("name at least two different runs", hint="`posttrain runs` lists them")
    found = [_evaluation(home, run, column) for run in runs]
    reports = [EvaluationReport.from_json(home.store.read_bytes(e.artifact, REPORT_FILE)) for e in found]
    cases = [load_case_rows(home.store.read_bytes(e.artifact, CASES_FILE)) for e in found]
    comparisons = [
        compare(cases[0], cases[place], before_label=runs[0].id, after_label=runs[place].id).to_json()
        if reports[place].suite == reports[0].suite
        else None
        for place in range(1, len(runs))
    ]
    return {
        "runs": [
            {
                "id": e.run.id,
                "recipe": e.run.recipe,
                "seed": e.run.seed,
                "column": e.label,
                "model": report.model,
            }
            for e, report in zip(found, reports, strict=True)
        ],
        "config": config_differences([json.loads(run.recipe_json) for run in runs]),
        "measures": [[measure.model_dump(mode="json") for measure in report.measures] for report in reports],
        "comparisons": comparisons,
        "unpaired": [runs[place + 1].id for place, one in enumerate(comparisons) if one is None],
    }


def config_differences(documents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Keys in which resolved recipes differ, as ``{"key", "values": [one a recipe]}``; a dash where one is absent."""
    flat = [dict(_flatten(document)) for document in documents]
    keys = dict.fromkeys(key for one in flat for key in one)
    return [
        {"key": key, "values": [one.get(key, _ABSENT) for one in flat]}
        for key in keys
        if len({json.dumps(one.get(key, _ABSENT), sort_keys=True) for one in flat}) > 1
    ]


def _flatten(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "seed", document.get("seed", 0)
    for stage in document["stages"]:
        name = stage["name"]
        yield name, stage["uses"]
        yield from _leaves(f"{name}.inputs", stage.get("inputs", {}))
        yield from _leaves(name, stage.get("with", {}))


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(f"{prefix}.{key}", inner)
    elif not isinstance(value, Mapping):
        yield prefix, value


def _evaluation(home: Home, run: RunRecord, column: str | None) -> _Evaluated:
    """The evaluation behind a column of the run's last report."""
    document = json.loads(run.recipe_json)
    reports = [stage for stage in document["stages"] if stage["uses"] == "report"]
    if not reports:
        raise UsageError(
            f"run {run.id} has no report stage", hint="compare runs of recipes that end in a `report`"
        )
    columns = reports[-1]["with"]["columns"]
    labels = [entry["label"] for entry in columns]
    if column is not None and column not in labels:
        raise UnknownReferenceError(
            f"the report of run {run.id} has no column {column!r}", hint=did_you_mean(column, labels)
        )
    entry = columns[labels.index(column)] if column is not None else columns[-1]
    wire = reports[-1]["inputs"]["evaluations"][entry["evaluation"]]
    place = split_stage_output(wire)
    outputs = {stage.name: stage.outputs for stage in home.registry.run_stages(run.id)}
    digest = outputs.get(place[0], {}).get(place[1]) if place else wire
    if not digest:
        raise UsageError(
            f"run {run.id} has not evaluated {entry['label']!r} yet",
            hint="let it finish: posttrain run --resume",
        )
    return _Evaluated(run, entry["label"], resolve(home, digest))
