"""What the linter says of a contract before any run."""

from __future__ import annotations

import pytest

from posttrain.promotion.grammar import parse_contract
from posttrain.promotion.lint import Finding, Known, lint, parse_call
from tests.promotion.worlds import RULES, example, plain


def findings(text: str, known: Known | None = None, level: str = "error") -> list[Finding]:
    return [f for f in lint(parse_contract(text), known) if f.level == level and f.rule]


def test_the_specification_has_no_error_at_the_sizes_of_the_example():
    known = Known.of_report(example("candidate").header)
    assert not findings(RULES, known)
    warned = findings(RULES, known, "warning")
    assert [f.line for f in warned] == [3, 3], "two slices of that size seldom show that nothing got worse"
    assert "80 % needs 1963 cases" in warned[0].message


def test_without_sizes_only_the_text_is_judged():
    assert not findings(RULES) and not findings(RULES, level="warning")
    notes = [f.message for f in lint(parse_contract(RULES))]
    assert any("16 rules must all hold: at 95 % power each a good model passes 44%" in note for note in notes)
    assert any("98.6%" in note for note in notes)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("sucess@1.point >= 0.5", "did you mean 'success'"),
        ("success@1(toolz).point >= 0.5", "no slice 'toolz'; did you mean 'tools'"),
        ("no_regressions_on: [toolz]", "no slice 'toolz'; did you mean 'tools'"),
        ("math_corect_rate(tools).point >= 0.5", "no column 'math_corect'; did you mean 'math_correct'"),
        ("rule_violation_rate(tools).lower_ci >= 0.01", "lower is better: write upper_ci"),
        ("rule_violation_rate(tools).lower_ci <= 0.05", "points the wrong way"),
        ("success@1(tools).lower_ci >= 0.98", "182 cases cannot reach it: even a perfect run needs 183"),
        ("rule_violation_rate(tools).upper_ci <= 0.02", "even a perfect run needs 183"),
        ("latency_p99_ms(tools).upper_ci <= 900", "182 cases give no bound of this percentile: 368"),
        ("success@1(tools).lower_ci >= 1", "can never pass"),
        ("success@1(tools).point >= 1.01", "can never pass"),
        ("success@1(tools).p_value < 0.05", "write delta."),
        ("delta.success@1(tools).p_value > 0.05", "evidence where it is small"),
        ("delta.latency_p95_ms(tools).point <= 0", "of rates"),
        ("min_n: 200\nsuccess@1(tools).point >= 0.5", "fewer than min_n 200"),
    ],
)
def test_rules_that_can_never_pass_are_errors(rule, message):
    known = Known.of_report(plain([True] * 182).header)
    (found, *_) = findings(rule, known)
    assert message in found.message
    assert found.line == (2 if rule.startswith("min_n") else 1) and found.column == 1


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("success@1(tools).point >= 0.5", "coin toss"),
        ("delta.success@1(tools).point >= 0.07", r"± 0.046"),
        ("success@1(tools).point >= 0", "always passes"),
        ("rule_violation_rate(tools).point <= 1", "always passes"),
        ("rule_violation_rate(tools).point >= 0.5", "asks for the opposite"),
        ("no_regressions_on: [tools]", "14%|80 % needs 1963"),
    ],
)
def test_rules_that_decide_by_luck_are_warnings(rule, message):
    import re

    found = findings(rule, Known.of_report(plain([True] * 180).header), "warning")
    assert any(re.search(message, finding.message) for finding in found), found


def test_power_is_said_at_the_value_that_is_expected():
    known = Known({"tools": 1000}, true={parse_call("success@1(tools)"): 0.99})
    (warned,) = findings("success@1(tools).lower_ci >= 0.98", known, "warning")
    assert "at a true success@1 of 0.99 it passes" in warned.message and "1295 cases" in warned.message
    enough = Known({"tools": 1400}, true={parse_call("success@1(tools)"): 0.99})
    assert not findings("success@1(tools).lower_ci >= 0.98", enough, "warning")
    hopeless = Known({"tools": 1400}, true={parse_call("success@1(tools)"): 0.97})
    assert "no number" in findings("success@1(tools).lower_ci >= 0.98", hopeless, "warning")[0].message


def test_a_replay_has_no_latency():
    known = Known.of_report(plain([True] * 300, lane="replay").header)
    assert "replay" in findings("latency_p95_ms.point <= 900", known)[0].message


def test_a_canary_says_what_it_can_see():
    notes = findings(RULES, level="note")
    assert any("none in 5000 requests still allows a rate of 0.0006" in f.message for f in notes)
    assert any("judged at the end of the window only" in f.message for f in notes)
    wire = next(f.message for f in notes if "trip wire is reached" in f.message)
    assert "limit 5.00%" in wire
