"""A promotion gate over 100,000 records, beside the bootstraps that others decide by; and reading the report back.

Here: a contract of 27 rules over 20 slices (rates with exact bounds, paired differences, non-inferiority, percentiles,
cost) against one single interval of scipy's percentile bootstrap, and of MLflow's BCa where it is installed: what they
call to compare two runs. Reading: our report beside the same rows as JSON lines, which evaluation logs mostly are.

MLflow's BCa leaves one out n times, so its time grows with n squared: it gets a tenth of the records. Not here: drawing
the page, whose size is that of the flipped cases.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import Outcome, Pairs, Size, Values, measure, pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from posttrain.promotion.gate import Report
    from posttrain.promotion.rules import Contract

_ROWS = {"smallest": 4_000, "default": 100_000}
_RESAMPLES = {"smallest": 50, "default": 10_000}
_SLICES = 20
_SUITE = "sha256:" + "0" * 64


def run(size: Size, rounds: int) -> Outcome:
    """One gate, one reading and one interval of each peer a round."""
    rows, faults = _ROWS[size], list[str]()
    contract, candidate, baseline = _contract(), _report(rows, 1), _report(rows, 2)
    bca = _mlflow()
    with tempfile.TemporaryDirectory(prefix="posttrain-bench-") as name:
        folder = Path(name)
        _write(folder, candidate)
        _gate(contract, candidate, baseline, faults)  # every import done
        pairs = pair(
            rounds,
            lambda _: _ours(folder, contract, candidate, baseline=baseline, faults=faults),
            lambda _: _theirs(folder, size, candidate, baseline=baseline, bca=bca, faults=faults),
        )
    return Outcome(
        rows=_rows(pairs, size, with_bca=bca is not None),
        notes=(
            f"{rows} records a side, {_SLICES} slices, {len(contract.rules)} rules; the peers make one interval of one "
            f"mean, with {_RESAMPLES[size]} resamples (MLflow: 10,000, of {rows // 10} records)",
            "the promise is a gate in less than 50 ms and a report read in less than a second at 100,000 records",
            *(() if bca else ("MLflow 3.18 or later is not installed: no BCa row (pip install mlflow)",)),
        ),
        faults=faults,
    )


def _rows(pairs: Pairs, size: Size, *, with_bca: bool) -> tuple[Any, ...]:
    percentile = f"scipy bootstrap, {_RESAMPLES[size]} resamples"
    rows = [
        pairs.row(
            "all rules, wall", "gate_wall", percentile, their_name="scipy_wall", unit="ms", scale=1000.0
        ),
        pairs.row(
            "all rules, processor", "gate_cpu", percentile, their_name="scipy_cpu", unit="ms", scale=1000.0
        ),
        pairs.row("report read, wall", "read_wall", "JSON lines", unit="ms", scale=1000.0),
    ]
    if with_bca:
        peer = "MLflow BCa, a tenth of the records"
        rows.insert(
            2, pairs.row("all rules, wall", "gate_wall", peer, their_name="bca_wall", unit="ms", scale=1000.0)
        )
    return tuple(rows)


def _contract() -> Contract:
    from posttrain.promotion.grammar import parse_contract

    rules = ["aggregate.success@1.lower_ci >= 0.8", f"no_regressions_on: [{', '.join(_names())}]"]
    rules += [f"tool_call_correctness.schema({name}).lower_ci >= 0.9" for name in _names()]
    rules += [
        "delta.success@1(s00).point >= 0.0",
        "delta.success@1(s00).p_value < 0.99",
        "latency_p95_ms.upper_ci <= 9000",
        "steps_to_solve_median.point <= 5",
        "cost_per_1k_tokens_usd.upper_ci <= 0.05",
    ]
    return parse_contract("margin: 0.05\n" + "\n".join(rules))


def _names() -> list[str]:
    return [f"s{number:02d}" for number in range(_SLICES)]


def _report(rows: int, seed: int) -> Report:
    """Records with a success rate of about 0.82, latencies, steps and costs, from a seed."""
    from posttrain.evaluation.outcomes import Column, Evaluated, OutcomeRow, make_outcomes
    from posttrain.promotion.gate import Report

    right = np.random.default_rng(0).random(rows) < 0.85
    generator = np.random.default_rng(seed)
    # Each model differs from the same course of successes in one case of twenty, so two differ in one of ten.
    success = (right ^ (generator.random(rows) < 0.05)).tolist()
    schema = (generator.random(rows) < 0.99).tolist()
    latency = np.round(generator.lognormal(6, 0.5, rows), 1).tolist()
    tokens = generator.integers(50, 800, rows).tolist()
    steps = generator.integers(1, 8, rows).tolist()
    columns = (
        Column(name="tool_call_correctness.schema", type="bool", meaning="valid calls"),
        Column(name="latency_ms", type="float64", meaning="milliseconds"),
        Column(name="tokens", type="int64", meaning="tokens"),
        Column(name="cost_usd", type="float64", meaning="dollars"),
        Column(name="steps_to_solve", type="int64", meaning="rounds of calls"),
    )
    made = (
        OutcomeRow(
            f"case-{index:06d}",
            _names()[index % _SLICES],
            0,
            success[index],
            None,
            {
                "tool_call_correctness.schema": schema[index],
                "latency_ms": latency[index],
                "tokens": tokens[index],
                "cost_usd": round(tokens[index] * 2e-5, 9),
                "steps_to_solve": steps[index],
            },
        )
        for index in range(rows)
    )
    evaluated = Evaluated(suite=_SUITE, model=f"model-{seed}", lane="live-frozen", columns=columns)
    return Report(make_outcomes(evaluated, made))


def _write(folder: Path, report: Report) -> None:
    from posttrain.evaluation.outcomes import write_outcomes

    write_outcomes(folder, report.outcomes)
    outcomes, lines = report.outcomes, list[str]()
    columns = {name: series.values.tolist() for name, series in outcomes.metrics.items()}
    for row, success in enumerate(outcomes.success.values.tolist()):
        record = {"case_id": outcomes.case_ids[outcomes.case[row]], "success": success}
        lines.append(json.dumps(record | {name: values[row] for name, values in columns.items()}))
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")


def _ours(
    folder: Path, contract: Contract, candidate: Report, *, baseline: Report, faults: list[str]
) -> Values:
    from posttrain.evaluation.outcomes import read_outcomes

    gated = measure(lambda: _gate(contract, candidate, baseline, faults))
    read = measure(lambda: read_outcomes(folder))
    return {
        **{f"gate_{kind}": seconds for kind, seconds in gated.items()},
        **{f"read_{kind}": seconds for kind, seconds in read.items()},
    }


def _gate(contract: Contract, candidate: Report, baseline: Report, faults: list[str]) -> None:
    from posttrain.promotion.gate import gate

    decision = gate(contract, candidate, baseline=baseline)
    broken = [result.text for result in decision.rules if result.verdict == "ERROR"]
    faults += [f"{text} could not be judged" for text in broken if not faults]


def _theirs(
    folder: Path,
    size: Size,
    candidate: Report,
    *,
    baseline: Report,
    bca: Callable[[Any, float], tuple[float, float]] | None,
    faults: list[str],
) -> Values:
    from scipy import stats

    after, before = candidate.outcomes.success.values, baseline.outcomes.success.values
    deltas = after.astype(float) - before.astype(float)
    found: list[Any] = []

    def percentile() -> None:
        found.append(
            stats.bootstrap(
                (deltas,),
                np.mean,
                method="percentile",
                n_resamples=_RESAMPLES[size],
                batch=10,
                rng=np.random.default_rng(0),
            ).confidence_interval
        )

    values = {f"scipy_{kind}": seconds for kind, seconds in measure(percentile).items()}
    _compare(after, before, found[0], faults)
    if bca is not None:
        few = deltas[: len(deltas) // 10]
        values |= {f"bca_{kind}": seconds for kind, seconds in measure(lambda: bca(few, 0.95)).items()}
    lines = folder / "rows.jsonl"
    read = measure(lambda: [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()])
    return {**values, **{f"read_{kind}": seconds for kind, seconds in read.items()}}


def _compare(after: Any, before: Any, theirs: Any, faults: list[str]) -> None:
    """Far from 0 and 1 and with many cases, Tango's interval and a bootstrap of the mean say the same."""
    from posttrain.statistics.intervals import tango_interval

    gained, lost = int(np.count_nonzero(after & ~before)), int(np.count_nonzero(~after & before))
    ours = tango_interval(gained, lost, len(after))
    width = ours.high - ours.low
    if max(abs(ours.low - theirs.low), abs(ours.high - theirs.high)) > 0.3 * width:
        faults.append(f"the intervals differ: ours {ours.low:.4f} to {ours.high:.4f}, theirs {theirs}")


def _mlflow() -> Callable[[Any, float], tuple[float, float]] | None:
    """MLflow's own interval for the difference of two runs, where a version that has it is installed."""
    import importlib.util

    if importlib.util.find_spec("mlflow") is None:
        return None
    try:
        from mlflow.genai.evaluation.comparison.significance_tests import _bootstrap_mean_ci
    except ImportError:
        return None
    interval: Callable[[Any, float], tuple[float, float]] = _bootstrap_mean_ci
    return interval
