"""A plan, for the terminal.

Here: layout only. Not here: the figures (``plan``).
"""

from __future__ import annotations

from collections.abc import Iterable

from posttrain.core.canonical import short
from posttrain.rollouts.plan import SPREAD, Plan, PlannedTrigger
from posttrain.rollouts.records import IncidentTrigger, RateTrigger, RatioTrigger


def render_plan(plan: Plan) -> str:
    """All of it, a page."""
    evidence = sum(planned.alpha is not None for planned in plan.triggers)
    each = plan.alpha_rollback / max(1, evidence)
    looks = "after every request" if plan.looks is None else f"{plan.looks} times"
    lines = [
        f"The candidate answers {plan.requests:,} requests in at least {plan.hours:g} hours; triggers look {looks}.",
        f"{evidence} triggers of evidence share alpha_rollback {plan.alpha_rollback:g}: {each:.3g} each. "
        f"Contract sha256:{short(plan.contract)}.",
        "",
        f"Stages, at {plan.traffic:,.0f} requests an hour on the route: {_hours(plan.total_hours)} in all.",
        *_table(
            [
                [
                    "",
                    "stage",
                    "needs",
                    "with all before",
                    "takes",
                    "gets",
                    "no longer than its least time from",
                ],
                *(
                    [
                        "",
                        stage.label,
                        f"{stage.requests:,}",
                        f"{stage.together:,}" if stage.together else "-",
                        _hours(stage.hours),
                        f"{stage.expected:,.0f}",
                        f"{stage.traffic_needed:,.0f} an hour" if stage.traffic_needed else "any",
                    ]
                    for stage in plan.stages
                ),
            ]
        ),
    ]
    for planned in plan.triggers:
        lines += ["", *_trigger(plan, planned)]
    if plan.unwatched:
        lines += ["", "Judged at the end by `posttrain gate` only, since no row of traffic says it:"]
        lines += [f"  {rule}" for rule in plan.unwatched]
    lines += [
        "",
        "Under a stage: the chance that the rollback has come by its end. `half by`: requests by which half of the",
        "rollbacks have come. `holds at end`: the chance that the rule holds as it is written, as a point over the",
        "whole window, without which there is no production.",
    ]
    return "\n".join(lines) + "\n"


def _trigger(plan: Plan, planned: PlannedTrigger) -> list[str]:
    stages = [stage for stage in plan.stages if stage.label.startswith("canary")]
    head = [
        "",
        _column(planned),
        *(f"{stage.label} ({stage.together:,})" for stage in stages),
        "half by",
        "holds at end",
    ]
    rows = [head]
    for point in planned.points:
        median = point.detection.median
        rows.append(
            [
                "",
                _value(planned, point.value) + (" limit" if point.at_limit else ""),
                *(_chance(chance) for chance in point.by_stage),
                "-" if median is None else f"{median:,}",
                _chance(point.holds),
            ]
        )
    lines = [planned.trigger.rule]
    if isinstance(planned.trigger, RateTrigger) and planned.trigger.above is not None:
        trigger = planned.trigger
        lines.append(f"  watched as: at most {trigger.limit:.3g} of requests above {trigger.above:g}")
    if isinstance(planned.trigger, RatioTrigger):
        lines.append(
            f"  if requests differ by {SPREAD:.0%} of what is allowed for one; simulated, silent before "
            f"{planned.trigger.minimum}"
        )
    lines += _table(rows)
    if planned.false_rollback is not None:
        lines.append(
            f"  a candidate exactly at the limit is rolled back with {_chance(planned.false_rollback)}"
        )
    if planned.unseen_rate is not None:
        lines.append(
            f"  none in {plan.requests:,} still allows a rate of {planned.unseen_rate:.2g} (one-sided 95 %): "
            f"one in {1 / planned.unseen_rate:,.0f}"
        )
    return lines


def _column(planned: PlannedTrigger) -> str:
    return "true $ per 1k" if isinstance(planned.trigger, RatioTrigger) else "true rate"


def _value(planned: PlannedTrigger, value: float) -> str:
    return f"{value:.1e}" if isinstance(planned.trigger, IncidentTrigger) else f"{value:.4g}"


def _chance(value: float) -> str:
    return "< .001" if value < 0.001 else "> .999" if value > 0.999 else f"{value:.3f}".removeprefix("0")


def _hours(hours: float) -> str:
    return f"{hours:.3g} h" if hours < 100 else f"{hours / 24:.3g} days"


def _table(rows: list[list[str]]) -> Iterable[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()
