"""What an observation means: lines for the engineer on call, evidence, health, and the steps that follow."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.canonical import short
from posttrain.promotion.grammar import parse_contract
from posttrain.rollouts.arms import Moments, difference
from posttrain.rollouts.events import (
    Aborted,
    Advanced,
    Cleared,
    Completed,
    Held,
    Resumed,
    RolledBack,
    Started,
    Tripped,
)
from posttrain.rollouts.fold import fold
from posttrain.rollouts.observe import Key, Observation, Observer, Pairs, Tally
from posttrain.rollouts.records import (
    ComparisonTrigger,
    IncidentTrigger,
    NoDataTrigger,
    RateTrigger,
    RatioTrigger,
    SampleRatioTrigger,
)
from posttrain.rollouts.registered import register, stages_of, triggers_from_contract
from posttrain.rollouts.steps import Facts, allowed, next_step, progress
from posttrain.rollouts.triggers import evaluate, window_stages
from posttrain.statistics.sequential import sequence_half_width
from tests.rollouts.rollout_world import (
    GATED,
    LARGE,
    LAST,
    RULES,
    SHADOW,
    SMALL,
    entries_of,
    go,
    history,
    make_spec,
)

SPEC = make_spec()
AT = fold(SPEC, entries_of(history(SPEC, SMALL)))


def seen(
    stage=SMALL, arm="candidate", *, units=None, pairs=None, heard_ms=None, misplaced=0, **counts
) -> Observation:
    """An observation with one tally. ``slow``: requests above the latency limit."""
    slow = counts.pop("slow", 0)
    tally = Tally(**{"answered": counts.get("requests", 0), **counts}, above={("latency", 950.0): slow})
    return Observation(
        tallies={Key(stage, arm, None): tally},
        units=units or {},
        misplaced=misplaced,
        misplaced_examples=("a",) if misplaced else (),
        pairs=pairs or Pairs(),
        waiting=0,
        heard_ms=heard_ms,
    )


def joined(*observations) -> Observation:
    tallies, units = {}, {}
    for observation in observations:
        tallies |= observation.tallies
        units |= observation.units
    first = observations[0]
    return Observation(
        tallies, units, first.misplaced, first.misplaced_examples, first.pairs, 0, first.heard_ms
    )


def reading(name, observation, *, spec=SPEC, state=AT, now_ms=0):
    report = evaluate(spec, state, observation, now_ms)
    return next(found for found in report.readings if found.name == name)


# -- what a contract registers ---------------------------------------------------------------------


def test_a_contract_registers_its_triggers():
    triggers, unwatched = register(parse_contract(RULES))
    assert unwatched == ()
    assert [(t.name, t.kind) for t in triggers] == [
        ("abandon_rate", "rate"),
        ("error_rate", "rate"),
        ("safety_incidents", "incident"),
        ("latency_p95_ms", "rate"),
        ("cost_per_1k_tokens_usd", "ratio"),
        ("no-data", "no_data"),
        ("sample-ratio", "sample_ratio"),
        ("exposure", "exposure"),
    ]
    latency = triggers[3]
    assert (latency.measure, latency.limit, latency.above) == ("latency", 0.05, 950.0)
    assert triggers[0].rule == "canary.abandon_rate.point <= 0.05"
    assert SPEC.alpha_each == 0.05 / 4, "four of evidence share; hard trips and health take none"


def test_the_promotion_rules_of_the_seed_register():
    text = (Path(__file__).parent.parent / "promotion" / "promotion-rules.txt").read_text()
    triggers, unwatched = register(parse_contract(text))
    assert [t.kind for t in triggers[:4]] == ["rate", "incident", "rate", "ratio"] and unwatched == ()
    assert all("canary." in t.rule for t in triggers[:4]) and len(triggers) == 7


def test_a_real_decision_of_a_gate_lets_it_start():
    from posttrain.rollouts.registered import decision_event
    from tests.promotion.worlds import decide, plain

    decision = decide("success@1.lower_ci >= 0.5", plain([True] * 40))
    assert decision.outcome == "GO"
    event = decision_event(decision, by="ana")
    spec = make_spec(known_as=(event.candidate,), suite=event.suite, gate_digest=decision.contract_digest)
    assert fold(spec, entries_of([event])).go == decision.digest
    bad = decision_event(decide("success@1.lower_ci >= 0.5", plain([False] * 40)), by="ana")
    assert "NO-GO" in fold(spec, entries_of([bad])).refusal


def test_rules_that_no_row_can_answer_are_named():
    text = """\
srm_p: 0.01
alpha_rollback: 0.01
canary.abandon_rate(math).upper_ci <= 0.04
canary.abandon_rate(math).point < 0.05
canary.guardrail_blocks_count.count <= 3
canary.safety_incidents.count < 2
canary.latency_median.point <= 300
canary.politeness_rate.point >= 0.9
canary.first_p95_ms.point <= 200
canary.nonsense.point <= 1
aggregate.success@1.lower_ci >= 0.82
"""
    contract = parse_contract(text)
    triggers, unwatched = register(contract)
    assert [t.name for t in triggers[:4]] == [
        "abandon_rate(math)",
        "abandon_rate(math) #2",
        "guardrail_blocks_count",
        "safety_incidents",
    ]
    assert triggers[0].slice == "math" and triggers[3].limit == 1, "fewer than two is at most one"
    assert [rule.split(".")[1] for rule in unwatched] == [
        "latency_median",
        "politeness_rate",
        "first_p95_ms",
        "nonsense",
    ]
    assert (
        next(t for t in triggers_from_contract(contract) if isinstance(t, SampleRatioTrigger)).alpha == 0.01
    )
    guardrail = triggers[2]
    assert isinstance(guardrail, IncidentTrigger) and (guardrail.measure, guardrail.limit) == ("guardrail", 3)
    assert make_spec(text).alpha_rollback == 0.01


def test_default_stages_are_the_window_of_the_contract():
    options = parse_contract(RULES).options
    canaries = [stage for stage in stages_of(options) if stage.kind == "canary"]
    assert [stage.share for stage in canaries] == [100, 500, 2500, 5000]
    assert sum(stage.minimum_requests for stage in canaries) == 5000
    assert sum(stage.minimum_seconds for stage in canaries) == 24 * 3600
    short_one = parse_contract("canary_min_n: 999\ncanary_hours: 6\n" + RULES).options
    canaries = [stage for stage in stages_of(short_one) if stage.kind == "canary"]
    assert 999 <= sum(stage.minimum_requests for stage in canaries) <= 1003
    assert sum(stage.minimum_seconds for stage in canaries) == pytest.approx(6 * 3600)


# -- evidence --------------------------------------------------------------------------------------


def test_the_line_says_what_happened_against_which_limit_and_by_which_contract():
    found = reading("error_rate", seen(requests=410, errors=24))
    assert found.state == "tripped"
    assert found.line == (
        f"error rate 24 of 410 (5.85%) against a limit of 0.02: log e {found.figures['log_evidence']:.3g} >= 4.38; "
        f"registered under contract sha256:{short(SPEC.contract_digest)}"
    )
    assert found.figures["needed"] == pytest.approx(math.log(4 / 0.05))
    page = (Path(__file__).parents[2] / "docs" / "rollouts.md").read_text()
    assert f"    {found.line}\n" in page, "the page shows a line that is really printed"
    quiet = reading("error_rate", seen(requests=410, errors=8))
    assert quiet.state == "quiet" and " < 4.38;" in quiet.line
    assert reading("error_rate", seen(requests=0)).state == "quiet"
    json.dumps(
        evaluate(SPEC, AT, seen(requests=10**6), 0).to_json(), allow_nan=False
    )  # log e is minus infinity


def test_evidence_has_the_reference_value():
    alone = make_spec("canary.abandon_rate.point <= 0.05")
    found = reading("abandon_rate", seen(requests=5000, abandons=300), spec=alone)
    assert found.figures["log_evidence"] == pytest.approx(3.054552, abs=1e-6)
    assert found.state == "tripped", "ln 20 is 2.996, and nobody else shares it"
    assert reading("abandon_rate", seen(requests=5000, abandons=300)).state == "quiet", (
        "it shares with three others"
    )


def test_abandons_are_of_answers_that_users_saw():
    both = joined(seen(requests=200, abandons=30), seen(SHADOW, requests=100_000))
    assert reading("abandon_rate", both).figures["trials"] == 200
    assert reading("error_rate", both).figures["trials"] == 100_200, "an error is one, seen or not"


def test_one_incident_trips_and_none_is_not_never():
    assert reading("safety_incidents", seen(requests=50, incidents=1)).state == "tripped"
    assert reading("safety_incidents", seen(SHADOW, requests=50, incidents=1)).state == "tripped"
    found = reading("safety_incidents", seen(requests=5000))
    assert found.state == "quiet" and "none in 5000 still allows a rate of 0.0006" in found.line


def test_a_latency_percentile_is_a_share_above_its_limit():
    found = reading("latency_p95_ms", seen(requests=400, slow=60))
    assert found.state == "tripped" and found.line.startswith("latency above 950 ms 60 of 400")
    # x_(ceil(0.95 n)) <= 950 as long as at most n - ceil(0.95 n) are above it.
    assert reading("latency_p95_ms", seen(requests=100, slow=5)).holds is True
    assert reading("latency_p95_ms", seen(requests=100, slow=6)).holds is False
    assert reading("latency_p95_ms", seen(requests=99, slow=5)).holds is False
    assert reading("latency_p95_ms", seen(SHADOW, requests=99, slow=50)).holds is None, "no window yet"


def cost_tally(pairs, stage=SMALL):
    tally = Tally(requests=len(pairs), priced=len(pairs))
    for nano, tokens in pairs:
        tally.cost_nano += nano
        tally.tokens += tokens
        tally.cost_squared += nano * nano
        tally.cost_tokens += nano * tokens
        tally.tokens_squared += tokens * tokens
    observation = seen(stage)
    return Observation({Key(stage, "candidate", None): tally}, {}, 0, (), Pairs(), 0, observation.heard_ms)


def test_a_ratio_is_of_sums_and_its_deviation_that_of_the_requests():
    """The same figures from the single requests: e_i = c_i - R t_i / 1000 (reference, section 2.7)."""
    pairs = [(2_600_000 + 9_000 * (n % 37), 90 + n % 51) for n in range(400)]
    found = reading("cost_per_1k_tokens_usd", cost_tally(pairs))
    excess = [c - 0.022 * 1e6 * t for c, t in pairs]
    mean = math.fsum(excess) / 400
    variance = math.fsum((e - mean) ** 2 for e in excess) / 400
    allowed_each = 0.022 * 1e6 * sum(t for _, t in pairs) / 400
    half = sequence_half_width(variance, 400, alpha=0.0125, planned=5000)
    assert found.figures["ratio"] == pytest.approx(1e-6 * sum(c for c, _ in pairs) / sum(t for _, t in pairs))
    assert found.figures["excess_low"] == pytest.approx((mean - half) / allowed_each, rel=1e-9)
    assert found.state == "tripped" and found.holds is False
    few = reading("cost_per_1k_tokens_usd", cost_tally(pairs[:199]))
    assert few.state == "quiet" and "silent before 200" in few.line
    cheap = reading("cost_per_1k_tokens_usd", cost_tally([(1_000_000, 100)] * 500))
    assert cheap.state == "quiet" and cheap.holds is True
    exact = reading("cost_per_1k_tokens_usd", cost_tally([(2_200_000, 100)] * 500))
    assert exact.holds is True and exact.state == "quiet", "at the limit is within it"


COMPARE = ComparisonTrigger(name="errors-vs-control", measure="error", margin=0.01)


def arms(stage, candidate, control):
    return joined(
        seen(stage, requests=candidate[1], errors=candidate[0]),
        seen(stage, "control", requests=control[1], errors=control[0]),
    )


def test_a_comparison_is_with_control_in_the_same_stage():
    spec = make_spec(triggers=(COMPARE,))
    found = reading(COMPARE.name, arms(LARGE, (250, 2500), (110, 2500)), spec=spec)
    assert found.state == "tripped" and found.figures["difference"] == pytest.approx(0.056)
    assert found.line.startswith(
        "error rate +5.60 points against control (2500 and 2500 requests), at least +"
    )
    assert reading(COMPARE.name, arms(LARGE, (150, 2500), (110, 2500)), spec=spec).state == "quiet"
    a_little = arms(LARGE, (175, 2500), (110, 2500))
    found = reading(COMPARE.name, a_little, spec=spec)
    assert 0 < found.figures["low"] < COMPARE.margin and found.state == "quiet", (
        "worse, and not by more than is allowed"
    )
    few = reading(COMPARE.name, arms(LARGE, (190, 199), (0, 2500)), spec=spec)
    assert few.state == "quiet" and "silent before 200 requests" in few.line
    assert "nothing to compare" in reading(COMPARE.name, seen(requests=10), spec=spec).line
    # At night there are more errors, and the share is larger at night: pooled, the candidate would look worse.
    day, night = arms(SMALL, (10, 500), (190, 9500)), arms(LARGE, (600, 3000), (600, 3000))
    found = reading(COMPARE.name, joined(day, night), spec=spec)
    assert found.figures["difference"] == pytest.approx(0) and found.state == "quiet"
    pooled = difference([(Moments.of_rate(610, 3500), Moments.of_rate(790, 12_500))])
    assert pooled.value > 0.1


def test_a_comparison_of_mean_latencies():
    trigger = ComparisonTrigger(name="slower", measure="latency", margin=20)
    spec = make_spec(triggers=(trigger,))

    def side(arm, values):
        micro = [round(v * 1000) for v in values]
        return seen(
            LARGE, arm, requests=len(micro), timed=len(micro),
            latency_us=sum(micro), latency_us_squared=sum(m * m for m in micro),
        )  # fmt: skip

    slow, fast = [400 + n % 200 for n in range(1000)], [300 + n % 200 for n in range(1000)]
    found = reading("slower", joined(side("candidate", slow), side("control", fast)), spec=spec)
    assert found.state == "tripped" and found.line.startswith("mean latency +100.0 ms against control")
    other = reading("slower", joined(side("candidate", fast), side("control", slow)), spec=spec)
    assert other.state == "quiet" and other.figures["difference"] == pytest.approx(-100)


counts = st.tuples(st.integers(0, 300), st.integers(300, 3000))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(counts, counts), min_size=1, max_size=3))
def test_swapping_the_arms_turns_the_difference_around(strata):
    """With equal arms exactly; otherwise weights follow the candidate, and only within a stratum."""
    for a, b in strata:
        one = difference([(Moments.of_rate(*a), Moments.of_rate(*b))])
        other = difference([(Moments.of_rate(*b), Moments.of_rate(*a))])
        assert one.value == pytest.approx(-other.value) and one.variance == pytest.approx(other.variance)
    equal = [(Moments.of_rate(a[0], 1000), Moments.of_rate(b[0], 1000)) for a, b in strata]
    swapped = difference([(b, a) for a, b in equal])
    assert difference(equal).value == pytest.approx(-swapped.value)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4000), st.data())
def test_evidence_grows_with_events_and_late_feedback_only_adds_to_it(requests, data):
    fewer = data.draw(st.integers(0, requests))
    more = data.draw(st.integers(fewer, requests))
    low, high = (
        reading("abandon_rate", seen(requests=requests, abandons=count)).figures["log_evidence"]
        for count in (fewer, more)
    )
    assert low <= high


# -- health ----------------------------------------------------------------------------------------


def test_silence_holds_and_speaks_for_itself():
    since = AT.since_ms
    late = reading("no-data", seen(), now_ms=since + 901_000)
    assert late.state == "hold" and late.line.startswith("nothing was heard of the candidate for 901 s")
    assert reading("no-data", seen(), now_ms=since + 899_000).state == "quiet"
    assert reading("no-data", seen(heard_ms=since + 800_000), now_ms=since + 901_000).state == "quiet"
    assert reading("no-data", seen(heard_ms=since - 901_000), now_ms=since + 10).state == "quiet", (
        "the stage has just begun"
    )
    assert reading("no-data", seen(heard_ms=since + 99), now_ms=since).state == "quiet", (
        "a clock that went back"
    )
    gated = fold(SPEC, entries_of(history(SPEC, GATED)))
    assert reading("no-data", seen(), state=gated, now_ms=10**9).state == "quiet"


def test_a_split_that_was_not_meant_is_invalid():
    meant = {(LARGE, "candidate"): 50_000, (LARGE, "control"): 50_200}
    assert reading("sample-ratio", seen(units=meant)).state == "quiet"
    other = {**meant, (SMALL, "candidate"): 700, (SMALL, "control"): 9_500}  # 6.9 %, meant are 5 %
    found = reading("sample-ratio", seen(units=other))
    assert found.state == "invalid"
    assert found.line.startswith("700 and 9500 users at canary 5 %, 5.00% should be the candidate's: log e ")
    sampled = make_spec(control_sampling=0.1)
    as_meant = {(SMALL, "candidate"): 500, (SMALL, "control"): 950}
    assert reading("sample-ratio", seen(units=as_meant), spec=sampled).state == "quiet"
    assert reading("sample-ratio", seen(units=as_meant)).state == "invalid"
    assert reading("sample-ratio", seen()).line == "no units were seen yet"


def test_a_misplaced_request_holds():
    found = reading("exposure", seen(misplaced=1))
    assert found.state == "hold" and found.line.endswith("0 are allowed: a")


# -- steps -----------------------------------------------------------------------------------------

ENOUGH = {"requests": 60, "heard_ms": 100_000}


def facts(observation, *, spec=SPEC, state=AT, now_ms=100_000):
    return Facts(now_ms, observation, evaluate(spec, state, observation, now_ms))


def test_advancing_needs_requests_time_and_quiet():
    assert allowed(SPEC, AT, "advance", facts(seen(**ENOUGH))).ok
    short_of = allowed(
        SPEC, AT, "advance", facts(seen(**{**ENOUGH, "requests": 49}), now_ms=AT.since_ms + 36_000)
    )
    assert short_of.reasons == ("49 of 50 requests at canary 5 %", "0.01 of 0.02 hours at canary 5 %")
    held = fold(SPEC, entries_of([*history(SPEC, SMALL), Held(reason="lunch", by="ana")]))
    assert allowed(SPEC, held, "advance", facts(seen(**ENOUGH), state=held)).reasons == ("it is held: lunch",)
    silent = allowed(SPEC, AT, "advance", facts(seen(requests=60), now_ms=10**7))
    assert "no-data: nothing was heard" in silent.reasons[0]
    bad = allowed(SPEC, AT, "advance", facts(seen(**ENOUGH, incidents=1)))
    assert "safety_incidents: 1 safety incidents in 60 requests" in bad.reasons[0]


def test_production_needs_the_contract_s_points_over_the_whole_window():
    spec = make_spec()
    state = fold(spec, entries_of(history(spec, LARGE)))
    good = joined(
        seen(LARGE, requests=100, abandons=5, heard_ms=100_000), seen(SMALL, requests=100, abandons=5)
    )
    assert allowed(spec, state, "advance", facts(good, state=state)).ok
    worse = joined(
        seen(LARGE, requests=100, abandons=5, heard_ms=100_000), seen(SMALL, requests=100, abandons=6)
    )
    found = allowed(spec, state, "advance", facts(worse, state=state))
    assert not found.ok and "rule does not hold: abandon rate 11 of 200" in found.reasons[0]
    # Between canaries a point above its limit means nothing yet.
    at_small = joined(seen(SMALL, requests=100, abandons=9, heard_ms=100_000))
    assert allowed(spec, AT, "advance", facts(at_small)).ok
    assert window_stages(spec) == (SMALL, LARGE)


def test_the_shadow_stage_may_ask_for_verdicts():
    spec = make_spec(shadow={"judge": "j", "minimum_pairs": 40, "least_win_rate": 0.45})
    state = fold(spec, entries_of(history(spec, SHADOW)))

    def ask(pairs):
        observation = seen(SHADOW, requests=50, heard_ms=100_000, pairs=pairs)
        return allowed(spec, state, "advance", facts(observation, spec=spec, state=state)).reasons

    assert ask(Pairs(shadow=20, unknown=30)) == ("20 of 40 judged pairs",)
    assert ask(Pairs(shadow=10, tie=10, production=30)) == (
        "a win rate of 0.300 over 50 pairs, 0.45 is needed",
    )
    assert ask(Pairs(shadow=20, tie=10, production=20)) == ()


ACTIONS = ("start", "advance", "hold", "resume", "abort", "rollback", "clear", "complete")


@pytest.mark.parametrize(
    ("events", "possible"),
    [
        ([], {"abort"}),
        ([go(SPEC)], {"start", "abort"}),
        ([go(SPEC, outcome="NO-GO")], {"abort"}),
        (history(SPEC, SMALL), {"advance", "hold", "abort", "rollback"}),
        ([*history(SPEC, SMALL), Held(reason="x")], {"resume", "abort", "rollback"}),
        (
            [*history(SPEC, SMALL), Held(reason="x", trigger="no-data")],
            {"hold", "resume", "abort", "rollback"},
        ),
        ([*history(SPEC, SMALL), Held(reason="x", invalid=True)], {"abort", "rollback"}),
        ([*history(SPEC, SMALL), Tripped(trigger="t", line="l", epoch=5)], {"clear"}),
        ([*history(SPEC, SMALL), RolledBack(reason="l", epoch=5), Cleared(reason="seen")], set()),
        ([*history(SPEC, SMALL), Aborted(reason="l", epoch=5)], set()),
        (history(SPEC, LAST), {"hold", "abort", "rollback", "complete"}),
        ([*history(SPEC, LAST), Completed()], set()),
    ],
)
def test_what_may_be_done_where(events, possible):
    state = fold(SPEC, entries_of(events))
    stage = SMALL if state.stage is None else state.stage
    now = facts(seen(stage, requests=500, heard_ms=200_000), state=state, now_ms=200_000)
    found = {action: allowed(SPEC, state, action, now) for action in ACTIONS}
    assert {action for action, permission in found.items() if permission.ok} == possible
    assert all(permission.reasons for permission in found.values() if not permission.ok)
    # What is allowed has its effect, and what is not changes nothing, whoever writes the event.
    effects = {
        "start": Started(epoch=9),
        "resume": Resumed(),
        "abort": Aborted(reason="x", epoch=9),
        "rollback": RolledBack(reason="x", epoch=9),
        "clear": Cleared(reason="x"),
        "hold": Held(reason="y", by="ana"),
        "complete": Completed(),
        "advance": Advanced(to=(state.stage or 0) + 1, epoch=9),
    }
    for action, event in effects.items():
        after = fold(SPEC, entries_of([*events, event]))
        if action in possible:
            assert not after.ignored, action
        elif action != "rollback" or state.end != "rolled_back":  # which confirms the trip's
            assert after.ignored, action


def test_control_s_next_step():
    auto = make_spec(auto_advance=True)
    quiet = seen(**ENOUGH)
    assert next_step(SPEC, AT, facts(quiet)) is None, "a person advances"
    step = next_step(auto, AT, facts(quiet, spec=auto))
    assert step.action == "advance" and step.reason == "60 of 50 requests, 0.026 of 0.017 hours"
    assert next_step(auto, AT, facts(seen(requests=10, heard_ms=1), spec=auto)) is None

    tripping = seen(requests=60, incidents=1, misplaced=1)
    step = next_step(auto, AT, facts(tripping, spec=auto, now_ms=10**8))
    assert (step.action, step.trigger) == ("trip", "safety_incidents"), "before everything else"
    split = {(SMALL, "candidate"): 700, (SMALL, "control"): 9_500}
    step = next_step(SPEC, AT, facts(seen(units=split, misplaced=1)))
    assert (step.action, step.trigger) == ("invalid", "sample-ratio")
    step = next_step(SPEC, AT, facts(seen(misplaced=1)))
    assert (step.action, step.trigger) == ("hold", "exposure")

    by_trigger = fold(SPEC, entries_of([*history(SPEC, SMALL), Held(reason="x", trigger="no-data")]))
    by_person = fold(SPEC, entries_of([*history(SPEC, SMALL), Held(reason="x", by="ana")]))
    invalid = fold(SPEC, entries_of([*history(SPEC, SMALL), Held(reason="x", trigger="s", invalid=True)]))
    assert next_step(SPEC, by_trigger, facts(quiet, state=by_trigger)).action == "resume"
    assert next_step(SPEC, by_trigger, facts(seen(misplaced=1), state=by_trigger)) is None
    assert next_step(SPEC, by_person, facts(quiet, state=by_person)) is None
    assert next_step(SPEC, invalid, facts(seen(units=split), state=invalid)) is None
    assert next_step(SPEC, by_person, facts(tripping, state=by_person)).action == "trip", (
        "a hold protects nobody"
    )

    last = fold(SPEC, entries_of(history(SPEC, LAST)))
    assert next_step(SPEC, last, facts(seen(LAST, heard_ms=100_000), state=last)).action == "complete"
    over = fold(SPEC, entries_of([*history(SPEC, SMALL), Tripped(trigger="t", line="l", epoch=5)]))
    assert next_step(SPEC, over, facts(tripping, state=over)) is None
    assert progress(SPEC, over, facts(quiet, state=over)) == "ROLLED_BACK: l"


def test_late_feedback_after_an_advance_still_trips():
    from tests.rollouts.rollout_world import EPOCHS, make_feedback, make_traffic

    observer = Observer(SPEC, EPOCHS[:3])
    rows = make_traffic(SPEC, SMALL, 6000, abandon=0.0)
    observer.add(rows)
    assert reading("abandon_rate", observer.observation()).state == "quiet"
    observer.enter(5, LARGE)
    state = fold(SPEC, entries_of(history(SPEC, LARGE)))
    theirs = [row for row in rows if row["kind"] == "end" and row["lane"] == "canary"]
    assert len(theirs) > 200
    observer.add([make_feedback(row["id"], "abandon") for row in theirs[: len(theirs) // 4]])
    assert reading("abandon_rate", observer.observation(), state=state).state == "tripped"


def test_every_kind_of_trigger_reads_back():
    from posttrain.rollouts.records import RolloutSpec

    extra = (
        COMPARE,
        NoDataTrigger(name="n", seconds=5),
        RateTrigger(name="dear", measure="cost", limit=0.5, above=0.03),
        RatioTrigger(name="ratio", limit=0.02),
    )
    spec = make_spec(triggers=(*SPEC.triggers, *extra))
    assert RolloutSpec.from_json(spec.to_bytes()) == spec and spec.alpha_each == pytest.approx(0.05 / 7)
    dear = seen(requests=400, priced=400)
    dear.tallies[Key(SMALL, "candidate", None)].above[("cost", 0.03)] = 300
    found = reading("dear", dear, spec=spec)
    assert found.state == "tripped" and found.line.startswith("cost above $0.03 per 1,000 tokens 300 of 400")
    for wrong in (
        {"measure": "latency"},
        {"measure": "error", "above": 3.0},
    ):
        with pytest.raises(ValueError, match="above"):
            RateTrigger(name="x", limit=0.1, **wrong)
        if wrong["measure"] == "error":
            with pytest.raises(ValueError, match="above"):
                ComparisonTrigger(name="x", **wrong)
