"""Rules about traffic: judged at the end of a window, tripped at any time, invalid where the split was not as meant."""

from __future__ import annotations

import pytest

from posttrain.evaluation.outcomes import Arm, OutcomeRow, Outcomes
from posttrain.promotion.errors import GateError
from tests.promotion.worlds import check, decide, plain, report, traffic

ABANDON = "canary.abandon_rate.point <= 0.05"


def test_a_window_is_judged_at_its_end():
    candidate = plain([True])
    assert check(ABANDON, candidate, canary=traffic()).verdict == "PASS"
    short = check(ABANDON, candidate, canary=traffic(hours=5))
    assert short.verdict == "INCONCLUSIVE" and "5.0 of 24 hours" in short.decision
    few = check(ABANDON, candidate, canary=traffic(3000))
    assert few.verdict == "INCONCLUSIVE" and few.needed == 5000 and "3000 of 5000 requests" in few.decision
    assert check("canary_min_n: 3000\n" + ABANDON, candidate, canary=traffic(3000)).verdict == "PASS"
    # A point a little above the limit on half a window says nothing yet; at its end it fails.
    above = [index % 19 == 7 for index in range(5200)]
    assert check(ABANDON, candidate, canary=traffic(3000, abandoned=above)).verdict == "INCONCLUSIVE"
    assert check(ABANDON, candidate, canary=traffic(abandoned=above)).verdict == "FAIL"


def test_evidence_trips_at_any_time_and_stays_tripped():
    bad = [index < 2000 and index % 8 == 0 for index in range(5200)]  # 12 % early on, 4.8 % over all
    found = check(ABANDON, plain([True]), canary=traffic(abandoned=bad))
    assert found.value < 0.05 and found.verdict == "FAIL" and "tripped at request" in found.decision
    early = check(ABANDON, plain([True]), canary=traffic(600, abandoned=bad[:600]))
    assert early.verdict == "FAIL" and early.needed is None


def test_triggers_share_the_error_and_a_latency_is_a_rate_above_its_limit():
    text = f"{ABANDON}\ncanary.latency_p95_ms.point <= 950\ncanary.safety_incidents.count == 0"
    one, two = check(ABANDON, plain([True]), canary=traffic()), decide(text, plain([True]), canary=traffic())
    assert "trips at 2.996" in one.notes[0]  # ln 20
    assert "trips at 3.689" in two.rules[0].checks[0].notes[0]  # ln 40
    assert two.rules[1].verdict == "PASS"
    slow = check("canary.latency_p95_ms.point <= 950", plain([True]), canary=traffic(3000, slow_ms=990.0))
    assert slow.verdict == "FAIL" and "tripped" in slow.decision  # 7 % above, 5 % allowed


def test_a_count_trips_at_once_and_none_is_not_never():
    rule = "canary.safety_incidents.count == 0"
    assert check(rule, plain([True]), canary=traffic(100, incidents=1)).verdict == "FAIL"
    assert check(rule, plain([True]), canary=traffic(100)).verdict == "INCONCLUSIVE"
    found = check(rule, plain([True]), canary=traffic(5000))
    assert found.verdict == "PASS" and found.notes == (
        "none in 5000 still allows a rate of 0.0006 (one-sided 95 %)",
    )


def test_traffic_that_was_split_otherwise_is_invalid_whatever_it_shows():
    decision = decide(ABANDON, plain([True]), canary=traffic(units=(5200, 4700)))
    assert decision.outcome == "INVALID" and decision.exit_code == 2
    assert decision.rules[0].verdict == "PASS" and "sample ratio mismatch" in decision.notes[0]
    assert not decision.sample_ratio.valid
    alone = traffic()
    unsplit = report(_rows_of(alone), lane="canary", arms=(Arm(name="shadow", weight=1, units=5200),))
    assert "not checked" in decide(ABANDON, plain([True]), canary=unsplit).notes[0]


def _rows_of(outcomes: Outcomes) -> list[OutcomeRow]:
    return [
        OutcomeRow(
            outcomes.case_ids[outcomes.case[row]],
            "traffic",
            0,
            None,
            None,
            {
                name: series.values[row].item()
                for name, series in outcomes.metrics.items()
                if series.present[row]
            },
        )
        for row in range(len(outcomes))
    ]


def test_traffic_without_times_has_no_order():
    timeless = report(
        [row._replace(metrics={**row.metrics, "at_ms": None}) for row in _rows_of(traffic(50))], lane="canary"
    )
    assert "order of requests" in check(ABANDON, plain([True]), canary=timeless).decision


def test_reports_in_the_wrong_place_are_refused():
    with pytest.raises(GateError, match="candidate is a report of traffic"):
        decide("success@1.point >= 0", traffic(10))
    with pytest.raises(GateError, match="baseline is a report of traffic"):
        decide("success@1.point >= 0", plain([True]), traffic(10))
    with pytest.raises(GateError, match="not of traffic"):
        decide("success@1.point >= 0", plain([True]), canary=plain([True]))
