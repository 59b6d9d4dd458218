"""Contracts as text: the specification's rules to the byte, both forms, and an error that says where."""

from __future__ import annotations

import pickle
from decimal import Decimal
from fractions import Fraction as F

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.errors import ConfigError
from posttrain.promotion.errors import ContractError
from posttrain.promotion.grammar import parse_contract, parse_rule, read_contract
from posttrain.promotion.rules import MetricCall, NoRegressionRule, Options, Place, ThresholdRule
from tests.promotion.worlds import HERE, RULES

EXPECTED = [  # line, scope, metric, stat, comparator, threshold
    (2, "aggregate", MetricCall("success", at=1), "lower_ci", ">=", "0.82"),
    (4, "candidate", MetricCall("rule_violation_rate", slice="headache_redflags"), "point", "<=", "0.05"),
    (5, "candidate", MetricCall("math_correct_rate", slice="math_basic"), "lower_ci", ">=", "0.98"),
    (
        6,
        "candidate",
        MetricCall("format_pass_rate", slice="math_basic", options=(("tag", "<answer>"),)),
        "lower_ci",
        ">=",
        "0.98",
    ),
    (7, "delta", MetricCall("success", at=1, slice="division_hard"), "point", ">=", "0.07"),
    (8, "delta", MetricCall("success", at=1, slice="division_hard"), "p_value", "<", "0.05"),
    (
        9,
        "candidate",
        MetricCall("tool_call_correctness", part="schema", slice="debug_search_api"),
        "lower_ci",
        ">=",
        "0.99",
    ),
    (
        10,
        "candidate",
        MetricCall("api_version_match_rate", slice="debug_search_api", arguments=("3.2.1",)),
        "lower_ci",
        ">=",
        "0.98",
    ),
    (11, "candidate", MetricCall("steps_to_solve_median", slice="debug_search_api"), "point", "<=", "5"),
    (12, "candidate", MetricCall("latency_p95_ms"), "point", "<=", "900"),
    (13, "candidate", MetricCall("cost_per_1k_tokens_usd"), "point", "<=", "0.020"),
    (18, "canary", MetricCall("abandon_rate"), "point", "<=", "0.05"),
    (19, "canary", MetricCall("safety_incidents"), "count", "==", "0"),
    (20, "canary", MetricCall("latency_p95_ms"), "point", "<=", "950"),
    (21, "canary", MetricCall("cost_per_1k_tokens_usd"), "point", "<=", "0.022"),
]


def test_every_rule_of_the_specification_parses_as_written():
    contract = read_contract(HERE / "promotion-rules.txt")
    assert contract.text == RULES and contract.options == Options()
    found = [
        (r.place.line, r.scope, r.metric, r.stat, r.comparator, str(r.threshold))
        for r in contract.rules
        if isinstance(r, ThresholdRule)
    ]
    assert found == EXPECTED
    (regressions,) = (r for r in contract.rules if isinstance(r, NoRegressionRule))
    assert regressions.slices == ("headache_redflags", "debug_search_api")
    assert regressions.place == Place(3, 1) and regressions.margin is None
    assert len(contract.rules) == 16


def test_comments_are_no_part_of_a_rule_and_a_hash_in_quotes_is_no_comment():
    rule = parse_rule("  canary.abandon_rate.point <= 0.05       # measure of helpfulness")
    assert rule.text == "canary.abandon_rate.point <= 0.05" and rule.place == Place(1, 3)
    quoted = parse_rule("format_pass_rate(tools, tag='#1').point >= 0.5 # and this is one")
    assert quoted.metric.options == (("tag", "#1"),)
    assert parse_rule(r"m_rate('it\'s').point > 0").metric.arguments == ("it's",)


def test_thresholds_are_decimals():
    rule = parse_rule("cost_per_1k_tokens_usd.point <= 0.020")
    assert rule.threshold == Decimal("0.020") and rule.limit == F(2, 100)
    assert parse_rule("delta.success@1.point >= -0.5e-2").limit == F(-5, 1000)


YAML = """\
# A contract in YAML.
confidence: 0.90
margin.tools: 0.01
aggregate_weights: tools=1, math=2.5

rules: |
  # first
  success@1(tools).point >= 0.1

  no_regressions_on: [tools, 'math'] margin=0.03 hard=['tools/0001']   # last
"""


def test_the_same_rules_in_yaml_keep_their_places():
    contract = parse_contract(YAML, origin="c.yaml")
    first, second = contract.rules
    assert (first.place, second.place) == (Place(8, 3), Place(10, 3))
    assert second == NoRegressionRule(
        "no_regressions_on: [tools, 'math'] margin=0.03 hard=['tools/0001']",
        Place(10, 3),
        ("tools", "math"),
        Decimal("0.03"),
        ("tools/0001",),
    )
    assert contract.options.confidence == Decimal("0.90")
    assert contract.options.margin_of("tools") == Decimal("0.01")
    assert contract.options.margin_of("math") == Decimal("0.02")
    assert contract.options.aggregate_weights == {"tools": Decimal(1), "math": Decimal("2.5")}
    assert contract.where(second) == "c.yaml:10:3"
    indented = "".join(f"  {line}\n" if line else "\n" for line in RULES.split("\n"))
    whole = parse_contract(f"confidence: 0.95\nrules: |\n{indented}")
    assert [(r.text, r.place.line - 2) for r in whole.rules] == [
        (r.text, r.place.line) for r in parse_contract(RULES).rules
    ]
    with pytest.raises(ContractError, match=r"^c.yaml:8:20: no statistic 'pont'"):
        parse_contract(YAML.replace("(tools).point", "(tools).pont"), origin="c.yaml")


def test_every_option_is_read_and_printed():
    text = """\
confidence: 0.9
margin: 0.03
margin.tools: 0
alpha_rollback: 0.01
min_n: 200
canary_min_n: 100
canary_hours: 0.5
srm_p: 0.01
estimator: korn-graubard
alternative: two-sided
aggregate_weights: macro
"""
    options = parse_contract(text + "success@1.point >= 0.1").options
    printed = "".join(f"{name}: {value}\n" for name, value in options.as_text().items())
    assert printed == text
    defaults = "".join(f"{name}: {value}\n" for name, value in Options().as_text().items())
    assert parse_contract(defaults + "success@1.point >= 0.1").options == Options()


@pytest.mark.parametrize(
    ("text", "place", "what", "hint"),
    [
        ("", "1:1", "no rules", "let everything pass"),
        ("# only this", "1:1", "no rules", ""),
        ("success", "1:8", "expected '.' and one of point", ""),
        ("success.point", "1:14", "expected one of >= <= == < >, found the end", ""),
        ("success@1(tools.point >= 1", "1:16", r"expected '\)' after the arguments, found '.'", ""),
        ("success@1(tools).pont >= 1", "1:18", "no statistic 'pont'", "did you mean 'point'"),
        ("success@x.point >= 1", "1:9", "whole number above 0, found 'x'", ""),
        ("success@1.5.point >= 1", "1:9", "whole number above 0, found '1.5'", ""),
        ("success@1(a, b).point >= 1", "1:14", "two slices, 'a' and 'b'", "quote it"),
        ("success@1().point >= 1", "1:11", "expected a slice or a quoted text", ""),
        ("success@1(tag=3).point >= 1", "1:15", "expected a quoted text, found '3'", ""),
        ("a.b.c.point >= 1", "1:5", "one name and at most one part", ""),
        ("success@1.point => 1", "1:17", "expected one of >= <= == < >, found '='", ""),
        ("success@1.point >= much", "1:20", "expected a number, found 'much'", ""),
        ("success@1.point >= 0.8 or else", "1:24", "unexpected 'or'", ""),
        ("success@1.point >= 80%", "1:22", "'%' has no meaning", ""),
        ("success@1.point >= 0.8; x", "1:23", "';' has no meaning", ""),
        ("success@1('tools).point >= 1", "1:11", "without its closing quote", ""),
        ("success@1.lower_ci == 0.8", "1:20", "'==' compares a point or a count", ">= or <="),
        ("success@1.point >= 0.8\nmargin: 0.1", "2:1", "'margin' comes after a rule", "move it up"),
        ("\n\nmarge: 0.1", "3:1", "no option 'marge'", "did you mean 'margin'"),
        ("margin.a.b: 0.1", "1:1", "no option 'margin.a.b'", ""),
        ("min_n.a: 3", "1:1", "no option 'min_n.a'", ""),
        ("margin: 0.1\nmargin: 0.2", "2:1", "'margin' is given twice", ""),
        ("confidence: 95", "1:13", "a number between 0 and 1, found '95'", ""),
        ("confidence: 0", "1:13", "a number between 0 and 1", ""),
        ("min_n: 0.5", "1:8", "whole number", ""),
        ("canary_hours: -1", "1:15", "0 or more", ""),
        ("estimator: wald", "1:12", "no estimator 'wald'", "clopper-pearson"),
        ("aggregate_weights: some", "1:24", "the weight of 'some'", ""),
        ("aggregate_weights: a=1, a=2", "1:27", "not above 0, or is given twice", ""),
        ("no_regressions_on: []", "1:21", "expected a slice, found ']'", ""),
        ("no_regressions_on: tools", "1:20", r"expected '\[' and a slice", ""),
        ("no_regressions_on: ['a' 'b']", "1:25", r"expected '\]' or ','", ""),
        ("no_regressions_on: [a, a]", "1:24", "'a' is listed twice", ""),
        ("no_regressions_on: [a] margins=1", "1:24", "no option 'margins'", "did you mean 'margin'"),
        ("no_regressions_on: [a] margin=2", "1:31", "between 0 and 1", ""),
        ("rules: success@1.point >= 1", "1:8", "no block of text", r"rules: \|"),
        ("rules: [a", "1:10", "not readable as YAML", ""),
        ("margin: 1\nrules: |\n  success@1.point >= 1", "1:9", "between 0 and 1", ""),
        ("surprise: 1\nrules: |\n  success@1.point >= 1", "1:1", "no option 'surprise'", ""),
        ("rules: |\n\n    success@1.point >= x", "3:24", "expected a number", ""),
        ("rules: |\n  success@1.point >= 1\nrules: |\n  b.point > 1", "3:1", "'rules' is given twice", ""),
        ("- rules: |\n    x\nrules:", "1:1|3:1", "YAML", ""),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(text, place, what, hint):
    import re

    with pytest.raises(ContractError, match=f"^file:({place}): .*{what}") as caught:
        parse_contract(text, origin="file")
    assert re.search(hint, caught.value.hint or "")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_contract(tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"success\xff")
    with pytest.raises(ContractError, match="not UTF-8"):
        read_contract(tmp_path / "binary")


@settings(deadline=None)
@given(st.text(st.sampled_from("abs@1.()'\",:=[]<>#\n 0-\\é"), max_size=60))
def test_any_text_is_a_contract_or_an_error_with_a_place(text):
    try:
        contract = parse_contract(text)
    except ContractError as error:
        assert error.message.startswith("contract:")
    else:
        assert contract.rules


def test_a_contract_is_known_by_its_bytes():
    assert parse_contract(RULES).digest == parse_contract(RULES).digest
    assert parse_contract(RULES + "\n").digest != parse_contract(RULES).digest
