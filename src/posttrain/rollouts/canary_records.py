"""Stage ``canary_records``: records of production traffic as a report, for the canary rules of a contract.

Here: reading a file of JSON lines. Not here: the traffic log (``serving``), rules on it (``promotion``). One line is
one request that was answered by the candidate: ``id``, and any of ``slice``, ``success``, and the columns below; what a
record does not say is null. Nothing is graded again, and nothing is measured here: production measured it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult
from posttrain.core.errors import DataError
from posttrain.core.suggest import did_you_mean

if TYPE_CHECKING:
    from posttrain.evaluation.outcomes import Column, OutcomeRow

_TRAFFIC = "traffic"
_OWN_KEYS = ("id", "slice", "success", "error")


class ArmConfig(BaseModel):
    """One arm of the experiment that the records are from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    weight: int = Field(gt=0)
    """Intended share, relative to the other arms."""
    units: int = Field(ge=0)
    """Units that the arm got."""


class CanaryRecordsConfig(StageConfig):
    """Config of the ``canary_records`` stage."""

    path: Path
    """JSON lines, one request each."""
    model: str = Field(min_length=1)
    """Who answered: the digest of a model or the name of a release."""
    arms: tuple[ArmConfig, ...] = ()
    """How traffic was split, for the check that it was split as meant."""

    def external_files(self) -> Mapping[str, Path]:
        """See :class:`StageConfig`."""
        return {"path": self.path}


def canary_columns() -> tuple[Column, ...]:
    """Every column that a record may have."""
    from posttrain.evaluation.outcomes import Column

    return (
        Column(
            name="at_ms",
            type="int64",
            meaning="When the request came, milliseconds of a clock that goes forward.",
        ),
        Column(
            name="latency_ms",
            type="float64",
            meaning="Time to the whole answer, tools included, milliseconds.",
        ),
        Column(name="cost_usd", type="float64", meaning="Price of the request, US dollars."),
        Column(name="tokens", type="int64", meaning="Tokens of prompt and reply."),
        Column(name="abandon", type="bool", meaning="Whether the user left the conversation unfinished."),
        Column(
            name="safety_incidents",
            type="int64",
            meaning="Safety incidents that were reported of the request.",
        ),
    )


def run_canary_records(
    config: CanaryRecordsConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> StageResult:
    """Import. Input: ``suite``, whose identity the report carries. Output: ``report``."""
    from posttrain.environments.suites.files import read_suite
    from posttrain.evaluation.outcomes import Arm, Evaluated, make_outcomes, write_outcomes

    suite = read_suite(context.store.view(inputs["suite"]))
    rows = list(read_records(config.path))
    used = {name for row in rows for name in row.metrics}
    evaluated = Evaluated(
        suite=suite.identity.root,
        model=config.model,
        lane="canary",
        columns=tuple(column for column in canary_columns() if column.name in used),
        arms=tuple(Arm(name=arm.name, weight=arm.weight, units=arm.units) for arm in config.arms),
    )
    outcomes = make_outcomes(evaluated, rows)
    with context.writer("report", "report", meta={"suite": suite.identity.root, "rows": len(rows)}) as writer:
        write_outcomes(writer.directory, outcomes)
        artifact = writer.commit()
    return StageResult({"report": artifact}, {"rows": len(rows)})


def read_records(path: Path) -> Iterator[OutcomeRow]:
    """One row a line. Raises DataError that names the line."""
    from posttrain.evaluation.outcomes import OutcomeRow

    known = {column.name for column in canary_columns()}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record: dict[str, Any] = json.loads(line)
            name = str(record["id"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path.name}, line {number}: not a record with an `id`: {error!r}") from error
        odd = sorted(record.keys() - known - set(_OWN_KEYS))
        if odd:
            hint = did_you_mean(odd[0], {*known, *_OWN_KEYS})
            raise DataError(f"{path.name}, line {number}: unknown key {odd[0]!r}", hint=hint)
        metrics = {key: record[key] for key in record if key in known and record[key] is not None}
        yield OutcomeRow(
            name, str(record.get("slice", _TRAFFIC)), 0, record.get("success"), record.get("error"), metrics
        )
