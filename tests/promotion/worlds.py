"""Records for gates: reports with stated counts, case by case, and the specification's example.

Every case is made from counts, not drawn: the same numbers give the same records on any machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.evaluation.outcomes import (
    Arm,
    Column,
    ColumnType,
    Evaluated,
    OutcomeRow,
    Outcomes,
    make_outcomes,
)
from posttrain.promotion.gate import Report, gate
from posttrain.promotion.grammar import parse_contract
from posttrain.promotion.records import Check, Decision

HERE = Path(__file__).parent
RULES = (HERE / "promotion-rules.txt").read_text()
"""The specification's rules, to the byte."""
DEV_RULES = RULES.partition("# Keep all")[0]
"""Its development section."""
SUITE = "sha256:" + "5" * 64
OTHER_SUITE = "sha256:" + "6" * 64

TAG = "format_pass(tag='<answer>')"
VERSION = "api_version_match('3.2.1')"
SCHEMA = "tool_call_correctness.schema"
COLUMNS: Mapping[str, ColumnType] = {
    "rule_violation": "bool",
    "math_correct": "bool",
    TAG: "bool",
    SCHEMA: "bool",
    VERSION: "bool",
    "steps_to_solve": "int64",
    "latency_ms": "float64",
    "cost_usd": "float64",
    "tokens": "int64",
    "abandon": "bool",
    "safety_incidents": "int64",
    "at_ms": "int64",
}


def evaluated(**changes: Any) -> Evaluated:
    """A header over every column that the specification's rules read."""
    columns = tuple(Column(name=name, type=kind, meaning=name) for name, kind in COLUMNS.items())
    return Evaluated(
        **{"suite": SUITE, "model": "candidate", "lane": "live-frozen", "columns": columns, **changes}
    )


def flags(count: int, total: int) -> list[bool]:
    """``count`` true values among ``total``, the true ones first."""
    return [index < count for index in range(total)]


def rows(name: str, success: Sequence[bool | None], **metrics: Sequence[Any] | Any) -> list[OutcomeRow]:
    """Rows of one slice, one sample a case; a metric is a value a case or one for all."""
    spread = {
        column.replace("TAG", TAG).replace("VERSION", VERSION).replace("SCHEMA", SCHEMA): values
        if isinstance(values, list)
        else [values] * len(success)
        for column, values in metrics.items()
    }
    return [
        OutcomeRow(
            f"{name}/{index:04d}",
            name,
            0,
            passed,
            "not scored" if passed is None else None,
            {column: values[index] for column, values in spread.items()},
        )
        for index, passed in enumerate(success)
    ]


def report(*parts: Iterable[OutcomeRow], **changes: Any) -> Outcomes:
    """A report of these rows."""
    return make_outcomes(evaluated(**changes), [row for part in parts for row in part])


def plain(success: Sequence[bool | None], name: str = "tools", **changes: Any) -> Outcomes:
    """A report of one slice with nothing but successes."""
    return report(rows(name, success), **changes)


def shifted(gained: int, lost: int, kept: int, total: int) -> tuple[list[bool], list[bool]]:
    """Successes of baseline and candidate over ``total`` cases: so many gained, lost and kept right."""
    before = [True] * lost + [False] * gained + [True] * kept
    after = [False] * lost + [True] * gained + [True] * kept
    rest = [False] * (total - gained - lost - kept)
    return before + rest, after + rest


# -- the specification's example ---------------------------------------------------------------------

EXAMPLE = {  # slice: cases, successes of the baseline and the candidate, cases gained and lost between them
    "headache_redflags": (400, 124, 336, 220, 8),  # 0.31 → 0.84
    "math_basic": (1000, 970, 993, 28, 5),  # 0.97 → 0.993
    "division_hard": (200, 82, 104, 52, 30),  # 0.41 → 0.52, one-sided exact McNemar p = 0.01
    "debug_search_api": (1000, 710, 880, 200, 30),  # 0.71 → 0.88
    "everything_else": (5400, 4194, 4327, 333, 200),  # brings the whole to 0.76 → 0.83
}
"""The rates of the results table, in cases.

The table gives no sizes. With only its four slices no sizes or weights give 0.76 → 0.83, a lower end above 0.82 and
p = 0.01 for division_hard at once; with a fifth slice, the rest of the suite, these do.
"""


def example(which: str, *, violations: int = 24) -> Outcomes:
    """``baseline`` or ``candidate`` of the results table; ``violations`` of 400: 24 is the table's 0.06."""
    new = which == "candidate"
    parts = []
    for name, (total, before, after, gained, lost) in EXAMPLE.items():
        assert after - before == gained - lost
        pair = shifted(gained, lost, before - lost, total)
        metrics: dict[str, Any] = {"latency_ms": _latencies(total, new), "tokens": 500}
        metrics["cost_usd"] = 0.0095 if new else 0.010  # 0.019 and 0.020 a thousand tokens
        if name == "headache_redflags":
            metrics["rule_violation"] = flags(violations if new else 248, total)
        if name == "math_basic":
            metrics["math_correct"] = flags(995 if new else 980, total)
            metrics["TAG"] = flags(997 if new else 985, total)
        if name == "debug_search_api":
            metrics["SCHEMA"] = flags(999 if new else 990, total)
            metrics["VERSION"] = flags(990 if new else 900, total)
            metrics["steps_to_solve"] = [3 + index % 4 for index in range(total)]
        parts.append(rows(name, pair[1] if new else pair[0], **metrics))
    return report(*parts, model=which)


def _latencies(total: int, new: bool) -> list[float]:
    """Latencies whose 95th percentile is 880 ms, or 910 of the baseline."""
    slow = 880.0 if new else 910.0
    return [
        1200.0 if index >= total * 0.97 else slow if index >= total * 0.92 else 300.0 + index % 400
        for index in range(total)
    ]


def traffic(
    requests: int = 5200,
    *,
    abandoned: Sequence[bool] | None = None,
    incidents: int = 0,
    hours: float = 24.0,
    units: tuple[int, int] = (5200, 5180),
    slow_ms: float = 940.0,
    cost_usd: float = 0.0105,
) -> Outcomes:
    """Canary records, evenly over the window; by default within every limit of the specification."""
    if abandoned is None:
        abandoned = [index % 25 == 7 for index in range(requests)]  # 4 %
    step = int(hours * 3_600_000 / max(1, requests - 1)) + 1
    made = [
        OutcomeRow(
            f"r{index:06d}",
            "traffic",
            0,
            None,
            None,
            {
                "abandon": abandoned[index],
                "safety_incidents": int(index < incidents),
                "latency_ms": slow_ms if index % 14 == 3 else 400.0,
                "cost_usd": cost_usd,
                "tokens": 500,
                "at_ms": index * step,
            },
        )
        for index in range(requests)
    ]
    arms = (Arm(name="candidate", weight=1, units=units[0]), Arm(name="production", weight=1, units=units[1]))
    return report(made, lane="canary", arms=arms)


def decide(
    text: str, candidate: Outcomes, baseline: Outcomes | None = None, canary: Outcomes | None = None
) -> Decision:
    """The decision of a contract's text."""
    return gate(
        parse_contract(text),
        Report(candidate),
        baseline=Report(baseline) if baseline else None,
        canary=Report(canary) if canary else None,
    )


def check(text: str, candidate: Outcomes, baseline: Outcomes | None = None, **more: Any) -> Check:
    """The first check of a contract's last rule."""
    return decide(text, candidate, baseline, **more).rules[-1].checks[0]
