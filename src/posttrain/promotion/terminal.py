"""A decision as text: the table, each rule's arithmetic, the cases that flipped, what it all rests on.

Here: layout. Not here: any figure that is not in the record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from posttrain.core.canonical import short
from posttrain.promotion.gate import TICKS
from posttrain.promotion.judging import number
from posttrain.promotion.records import Check, Decision, Evidence, RuleResult

_SHOWN_IDS = 8

MEANING = {
    "GO": "every rule passes",
    "NO-GO": "the data refute a rule",
    "INCONCLUSIVE": "the data cannot tell; a model that may be good does not go on",
    "ERROR": "a rule could not be judged; nothing goes on until that is mended",
    "INVALID": "traffic was not split as meant, so nothing is known about this canary",
}
"""What an outcome says."""


def render_decision(decision: Decision, *, ids: int = _SHOWN_IDS) -> str:
    """The whole decision; ``ids`` flipped cases are named a slice and direction."""
    parts = [
        headline(decision),
        _grid(evidence_rows(decision)),
        _grid([["SLICE", "CASES", "BASELINE", "CANDIDATE", "OTHER KEY METRICS"], *table_rows(decision)]),
        "\n".join(line for result in decision.rules for line in _rule_lines(result)),
    ]
    flips = list(_flip_lines(decision, ids))
    if flips:
        parts.append("\n".join(["cases that flipped against the baseline", *flips]))
    if decision.notes:
        parts.append("\n".join(f"note: {note}" for note in decision.notes))
    options = " · ".join(f"{name}: {value}" for name, value in decision.options.items())
    parts.append(f"options  {options}")
    return "\n\n".join(parts) + "\n"


def headline(decision: Decision) -> str:
    """The outcome, what it means, and how many rules came out how."""
    counts = Counter(result.verdict for result in decision.rules)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in TICKS if counts[verdict])
    return f"{decision.outcome}: {MEANING[decision.outcome]} ({told})"


def evidence_rows(decision: Decision) -> list[list[str]]:
    """What the decision rests on, a row each."""
    rows = [["contract", short(decision.contract_digest), f"{len(decision.rules)} rules", "", ""]]
    for name in ("candidate", "baseline", "canary"):
        evidence: Evidence | None = getattr(decision, name)
        if evidence is not None:
            model = short(evidence.model) if evidence.model.startswith("sha256:") else evidence.model
            unscored = f", {evidence.unscored} unscored" if evidence.unscored and name != "canary" else ""
            rows.append(
                [
                    name,
                    short(evidence.header),
                    f"model {model}",
                    evidence.lane,
                    f"{evidence.cases} cases, {evidence.rows} rows{unscored}, suite {short(evidence.suite)}",
                ]
            )
    return rows


def table_rows(decision: Decision) -> list[list[str]]:
    """The specification's table: slice, cases, success@1 of baseline and candidate, the other metrics with ticks."""
    return [
        [row.slice, str(row.cases), _rate(row.baseline), _rate(row.candidate), ", ".join(row.metrics)]
        for row in decision.table
    ]


def check_facts(check: Check) -> str:
    """The figures behind a check, in one line."""
    facts = []
    if check.cases:
        facts.append(
            f"n = {check.cases}" + (f" ({check.samples} rows)" if check.samples > check.cases else "")
        )
    if check.value is not None:
        facts.append(f"value {number(check.value)}")
    if check.low is not None or check.high is not None:
        low = "−∞" if check.low is None else number(check.low)
        high = "∞" if check.high is None else number(check.high)
        facts.append(f"interval {low} to {high}")
    if check.estimator:
        facts.append(check.estimator)
    if check.verdict == "INCONCLUSIVE":
        wanted = "no number of cases would decide" if check.needed is None else f"{check.needed} cases needed"
        facts.append(wanted if check.needed is not None else f"{wanted} at this effect")
    if check.coin_toss:
        facts.append("a coin toss: the threshold lies inside the interval")
    return " · ".join(facts)


def _rule_lines(result: RuleResult) -> Iterator[str]:
    yield f"{TICKS[result.verdict]} {result.verdict:<12} {result.text}   (line {result.line})"
    for check in result.checks:
        prefix = f"{check.slice}: " if len(result.checks) > 1 and check.slice else ""
        tick = f"{TICKS[check.verdict]} " if len(result.checks) > 1 else ""
        yield f"      {tick}{prefix}{check.decision}"
        facts = check_facts(check)
        if facts:
            yield f"        {facts}"
        for note in check.notes:
            yield f"        {note}"


def _flip_lines(decision: Decision, ids: int) -> Iterator[str]:
    for name, flips in decision.flips.items():
        for what, cases in (("gained", flips.gained), ("lost", flips.lost)):
            if cases:
                yield f"  {name}: {len(cases)} {what}: {named(cases, ids)}"


def named(cases: Sequence[str], most: int) -> str:
    """The first few, and how many more."""
    more = f" and {len(cases) - most} more" if len(cases) > most else ""
    return ", ".join(cases[:most]) + more


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _grid(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
