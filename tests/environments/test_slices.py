"""The shipped slices: their cases, and what scripted policies make of them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable

import pytest

from posttrain.core.canonical import digest_json
from posttrain.core.errors import DataError, UnknownReferenceError
from posttrain.environments import Case, SliceSpec
from posttrain.environments.suites.policies import (
    CrashingPolicy,
    FluentButWrongPolicy,
    PerfectPolicy,
    PolicyCrash,
    RatePolicy,
    SlowPolicy,
    build_policy,
    recorded,
)
from posttrain.environments.suites.slices import SOURCES, build_slice
from posttrain.environments.suites.slices._parts import make_cases, user
from posttrain.evaluation.graders import SliceGraders

NAMES = list(SOURCES)
SPECIFIED = {
    "headache_redflags": "I have a headache, a 102°F fever, and a stiff neck...",
    "math_basic": "Carly has 8 apples, buys 2, sells 5. How many now?",
    "division_hard": "What is 23 ÷ 13?",
    "debug_search_api": "Getting a lot of 500s from debug_search_api logs...",
}


@pytest.fixture(params=NAMES)
def spec(request: pytest.FixtureRequest) -> SliceSpec:
    return build_slice(request.param)


def question(case: Case) -> str:
    return str(case.messages[-1]["content"])


def test_a_slice_has_two_hundred_different_cases(spec: SliceSpec) -> None:
    assert len(spec.cases) == 200
    assert len({case.id for case in spec.cases}) == 200
    assert len({question(case) for case in spec.cases}) == 200
    assert {case.slice for case in spec.cases} == {spec.name}
    assert question(spec.cases[0]) == SPECIFIED[spec.name]
    assert not any("<" in question(case) or "{" in question(case) for case in spec.cases)


def test_a_slice_is_made_of_its_seed(spec: SliceSpec) -> None:
    def identity(made: SliceSpec) -> str:
        return digest_json([[case.id, case.messages, dict(case.expected)] for case in made.cases])

    assert identity(build_slice(spec.name)) == identity(spec)
    assert identity(build_slice(spec.name, seed=1)) != identity(spec)
    assert build_slice(spec.name, cases=30).cases == spec.cases[:30]
    assert pickle.loads(pickle.dumps(spec)) == spec
    json.dumps([dict(config) for config in spec.graders])


def test_the_specifications_own_topics_are_there() -> None:
    spec = build_slice("debug_search_api")
    topics = {case.tags["topic"] for case in spec.cases}
    assert topics == {"debug_search_api", "update_user_profile", "initialize_cache", "gen_report_async"}
    assert {tool.name for tool in spec.tools} == {"search_api", "read_file"}
    for case in spec.cases:
        assert case.tools == ("search_api", "read_file")


def test_what_does_not_exist_is_named() -> None:
    with pytest.raises(UnknownReferenceError) as caught:
        build_slice("math_basics")
    assert caught.value.hint == "did you mean 'math_basic'?"
    with pytest.raises(ValueError, match="ask for fewer"):
        make_cases("same", 0, 2, lambda rng, number: Case("x", "same", user("the same question")))
    with pytest.raises(DataError, match="no policy knows"):
        build_policy(PerfectPolicy()).respond(Case("x", "other", ()), recorded(()))


def test_the_perfect_policy_passes_every_grader(spec: SliceSpec) -> None:
    graders, policy, ask = SliceGraders(spec), build_policy(PerfectPolicy()), recorded(spec.tools)
    try:
        for case in spec.cases:
            answer = policy.respond(case, ask)
            grades = graders.grade(case, answer)
            assert grades.success is True, (case, answer.text, grades.reason)
            assert all(grade.passed for grade in grades.grades.values()), grades
            assert set(grades.metrics) == {metric.name for metric in graders.metrics}
            assert all(call.reply is not None for call in answer.tool_calls)
    finally:
        graders.close()


FAILS = {
    "headache_redflags": {"under_120_words", "triage_rules"},
    "math_basic": {"math", "format"},
    "division_hard": {"value", "steps_right"},
    "debug_search_api": {"version", "deprecation", "rule_summary"},
}


def test_the_fluent_policy_fails_every_case(spec: SliceSpec) -> None:
    graders, policy, ask = SliceGraders(spec), build_policy(FluentButWrongPolicy()), recorded(spec.tools)
    failed: set[str] = set()
    try:
        for case in spec.cases:
            grades = graders.grade(case, policy.respond(case, ask))
            assert grades.success is False, (case, grades)
            failed |= {name for name, grade in grades.grades.items() if grade.passed is False}
            if spec.name == "debug_search_api":
                assert grades.grades["unit_tests"].passed is True, grades
                assert grades.metrics["rule_violations"] == 2
                assert grades.metrics["tool_call_correctness.schema"] is True
    finally:
        graders.close()
    assert failed == FAILS[spec.name]


@pytest.mark.parametrize("name", ["headache_redflags", "math_basic", "division_hard"])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_rate_policy_is_right_at_its_rate(name: str, rate: float) -> None:
    spec = build_slice(name, cases=300)
    graders, ask = SliceGraders(spec), recorded(spec.tools)

    def right(at: float, seed: int = 0) -> set[str]:
        policy = build_policy(RatePolicy(rate=at, seed=seed))
        return {case.id for case in spec.cases if graders.grade(case, policy.respond(case, ask)).success}

    found = right(rate)
    assert abs(len(found) / 300 - rate) < 0.1
    assert found == right(rate)
    assert found <= right(min(1.0, rate + 0.05))
    assert found != right(rate, seed=1)


def test_the_slow_and_the_crashing_policy() -> None:
    spec = build_slice("math_basic")
    ask = recorded(spec.tools)
    case = spec.cases[0]
    assert build_policy(SlowPolicy(seconds=0.01)).respond(case, ask) == build_policy(PerfectPolicy()).respond(
        case, ask
    )
    outcomes = [
        _outcome(lambda c=c: build_policy(CrashingPolicy(rate=0.5)).respond(c, ask)) for c in spec.cases
    ]
    assert set(outcomes) == {"Answer", "PolicyCrash", "TimeoutError"}
    assert 70 < outcomes.count("Answer") < 130
    assert "Answer" not in {
        _outcome(lambda c=c: build_policy(CrashingPolicy()).respond(c, ask)) for c in spec.cases
    }


def _outcome(respond: Callable[[], object]) -> str:
    try:
        return type(respond()).__name__
    except (PolicyCrash, TimeoutError) as error:
        return type(error).__name__
