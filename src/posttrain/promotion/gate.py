"""The gate: a contract applied to a candidate, and the same again from a decision.

Here: which judge gets which rule, the verdict of the whole, the table. Not here: any judgement (``checks``, ``rates``,
``pairs``, ``canary``), layout (``terminal``, ``page``).

All rules must hold, so no level is corrected for their number: a model that one rule would refuse is promoted at most
as often as that rule errs (intersection-union, Berger 1982). What many rules cost is power; ``lint`` says how much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from posttrain.evaluation.outcomes import Outcomes
from posttrain.promotion.canary import check_canary, sample_ratio
from posttrain.promotion.checks import check_threshold
from posttrain.promotion.errors import GateError
from posttrain.promotion.grammar import parse_contract
from posttrain.promotion.judging import error_check
from posttrain.promotion.metrics import Metric
from posttrain.promotion.pairs import check_delta, check_no_regressions
from posttrain.promotion.records import (
    Check,
    Decision,
    Evidence,
    Flips,
    Outcome,
    RuleResult,
    SampleRatio,
    TableRow,
    Verdict,
    worst,
)
from posttrain.promotion.rules import Contract, NoRegressionRule, Options, Rule
from posttrain.promotion.world import Table, World

TICKS: Mapping[Verdict, str] = {"PASS": "✓", "FAIL": "✗", "INCONCLUSIVE": "?", "ERROR": "!"}
"""How tables show a verdict."""


@dataclass(frozen=True, slots=True)
class Report:
    """Outcomes with the artifact that holds them."""

    outcomes: Outcomes
    artifact: str | None = None
    """Digest of the artifact; None for a folder outside a store."""


def gate(
    contract: Contract,
    candidate: Report,
    *,
    baseline: Report | None = None,
    canary: Report | None = None,
    metrics: Sequence[Metric] = (),
) -> Decision:
    """Apply ``contract`` to ``candidate``. Raises GateError for reports that stand in the wrong place.

    ``metrics`` are what rules may name instead of the shipped and registered ones.
    """
    _check_lanes(candidate, baseline, canary)
    world = World(
        options=contract.options,
        rules=contract.rules,
        candidate=Table(candidate.outcomes),
        baseline=Table(baseline.outcomes) if baseline else None,
        canary=Table(canary.outcomes) if canary else None,
        metrics=tuple(metrics),
    )
    results = tuple(judge_rule(rule, world) for rule in contract.rules)
    ratio = sample_ratio(canary.outcomes.evaluated, contract.options) if canary else None
    return Decision(
        outcome=_outcome(results, ratio),
        contract=contract.text,
        contract_digest=contract.digest,
        options=contract.options.as_text(),
        candidate=_evidence(candidate),
        baseline=_evidence(baseline) if baseline else None,
        canary=_evidence(canary) if canary else None,
        rules=results,
        table=_table(world, results),
        flips=_flips(world),
        sample_ratio=ratio,
        notes=_notes(world, ratio),
    )


def judge_rule(rule: Rule, world: World) -> RuleResult:
    """One rule, with its arithmetic."""
    checks = _checks(rule, world)
    return RuleResult(
        text=rule.text,
        line=rule.place.line,
        column=rule.place.column,
        verdict=worst(tuple(check.verdict for check in checks)),
        checks=checks,
    )


def apply_rule(
    rule: Rule, candidate: Outcomes, *, baseline: Outcomes | None = None, options: Options | None = None
) -> RuleResult:
    """One rule by itself, for Python: ``apply_rule(parse_rule('success@1.point >= 0.8'), outcomes)``."""
    after = Table(baseline) if baseline is not None else None
    return judge_rule(rule, World(options or Options(), (rule,), Table(candidate), after))


def remake(
    decision: Decision, candidate: Report, *, baseline: Report | None = None, canary: Report | None = None
) -> Decision:
    """The decision that the same contract gives on these records; the same bytes where nothing was changed."""
    return gate(
        parse_contract(decision.contract, origin="the decision's contract"),
        candidate,
        baseline=baseline,
        canary=canary,
    )


def _checks(rule: Rule, world: World) -> tuple[Check, ...]:
    if isinstance(rule, NoRegressionRule):
        return check_no_regressions(rule, world)
    match rule.scope:
        case "delta":
            return (check_delta(rule, world),)
        case "canary":
            return (check_canary(rule, world),)
        case "aggregate" if rule.metric.slice is not None:
            return (error_check(rule.metric, "an aggregate is of all slices: leave the slice out"),)
        case _:
            return (check_threshold(rule, world),)


def _check_lanes(candidate: Report, baseline: Report | None, canary: Report | None) -> None:
    for name, report in (("candidate", candidate), ("baseline", baseline)):
        if report is not None and report.outcomes.evaluated.lane == "canary":
            raise GateError(
                f"the {name} is a report of traffic, not of a frozen suite", hint="give it with --canary"
            )
    if canary is not None and canary.outcomes.evaluated.lane != "canary":
        raise GateError(
            f"the canary records are of the lane {canary.outcomes.evaluated.lane}, not of traffic",
            hint="canary rules are about production traffic only",
        )


def _outcome(results: tuple[RuleResult, ...], ratio: SampleRatio | None) -> Outcome:
    if ratio is not None and not ratio.valid:
        return "INVALID"
    outcomes: Mapping[Verdict, Outcome] = {
        "PASS": "GO",
        "FAIL": "NO-GO",
        "INCONCLUSIVE": "INCONCLUSIVE",
        "ERROR": "ERROR",
    }
    return outcomes[worst(tuple(result.verdict for result in results))]


def _evidence(report: Report) -> Evidence:
    header = report.outcomes.header
    return Evidence(
        model=header.evaluated.model,
        suite=header.evaluated.suite,
        lane=header.evaluated.lane,
        header=header.digest,
        content=header.content,
        artifact=report.artifact,
        rows=header.rows,
        cases=header.cases,
        unscored=header.unscored,
    )


def _notes(world: World, ratio: SampleRatio | None) -> tuple[str, ...]:
    notes = []
    if world.baseline is not None and world.baseline_problem is not None:
        notes.append(f"baseline refused: {world.baseline_problem}")
    if world.canary is not None and ratio is None:
        notes.append(
            "the canary records name no two arms: whether traffic was split as meant was not checked"
        )
    if ratio is not None and not ratio.valid:
        notes.append(
            f"sample ratio mismatch (p = {ratio.p_value:.3g}): the arms are not comparable, so nothing about this "
            "canary is known; find what loses units before looking at any figure"
        )
    return tuple(notes)


# -- the table -----------------------------------------------------------------------------------------


def _table(world: World, results: tuple[RuleResult, ...]) -> tuple[TableRow, ...]:
    """A row for each slice, those that rules name first, and ``Aggregate``."""
    outcomes = world.candidate.outcomes
    named = [name for name in world.slices_named() if name in outcomes.slices]
    order = [*named, *(name for name in outcomes.slices if name not in named)]
    cells: dict[str | None, list[str]] = {}
    for rule, result in zip(world.rules, results, strict=True):
        for check in result.checks:
            cells.setdefault(check.slice, []).append(_cell(rule, check))
    comparable = world.baseline if world.baseline_problem is None else None
    rows = [
        TableRow(
            slice=name or "Aggregate",
            cases=len(world.candidate.cases(name)),
            baseline=_success(comparable, name, world) if comparable else None,
            candidate=_success(world.candidate, name, world),
            metrics=tuple(cells.get(name, ())),
        )
        for name in (*order, None)
    ]
    return tuple(rows)


def _success(table: Table, name: str | None, world: World) -> float | None:
    """Success@1 over what was scored."""
    cases, success = table.cases(name), table.outcomes.success
    rows = table.first[cases]
    if world.every_sample:
        rows = np.flatnonzero(np.isin(table.outcomes.case, cases))
    scored = int(np.count_nonzero(success.present[rows]))
    return float(np.count_nonzero(success.values[rows] & success.present[rows]) / scored) if scored else None


def _cell(rule: Rule, check: Check) -> str:
    """``rule_violation_rate 0.62 → 0.06 ✗``."""
    tick = TICKS[check.verdict]
    if check.value is None:
        return f"{check.metric or rule.text} {tick}"
    if isinstance(rule, NoRegressionRule):
        return f"no regression: Δ {check.value:+.3g}, margin {check.margin} {tick}"
    if rule.scope == "delta":
        name = check.metric.removeprefix("delta.")
        what = f"p={check.p_value:.2g}" if check.p_value is not None else f"Δ = {check.value:+.3g}"
        return f"{name} {what} {tick}"
    before = f"{check.baseline:.3g} → " if check.baseline is not None else ""
    return f"{check.metric} {before}{check.value:.3g} {tick}"


def _flips(world: World) -> dict[str, Flips]:
    if world.baseline is None or world.baseline_problem is not None:
        return {}
    after, before = world.candidate, world.baseline
    found = {}
    for name in after.outcomes.slices:
        cases = after.cases(name)
        ours, theirs = after.first[cases], before.first[cases]
        both = after.outcomes.success.present[ours] & before.outcomes.success.present[theirs]
        now, then = after.outcomes.success.values[ours], before.outcomes.success.values[theirs]
        gained, lost = cases[both & now & ~then], cases[both & ~now & then]
        found[name] = Flips(gained=after.names(gained), lost=after.names(lost))
    return found
