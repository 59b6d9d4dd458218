"""False rollbacks and detections, against the reference and against simulated rollouts; the plan."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from posttrain.cli.rollout import rollout
from posttrain.promotion.grammar import parse_contract
from posttrain.rollouts.detection import (
    boundary,
    comparison_detection,
    count_detection,
    looks_of,
    rate_detection,
    ratio_detection,
)
from posttrain.rollouts.observe import Key, Observation, Pairs, Tally
from posttrain.rollouts.plan import STAGING_RULES, make_plan
from posttrain.rollouts.plan_text import render_plan
from posttrain.rollouts.records import ComparisonTrigger
from posttrain.rollouts.triggers import evaluate
from posttrain.statistics.sequential import log_evidence, rate_trip
from tests.rollouts.rollout_world import LARGE, entries_of, history, make_spec

HOURLY = looks_of(5000, 24)


def within(count, repeats, chance, level=1e-4):
    """Whether a simulated count fits an exact chance: the tolerance is its binomial error."""
    return stats.binomtest(int(count), repeats, min(1.0, max(0.0, chance))).pvalue > level


@pytest.mark.parametrize(
    ("rate", "low", "high", "median"),
    [
        (0.03, 0, 0.0005, None),
        (0.04, 0, 0.002, None),
        (0.045, 0, 0.002, None),
        (0.05, 0.009, 0.013, None),
        (0.06, 0.58, 0.63, 4167),
        (0.07, 0.998, 1.0, 1042),
    ],
)
def test_the_reference_of_section_2_8(rate, low, high, median):
    """Abandon limit 5 %, 24 hourly looks, 5,000 requests; <=4.5 % .002, 5 % .011, 6 % .60, 7 % .999, median 1,040."""
    found = rate_detection(0.05, rate, alpha=0.05, looks=HOURLY)
    assert low <= found.probability <= high and found.median == median


@pytest.mark.parametrize("rate", [0.05, 0.06, 0.07])
def test_the_exact_chance_is_that_of_simulated_rollouts(rate):
    """Simulated by the code that a running rollout uses: looks after every request, 2,000 rollouts of 1,500."""
    repeats, requests = 2000, 1500
    generator = np.random.default_rng(8)
    paths = np.cumsum(generator.random((repeats, requests)) < rate, axis=1)
    looks = looks_of(requests)
    bounds = np.asarray(boundary(0.05, 0.05, looks))
    fired = (paths >= bounds).any(axis=1)
    found = rate_detection(0.05, rate, alpha=0.05, looks=looks)
    assert within(fired.sum(), repeats, found.probability)
    for path in paths[:20]:
        outcomes = np.diff(path, prepend=0).astype(bool)
        trip = rate_trip(outcomes, 0.05, alpha=0.05)
        assert (trip.at is not None) == bool((path >= bounds).any())


def test_the_boundary_is_where_evidence_begins_to_be_enough():
    looks = looks_of(700)
    for look, bound in zip(looks, boundary(0.02, 0.0125, looks), strict=True):
        if bound <= look:
            assert log_evidence(bound, look, 0.02) >= math.log(80) > log_evidence(bound - 1, look, 0.02)
        else:
            assert log_evidence(look, look, 0.02) < math.log(80)


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.3])
def test_no_way_of_looking_rolls_back_too_often(limit):
    """At the limit, looking after each of 5,000 requests: optional stopping costs nothing. Fewer looks fire less."""
    often = rate_detection(limit, limit, alpha=0.05, looks=looks_of(5000))
    seldom = rate_detection(limit, limit, alpha=0.05, looks=HOURLY)
    assert seldom.probability < often.probability <= 0.05
    assert list(often.fired) == sorted(often.fired)


def test_a_stopping_rule_that_peeks_is_still_held_to_alpha():
    """An engineer who looks whenever the rate looks worst, and would report only that look."""
    repeats, generator, fired = 3000, np.random.default_rng(3), 0
    for _ in range(repeats):
        path = np.cumsum(generator.random(800) < 0.05)
        trials = np.arange(1, 801)
        worst = 20 + int(np.argmax((path / trials)[20:]))
        fired += log_evidence(path[worst], trials[worst], 0.05) >= math.log(20)
    assert stats.binomtest(fired, repeats, 0.05, alternative="greater").pvalue > 1e-4


@pytest.mark.slow
def test_the_reference_by_many_simulated_rollouts():
    """Section 2.8 as it was measured: whole rollouts of 5,000 requests, 24 looks, the naive rules beside ours."""
    repeats, generator = 40_000, np.random.default_rng(1)
    looks = np.asarray(HOURLY)
    bounds = np.asarray(boundary(0.05, 0.05, HOURLY))
    naive = {}
    for rate in (0.03, 0.04, 0.045, 0.05, 0.06, 0.07):
        steps = np.diff(looks, prepend=0)
        paths = np.cumsum(generator.binomial(steps, rate, (repeats, len(looks))), axis=1)
        fired = (paths >= bounds).any(axis=1).sum()
        assert within(fired, repeats, rate_detection(0.05, rate, alpha=0.05, looks=HOURLY).probability)
        naive[rate] = ((paths / looks) > 0.05).any(axis=1).mean()
    assert naive[0.03] == pytest.approx(0.065, abs=0.02)
    assert naive[0.04] == pytest.approx(0.31, abs=0.03)
    assert naive[0.045] == pytest.approx(0.57, abs=0.03), "the naive point rule rolls back half of the good"


# -- two arms --------------------------------------------------------------------------------------


def test_two_arms_have_the_reference_error_and_power():
    """2,500 + 2,500, 25 looks: false rollback .0095, 4.5 % against 7 % .89. Simulated there and here."""
    looks = tuple(range(100, 2501, 100))
    same = comparison_detection((0.045, 0.045), alpha=0.05, looks=looks, planned=5000)
    worse = comparison_detection((0.07, 0.045), alpha=0.05, looks=looks, planned=5000)
    assert same.probability == pytest.approx(0.0095, abs=0.006)  # 2.6 standard errors of both simulations
    assert worse.probability == pytest.approx(0.89, abs=0.02)
    assert all(chance == 0 for look, chance in zip(looks, same.fired, strict=True) if look < 200)


def simulate_arms(repeats, rates, seed):
    """How many of ``repeats`` rollouts the trigger itself stops, looked at 25 times."""
    trigger = ComparisonTrigger(name="abandons", measure="abandon")
    spec = make_spec(triggers=(trigger,))
    state = entries = None
    from posttrain.rollouts.fold import fold

    entries = entries_of(history(spec, LARGE))
    state = fold(spec, entries)
    generator, stopped = np.random.default_rng(seed), 0
    for _ in range(repeats):
        paths = [np.cumsum(generator.binomial(100, rate, 25)) for rate in rates]
        for look in range(25):
            tallies = {
                Key(LARGE, arm, None): Tally(requests=100 * (look + 1), abandons=int(path[look]))
                for arm, path in zip(("candidate", "control"), paths, strict=True)
            }
            observation = Observation(tallies, {}, 0, (), Pairs(), 0, None)
            if evaluate(spec, state, observation, 0).tripped:
                stopped += 1
                break
    return stopped


def test_a_a_rollouts_are_seldom_stopped_and_their_twins_as_seldom():
    """The same model on both sides, either way round."""
    stopped = simulate_arms(250, (0.045, 0.045), seed=5)
    assert stats.binomtest(stopped, 250, 0.05, alternative="greater").pvalue > 1e-3
    exact = comparison_detection((0.07, 0.045), alpha=0.05, looks=tuple(range(100, 2501, 100)), planned=5000)
    assert within(simulate_arms(120, (0.07, 0.045), seed=6), 120, exact.probability)


@pytest.mark.slow
def test_many_a_a_rollouts():
    stopped = simulate_arms(4000, (0.045, 0.045), seed=7)
    looks = tuple(range(100, 2501, 100))
    exact = comparison_detection((0.045, 0.045), alpha=0.05, looks=looks, planned=5000)
    assert abs(stopped / 4000 - exact.probability) < 0.008 and stopped / 4000 < 0.05


def test_ratios_and_counts():
    at_limit = ratio_detection(0.0, 0.5, alpha=0.05, looks=looks_of(5000, 100), planned=5000)
    dear = ratio_detection(0.05, 0.5, alpha=0.05, looks=looks_of(5000, 100), planned=5000)
    assert at_limit.probability < 0.05 and dear.probability > 0.99
    assert at_limit == ratio_detection(0.0, 0.5, alpha=0.05, looks=looks_of(5000, 100), planned=5000)
    assert ratio_detection(9.0, 0.5, alpha=0.05, looks=(100,), planned=5000).probability == 0.0
    # P(>=1 incident in 5000): rate 1e-4 39 %, 1e-3 99.3 %.
    assert count_detection(0, 1e-4, looks=(5000,)).probability == pytest.approx(0.39, abs=0.005)
    assert count_detection(0, 1e-3, looks=(5000,)).probability == pytest.approx(0.993, abs=0.001)
    assert count_detection(0, 1e-3, looks=looks_of(5000)).median == 693


def test_looks():
    assert looks_of(5000, 24)[:2] == (208, 417) and looks_of(5000, 24)[-1] == 5000
    assert looks_of(3) == (1, 2, 3) and looks_of(5, 99) == (1, 2, 3, 4, 5)
    assert len(looks_of(1_000_000)) == 5000 and looks_of(1_000_000)[-1] == 1_000_000


# -- the plan --------------------------------------------------------------------------------------


def test_the_plan_of_one_rule_is_the_reference():
    plan = make_plan(parse_contract("canary.abandon_rate.point <= 0.05"), looks=24)
    (trigger,) = plan.triggers
    at = {round(point.value, 4): point for point in trigger.points}
    assert trigger.alpha == 0.05 and trigger.false_rollback == pytest.approx(0.0119, abs=1e-4)
    assert at[0.06].detection.probability == pytest.approx(0.6146, abs=1e-4)
    assert at[0.07].detection.median == 1042
    # The point rule at the end, n = 5000: true 4.5 % .96, 5 % .52, 5.5 % .06.
    assert [at[v].holds for v in (0.045, 0.05, 0.055)] == pytest.approx([0.96, 0.52, 0.06], abs=0.005)
    assert at[0.07].by_stage[-1] == at[0.07].detection.probability
    assert list(at[0.07].by_stage) == sorted(at[0.07].by_stage)


def test_the_plan_says_what_each_stage_takes():
    plan = make_plan(parse_contract(STAGING_RULES))
    assert [(s.label, s.requests, s.hours) for s in plan.stages] == [
        ("shadow 10 %", 500, 1),
        ("canary 1 %", 200, 2),
        ("canary 5 %", 500, 4),
        ("canary 25 %", 1300, 6),
        ("canary 50 %", 3000, 12),
        ("production", 0, 1),
    ]
    assert plan.traffic == 10_000, "the 1 % stage asks for most"
    slow = make_plan(parse_contract(STAGING_RULES), traffic=5000 / 24)
    assert slow.stages[1].hours == pytest.approx(200 / (5000 / 24 / 100)) and slow.stages[1].expected == 200
    few = make_plan(parse_contract("canary_min_n: 7\n" + STAGING_RULES), requests=1000, hours=6)
    assert few.stages[-1].together == 1000 and few.stages[4].hours == 3
    assert few.triggers[0].false_rollback < plan.triggers[0].false_rollback * 1.01


def test_the_command(tmp_path):
    result = CliRunner().invoke(rollout, ["plan"])
    assert result.exit_code == 0
    text = result.output
    assert "none in 5,000 still allows a rate of 0.0006 (one-sided 95 %): one in 1,670" in text
    assert "watched as: at most 0.05 of requests above 950" in text
    assert text == render_plan(make_plan(parse_contract(STAGING_RULES))), "the same twice"
    assert max(map(len, text.splitlines())) <= 120

    contract = tmp_path / "rules.txt"
    contract.write_text(
        "alpha_rollback: 0.01\ncanary.error_rate.point <= 0.02\ncanary.politeness_rate.point >= 0.9\n"
    )
    arguments = ["plan", "--contract", str(contract), "--requests", "400", "--hours", "2", "--looks", "10"]
    text = CliRunner().invoke(rollout, arguments).output
    assert "triggers look 10 times" in text and "share alpha_rollback 0.01" in text
    assert "Judged at the end" in text and "  canary.politeness_rate.point >= 0.9" in text
    value = json.loads(CliRunner().invoke(rollout, [*arguments, "--json"]).output)
    assert value["looks"] == 10 and value["unwatched"] == ["canary.politeness_rate.point >= 0.9"]
    assert value["triggers"][0]["true_values"][3]["value"] == 0.02
    assert CliRunner().invoke(rollout, ["plan", "--requests", "0"]).exit_code == 2
