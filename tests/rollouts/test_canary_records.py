"""Production traffic imported as a report: as recorded, each line checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts.stage import StageContext
from posttrain.artifacts.store import ArtifactStore
from posttrain.core.errors import DataError
from posttrain.evaluation.outcomes import read_outcomes
from posttrain.evaluation.suites.build import keep_files
from posttrain.rollouts.canary_records import CanaryRecordsConfig, read_records, run_canary_records
from tests.evaluation.suite_world import small_files


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_records_become_a_report_of_the_canary_lane(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "home")
    with store.writer("suite") as writer:
        suite = keep_files(writer, small_files(1))
    records = [
        {"id": f"r{n}", "at_ms": 1000 * n, "latency_ms": 100.5 + n, "abandon": n == 2, "safety_incidents": 0}
        for n in range(5)
    ]
    records[1]["latency_ms"] = None
    path = write(tmp_path / "traffic.jsonl", records)
    config = CanaryRecordsConfig.model_validate(
        {"path": path, "model": "release-7", "arms": [{"name": "canary", "weight": 1, "units": 5}]}
    )
    context = StageContext(store, "c", "canary_records", key="sha256:" + "0" * 64, workdir=tmp_path)
    report = run_canary_records(config, {"suite": suite}, context).outputs["report"]
    outcomes = read_outcomes(store.view(report))
    assert (outcomes.evaluated.lane, outcomes.evaluated.model, len(outcomes)) == ("canary", "release-7", 5)
    assert outcomes.evaluated.suite == suite.meta["identity"]["root"]
    assert list(outcomes.metrics) == ["at_ms", "latency_ms", "abandon", "safety_incidents"]
    assert outcomes.metrics["latency_ms"].present.tolist() == [True, False, True, True, True]
    assert outcomes.evaluated.arms[0].units == 5
    assert not outcomes.success.present.any()
    assert config.external_files() == {"path": path}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: not a record"),
        ("[]", "line 2: not a record"),
        ('{"latency_ms": 3}', "line 2: not a record"),
        ('{"id": "b", "latency": 3}', "line 2: unknown key 'latency'"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "traffic.jsonl"
    path.write_text('{"id": "a"}\n' + line + "\n")
    with pytest.raises(DataError, match=says):
        list(read_records(path))
