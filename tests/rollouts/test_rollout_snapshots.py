"""From a state to what workers serve."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.rollouts.errors import RolloutError
from posttrain.rollouts.events import Aborted, Completed, RolledBack, Tripped
from posttrain.rollouts.fold import RolloutState, fold
from posttrain.rollouts.snapshots import snapshot_for
from posttrain.routing.records import Arm, Experiment, Route, Upstream
from tests.rollouts.rollout_world import (
    CANDIDATE,
    GATED,
    LARGE,
    LAST,
    NEW,
    PRODUCTION,
    SHADOW,
    SMALL,
    STAGES,
    entries_of,
    history,
    make_snapshot,
    make_spec,
    route_at,
)

SPEC = make_spec()
AT = "2026-11-25T12:00:00Z"


def state_at(stage, *events):
    return fold(SPEC, entries_of([*history(SPEC, stage), *events]))


@pytest.mark.parametrize("stage", [GATED, SHADOW, SMALL, LARGE, LAST])
def test_each_stage_has_its_shares(stage):
    before = make_snapshot()
    made = snapshot_for(before, SPEC, state_at(stage), at=AT)
    assert made.route("chat") == route_at(SPEC, stage) and made.epoch == before.epoch + 1 and made.at == AT
    assert made.reason == f"rollout r-1: {STAGES[stage].label}"
    assert made.route("other") == before.route("other") and made.upstreams == before.upstreams


@settings(max_examples=30, deadline=None)
@given(st.integers(SHADOW, LAST), st.sampled_from(["trip", "person", "abort"]))
def test_back_is_exactly_what_was_before(stage, how):
    """Through all stages one snapshot after another, then back: the route is the one of the beginning."""
    snapshot = before = make_snapshot()
    for reached in range(stage + 1):
        snapshot = snapshot_for(snapshot, SPEC, state_at(reached), at=AT)
    end = {
        "trip": Tripped(trigger="t", line="bad", epoch=50),
        "person": RolledBack(reason="bad", epoch=50),
        "abort": Aborted(reason="bad", epoch=50),
    }[how]
    made = snapshot_for(snapshot, SPEC, state_at(stage, end), at=AT)
    assert made.routes == before.routes and made.epoch == before.epoch + stage + 2
    assert made.reason.endswith("bad")
    again = snapshot_for(made, SPEC, state_at(stage, end), at=AT)
    assert again.routes == made.routes, "doing it again after a crash changes nothing but the epoch"


def test_completed_is_the_candidate_alone():
    made = snapshot_for(make_snapshot(), SPEC, state_at(LAST, Completed()), at=AT)
    assert made.route("chat") == Route(model="chat", production=CANDIDATE)


def test_upstreams_are_added_and_never_taken_out():
    new = Upstream(name="c", url="http://127.0.0.1/c")
    made = snapshot_for(
        make_snapshot(), SPEC, state_at(SHADOW), at=AT, upstreams=(new, new.model_copy(update={"name": "a"}))
    )
    assert [upstream.name for upstream in made.upstreams] == ["a", "b", "c"]
    assert made.upstreams[0] == make_snapshot().upstreams[0], "a known name is not given another address"
    elsewhere = make_spec(candidate=CANDIDATE.model_copy(update={"upstreams": ("c",)}))
    with pytest.raises(ValueError, match="'c'"):
        snapshot_for(make_snapshot(), elsewhere, state_at(SHADOW), at=AT)
    assert (
        snapshot_for(make_snapshot(), elsewhere, state_at(SHADOW), at=AT, upstreams=(new,))
        .route("chat")
        .shadow
    )


def test_an_experiment_goes_on_until_its_production_is_replaced():
    arms = (Arm(name="a", weight=1, target=PRODUCTION), Arm(name="b", weight=1, target=PRODUCTION))
    route = Route(model="chat", production=PRODUCTION, experiment=Experiment(name="x", arms=arms))
    made = snapshot_for(make_snapshot(route), SPEC, state_at(SMALL), at=AT)
    assert made.route("chat").experiment == route.experiment and made.route("chat").canary.share == 500
    assert snapshot_for(make_snapshot(route), SPEC, state_at(LAST), at=AT).route("chat").experiment is None
    by_talk = make_snapshot(route.model_copy(update={"unit": "conversation"}))
    with pytest.raises(RolloutError, match="splits the experiment 'x' by conversation"):
        snapshot_for(by_talk, SPEC, state_at(SMALL), at=AT)


def test_one_rollout_a_route():
    taken = make_snapshot(route_at(make_spec(id="r-0"), SMALL))
    with pytest.raises(RolloutError, match="in the rollout 'r-0'"):
        snapshot_for(taken, SPEC, state_at(SHADOW), at=AT)


def test_where_nothing_serves_yet():
    people = {"kind": "recorded", "answers": NEW, "name": "support"}
    spec = make_spec(route="new", production=None, baseline=people, stages=(STAGES[0], STAGES[1], STAGES[-1]))

    def state(stage, *events):
        return fold(spec, entries_of([*history(spec, stage), *events]))

    before = make_snapshot()
    with pytest.raises(RolloutError, match="no route 'new' yet"):
        snapshot_for(before, spec, RolloutState(), at=AT)
    assert snapshot_for(before, spec, state(1), at=AT).route("new") is None, (
        "answers are compared, none is given"
    )
    serving = snapshot_for(before, spec, state(2), at=AT)
    assert serving.route("new").production == CANDIDATE
    back = snapshot_for(serving, spec, state(2, Tripped(trigger="t", line="bad", epoch=50)), at=AT)
    assert back.routes == before.routes
