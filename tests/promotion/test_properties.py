"""What holds of every gate: more successes never undo a GO, names and order never matter, less data never helps."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.evaluation.outcomes import OutcomeRow, make_outcomes
from posttrain.promotion.gate import Report, gate
from posttrain.promotion.grammar import parse_contract
from posttrain.promotion.records import Decision
from tests.promotion.worlds import evaluated

CONTRACT = parse_contract(
    """\
confidence: 0.8
margin: 0.15
success@1(a).point >= 0.4
aggregate.success@1.lower_ci >= 0.3
delta.success@1(b).point >= -0.1
delta.success@1(a).lower_ci >= -0.4
delta.success@1.p_value < 0.6
no_regressions_on: [a, b]
"""
)
SUCCESS = st.sampled_from([True, True, True, False, None])
PAIRS = st.lists(st.tuples(SUCCESS, SUCCESS), min_size=12, max_size=40)


def rows(success: list[bool | None], names: list[str] | None = None) -> list[OutcomeRow]:
    """Cases in two slices, by turns."""
    return [
        OutcomeRow(
            names[index] if names else f"case-{index:03d}",
            "ab"[index % 2],
            0,
            passed,
            "lost" if passed is None else None,
        )
        for index, passed in enumerate(success)
    ]


def decide(after: list[OutcomeRow], before: list[OutcomeRow]) -> Decision:
    reports = [Report(make_outcomes(evaluated(columns=()), part)) for part in (after, before)]
    return gate(CONTRACT, reports[0], baseline=reports[1])


ORDER = {"GO": 0, "INCONCLUSIVE": 1, "NO-GO": 2, "ERROR": 3}


@settings(max_examples=150, deadline=None)
@given(PAIRS, st.data())
def test_one_more_success_never_turns_a_go_into_anything_else(pairs, data):
    after, before = [a for a, _ in pairs], [b for _, b in pairs]
    first = decide(rows(after), rows(before))
    open_cases = [index for index, passed in enumerate(after) if passed is not True]
    if not open_cases:
        return
    better = list(after)
    better[data.draw(st.sampled_from(open_cases))] = True
    second = decide(rows(better), rows(before))
    if first.outcome == "GO":
        assert second.outcome == "GO"
    if first.outcome == "INCONCLUSIVE":
        # Where rows are missing, what did not matter before may decide now: then the gate asks for them.
        asks = ("ERROR",) if None in (*better, *before) else ()
        assert second.outcome in ("GO", "INCONCLUSIVE", *asks)
    for one, two in zip(first.rules, second.rules, strict=True):
        if one.verdict == "PASS":
            assert two.verdict == "PASS", (one.text, two.checks)


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.data())
def test_losing_a_score_never_makes_a_rule_pass(pairs, data):
    after, before = [a for a, _ in pairs], [b for _, b in pairs]
    first = decide(rows(after), rows(before))
    gone = list(after)
    gone[data.draw(st.integers(0, len(after) - 1))] = None
    for one, two in zip(first.rules, decide(rows(gone), rows(before)).rules, strict=True):
        if two.verdict == "PASS":
            assert one.verdict == "PASS", (one.text, one.checks, two.checks)


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.randoms())
def test_names_and_order_do_not_matter(pairs, random):
    after, before = [a for a, _ in pairs], [b for _, b in pairs]
    names = [f"case {number}" for number in random.sample(range(1000), len(pairs))]
    first = decide(rows(after), rows(before))
    shuffled = rows(after, names)
    random.shuffle(shuffled)
    second = decide(shuffled, rows(before, names))
    assert second.outcome == first.outcome
    assert second.rules == first.rules and second.table == first.table
