"""What traffic has shown: the same for the same rows, in any order, in any pieces, once or twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.canonical import digest_bytes
from posttrain.rollouts.fold import Entered
from posttrain.rollouts.observe import Key, Observer, Tally, is_judged, observe
from posttrain.routing.assignment import assign
from tests.rollouts.rollout_world import (
    EPOCHS,
    LARGE,
    LAST,
    NEW,
    OLD,
    SHADOW,
    SMALL,
    make_feedback,
    make_row,
    make_spec,
    make_traffic,
    make_verdict,
    one_unit_a_bucket,
    route_at,
)

SPEC = make_spec()
TRAFFIC = [
    row
    for stage in (SHADOW, SMALL, LARGE, LAST)
    for row in make_traffic(SPEC, stage, 120, users=80, error=0.1, slow=0.2, abandon=0.2)
]
TRAFFIC += [make_feedback(row["id"], "incident") for row in TRAFFIC[::97] if row["kind"] == "end"]
EXPECTED = observe(SPEC, EPOCHS, TRAFFIC)


def candidate(observation, stage=SMALL):
    return observation.tally((stage,), "candidate")


def one(*rows, spec=SPEC):
    return observe(spec, EPOCHS, rows)


def in_canary(name="q", **fields):
    """A request of a user whom the 5 % canary takes."""
    return make_row(name, USER_IN, lane="canary", arm="candidate", release=NEW, **fields)


def user_where(lane, stage=SMALL):
    return next(u for u in map(str, range(9999)) if assign(route_at(SPEC, stage), u).lane == lane)


USER_IN, USER_OUT = user_where("canary"), user_where("production")


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 60))
def test_duplicated_late_and_reordered_rows_give_the_same_observation(shuffler, pieces):
    rows = TRAFFIC + shuffler.sample(TRAFFIC, 80)
    shuffler.shuffle(rows)
    observer = Observer(SPEC, EPOCHS)
    for piece in range(pieces):
        observer.add(rows[piece::pieces])
        observer.observation()  # looking changes nothing
    assert observer.observation() == EXPECTED


def test_a_look_is_not_changed_by_what_comes_later():
    observer = Observer(SPEC, EPOCHS)
    observer.add(TRAFFIC[:200])
    before = observer.observation()
    assert before == observe(SPEC, EPOCHS, TRAFFIC[:200])
    observer.add(TRAFFIC[200:])
    assert before == observe(SPEC, EPOCHS, TRAFFIC[:200]) and observer.observation() == EXPECTED


def test_counts_are_those_that_one_would_count():
    ends = [row for row in TRAFFIC if row["kind"] == "end" and row["epoch"] == 5 and row["lane"] == "canary"]
    tally = candidate(EXPECTED, LARGE)
    fine = [row for row in ends if row["finish"] != "error"]
    assert tally.requests == len(ends) and tally.errors == len(ends) - len(fine) > 0
    assert tally.above[("latency", 950.0)] == sum(row["latency_ms"] > 950 for row in fine) > 0
    assert tally.latency_us == sum(round(row["latency_ms"] * 1000) for row in fine)
    assert tally.tokens == 120 * len(fine) and tally.cost_nano == sum(
        round(r["cost_usd"] * 1e9) for r in fine
    )
    said = {row["of"] for row in TRAFFIC if row["kind"] == "feedback" and row["type"] == "abandon"}
    assert tally.abandons == sum(row["id"] in said for row in ends) > 0
    assert EXPECTED.units[LARGE, "candidate"] == len({row["user"] for row in ends}) < len(ends)
    assert sum(EXPECTED.units[LARGE, arm] for arm in ("candidate", "control")) == len(
        {row["user"] for row in TRAFFIC if row["kind"] == "end" and row["epoch"] == 5}
    )
    assert EXPECTED.pairs.tie == sum(row["kind"] == "verdict" for row in TRAFFIC) > 0
    assert EXPECTED.misplaced == 0 and EXPECTED.waiting == 0
    # After the end of the canaries everybody is the candidate's.
    assert Key(LAST, "control", None) not in EXPECTED.tallies and candidate(EXPECTED, LAST).requests == 120


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(("a", "b", None)), st.sampled_from(("abandon", "incident"))), max_size=8
    ),
    st.sampled_from(("a", "b", None)),
    st.randoms(use_true_random=False),
)
def test_feedback_counts_only_where_it_is_of_the_tenant_of_the_request(said, owner, shuffler):
    """Whichever comes first. Without a tenant is a gateway without keys, and nobody's request there is a tenant's."""

    def of(tenant):
        return {} if tenant is None else {"tenant": tenant}

    rows = [in_canary("q", **of(owner))]
    rows += [make_feedback("q", what, id=f"f{at}", **of(by)) for at, (by, what) in enumerate(said)]
    shuffler.shuffle(rows)
    seen = one(*rows)
    own = [what for by, what in said if by == owner]
    tally = candidate(seen)
    assert (tally.abandons, tally.incidents) == (min(1, own.count("abandon")), own.count("incident"))
    assert seen.waiting == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(TRAFFIC), max_size=60), st.lists(st.sampled_from(TRAFFIC), max_size=60))
def test_tallies_of_disjoint_requests_add_up(some, others):
    mine = {row.get("of") or row["id"] for row in some}
    others = [row for row in others if (row.get("of") or row["id"]) not in mine]
    both, first, second = (observe(SPEC, EPOCHS, rows) for rows in (some + others, some, others))
    for key in both.tallies:
        assert both.tallies[key] == first.tallies.get(key, Tally()) + second.tallies.get(key, Tally())


def test_late_feedback_after_an_advance_counts_where_the_answer_was_given():
    observer = Observer(SPEC, EPOCHS[:3])
    observer.add([in_canary("q", epoch=4)])
    observer.enter(5, LARGE)
    observer.add([in_canary("q2", epoch=5), make_feedback("q", "abandon")])
    seen = observer.observation()
    assert (candidate(seen, SMALL).abandons, candidate(seen, LARGE).abandons) == (1, 0)
    # After the end too: the candidate is gone, and still it is known what its answers did.
    observer.enter(6, None)
    observer.add([make_feedback("q2", "incident"), in_canary("q3", epoch=6)])
    seen = observer.observation()
    assert candidate(seen, LARGE).incidents == 1 and candidate(seen, LARGE).requests == 1


def test_stages_are_entered_in_order_and_once():
    observer = Observer(SPEC, EPOCHS[:3])
    observer.enter(4, SMALL)
    with pytest.raises(ValueError, match="comes after"):
        observer.enter(3, LARGE)
    # A snapshot of another route's change has an epoch of its own, in the same stage.
    observer.add([in_canary("q", epoch=17)])
    assert candidate(observer.observation()).requests == 1


def test_feedback_before_its_answer_and_twice():
    rows = [
        make_feedback("q", "abandon"),
        make_feedback("q", "abandon", id="again"),
        make_feedback("q", "incident"),
    ]
    waiting = one(*rows)
    assert waiting.waiting == 3 and not waiting.tallies
    seen = one(*rows, in_canary("q"))
    assert (candidate(seen).abandons, candidate(seen).incidents, seen.waiting) == (1, 1, 0)
    assert seen == one(in_canary("q"), *rows, *rows)
    more = one(in_canary("q"), *rows, make_feedback("q", "incident", id="second report"))
    assert candidate(more).incidents == 2
    assert candidate(one(in_canary("q"), make_feedback("q", "abandon", value=0))).abandons == 0
    assert candidate(one(in_canary("q"), make_feedback("q", "thumbs", value=-1))) == candidate(
        one(in_canary("q"))
    )


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({}, {"requests": 1, "answered": 1, "timed": 1, "priced": 1}),
        ({"finish": "error", "status": 502}, {"requests": 1, "errors": 1}),
        ({"finish": "lost", "status": 0, "latency_ms": None}, {"requests": 1, "errors": 1}),
        ({"finish": "error", "status": 200}, {"requests": 1, "errors": 1}),  # broke off while it streamed
        (
            {"finish": "error", "status": 404},
            {"requests": 1, "errors": 1},
        ),  # the upstream does not know the model
        ({"finish": "error", "status": 404, "tries": 0}, {"left_out": 1}),
        ({"finish": "error", "status": 400}, {"left_out": 1}),
        ({"finish": "shed", "status": 503, "tries": 0}, {"left_out": 1}),
        ({"finish": "cancelled", "status": 0}, {"requests": 1, "answered": 1, "cancelled": 1, "priced": 1}),
        (
            {"finish": "cancelled", "cost_usd": None, "latency_ms": 951.0},
            {"requests": 1, "answered": 1, "cancelled": 1, "above": 1},
        ),
        (
            {"finish": "content_filter"},
            {"requests": 1, "answered": 1, "timed": 1, "priced": 1, "blocked": 1},
        ),
        (
            {"guardrails": ({"rule": "pii", "action": "block"},), "latency_ms": 950.0},
            {"requests": 1, "answered": 1, "timed": 1, "priced": 1, "blocked": 1},
        ),
        (
            {"guardrails": ({"where": "request", "action": "block"},), "latency_ms": None},
            {"requests": 1, "answered": 1, "priced": 1, "above": 1},  # a missing latency is endless
        ),
        ({"completion_tokens": None, "prompt_tokens": None}, {"requests": 1, "answered": 1, "timed": 1}),
    ],
)
def test_what_counts_as_what(fields, counts):
    tally = candidate(one(in_canary(**fields)))
    names = ("requests", "left_out", "errors", "cancelled", "blocked", "answered", "timed", "priced")
    found = {name: value for name in names if (value := getattr(tally, name))}
    if above := tally.above[("latency", 950.0)]:
        found["above"] = above
    assert found == counts


def test_what_does_not_belong_is_not_counted():
    nothing = one()
    assert one(in_canary(model="other")) == nothing
    assert one(in_canary(epoch=1)) == nothing, "before it started"
    assert one(in_canary(epoch=2)) == nothing, "gated"
    assert one({**in_canary(), "kind": "begin"}) == nothing
    arms = one(make_row("q", USER_OUT, arm="blue", release=digest_bytes(b"blue")))
    assert not arms.tallies and not arms.misplaced, "an experiment's arm is not control"


def test_rows_that_another_answered_than_their_bucket_says():
    wrong_lane = make_row("a", USER_OUT, lane="canary", arm="candidate", release=NEW)
    wrong_release = in_canary("b") | {"release": OLD}
    control = make_row("c", USER_IN)
    leaked = make_row("d", USER_OUT, release=NEW)
    fine = [in_canary("e"), make_row("f", USER_OUT), make_row("g", USER_OUT) | {"user": None}]
    seen = one(wrong_lane, wrong_release, control, leaked, *fine, wrong_lane)
    assert (seen.misplaced, seen.misplaced_examples) == (4, ("a", "b", "c"))
    assert one(*fine).misplaced == 0
    shadow = {**make_row("s", USER_IN, lane="shadow", release=NEW, epoch=4), "kind": "shadow", "of": "e"}
    assert one(shadow).misplaced == 1, "no shadow is meant beside a canary"
    assert one(in_canary("e", epoch=6)).misplaced == 1, "no canary is left in production"
    assert one(make_row("p", USER_OUT, epoch=6)).misplaced == 1, "production is the candidate by now"
    assert one(make_row("p", USER_OUT, epoch=6, release=NEW)).misplaced == 0
    assert one(in_canary("e") | {"user": "x", "unit": USER_IN}).misplaced == 0, (
        "the row says by what it was assigned"
    )


def test_the_edge_of_the_share_is_exact_for_every_bucket():
    """One user a bucket, dealt by the assignment that workers use, and then the other way about."""
    for stage, kind in ((SMALL, "canary"), (SHADOW, "shadow")):
        route, rows, wrong = route_at(SPEC, stage), [], []
        for user in one_unit_a_bucket(SPEC.salt if kind == "canary" else SPEC.shadow_salt):
            found = assign(route, user)
            if kind == "canary":
                taken = found.lane == "canary"
                made = [make_row(f"{user}-0", user), make_row(f"{user}-1", user, lane="canary", release=NEW)]
            else:
                taken = found.shadow is not None
                beside = {"lane": "shadow", "release": NEW, "epoch": 3, "of": "q"}
                made = [
                    make_row(f"{user}-0", user, epoch=3),
                    {**make_row(f"{user}-1", user, **beside), "kind": "shadow"},
                ]
            rows.append(made[taken])
            wrong.append(made[not taken])
        assert one(*rows).misplaced == 0
        assert one(*wrong).misplaced == (10_000 if kind == "canary" else 9_000)


def test_a_sample_of_control_is_enough_and_stays_the_same_users():
    rows = make_traffic(SPEC, LARGE, 3000)
    sampled = observe(make_spec(control_sampling=0.1), EPOCHS, rows)
    whole = observe(SPEC, EPOCHS, rows)
    assert candidate(sampled, LARGE) == candidate(whole, LARGE)
    few, all_ = (o.tally((LARGE,), "control").requests for o in (sampled, whole))
    assert 0.06 * all_ < few < 0.14 * all_ and sampled.units[LARGE, "control"] == few


def test_units_are_users_conversations_or_requests():
    rows = [in_canary(f"q{n}", conversation=f"c{n % 2}") for n in range(6)]
    count = {
        unit: observe(make_spec(unit=unit), EPOCHS, rows).units[SMALL, "candidate"]
        for unit in ("user", "conversation", "request")
    }
    assert count == {"user": 1, "conversation": 2, "request": 6}


def test_verdicts_count_once_a_pair_and_by_the_judge_that_was_registered():
    shadow = {**make_row("s", USER_IN, lane="shadow", release=NEW, epoch=3), "kind": "shadow", "of": "q"}
    first, again = make_verdict("q", "s", "shadow"), make_verdict("q", "s", "tie", id="w", flipped=True)
    for rows in (
        [shadow, first, again],
        [again, first, shadow],
        [first, shadow, again, first],
        [again, shadow, first],
    ):
        pairs = one(*rows).pairs
        assert (pairs.shadow, pairs.tie, pairs.flipped, pairs.judged, pairs.win_rate) == (1, 0, 0, 1, 1.0)
    assert one(first).pairs.judged == 0, "its answer was not seen"
    strict = make_spec(shadow={"judge": "big"})
    assert one(shadow, first, spec=strict).pairs.judged == 0
    assert one(shadow, {**first, "judge": "big"}, spec=strict).pairs.judged == 1


def test_a_share_of_pairs_is_judged_and_everybody_picks_the_same():
    names = [f"q{n}" for n in range(2000)]
    spec = make_spec(shadow={"judge": "big", "sampling": 0.2})
    picked = [name for name in names if is_judged(spec, name)]
    assert 320 < len(picked) < 480 and picked == [name for name in names if is_judged(spec, name)]
    assert not any(is_judged(SPEC, name) for name in names), "no judge, no pairs"
    assert all(is_judged(make_spec(shadow={"judge": "big"}), name) for name in names)


def test_slices_that_a_rule_names_are_counted_by_themselves():
    spec = make_spec("canary.error_rate(math).point <= 0.05\ncanary.error_rate.point <= 0.05")
    rows = [in_canary(f"q{n}", slices=["math", "other"] if n < 3 else []) for n in range(5)]
    seen = observe(spec, EPOCHS, rows)
    assert seen.tally((SMALL,), "candidate", "math").requests == 3
    assert seen.tally((SMALL,), "candidate").requests == 5
    assert seen.tally((SMALL,), "candidate", "other").requests == 0, "nobody asked"


def test_clocks_of_workers_may_differ():
    """Hours apart, in both directions: what was seen is the same, and silence is told by the clock of who listens."""
    shift = {"w1": 0, "w2": 7_200_000, "w3": -7_200_000}
    rows = [{**row, "worker": f"w{1 + n % 3}"} for n, row in enumerate(TRAFFIC)]
    skewed = [{**row, "at_ms": row["at_ms"] + shift[row["worker"]]} for row in rows]
    assert observe(SPEC, EPOCHS, skewed) == observe(SPEC, EPOCHS, rows)
    observer = Observer(SPEC, EPOCHS)
    observer.add(skewed, received_ms=5_000)
    assert observer.observation().heard_ms == 5_000
    observer.add(skewed, received_ms=9_000)
    assert observer.observation().heard_ms == 5_000, "what is known already is nothing new"
    assert observe(SPEC, EPOCHS, []).heard_ms is None


def test_an_a_a_rollout_is_not_misplaced():
    """The same release on both sides: releases tell nothing apart, buckets do."""
    from tests.rollouts.rollout_world import CANDIDATE, PRODUCTION

    same = make_spec(candidate=CANDIDATE.model_copy(update={"release": OLD}), release=OLD)
    assert same.production == PRODUCTION
    fine = [in_canary("e") | {"release": OLD}, make_row("f", USER_OUT)]
    assert one(*fine, spec=same).misplaced == 0
    assert one(make_row("c", USER_IN), spec=same).misplaced == 1


def test_entered_is_what_a_fold_gives():
    from posttrain.rollouts.fold import fold
    from tests.rollouts.rollout_world import entries_of, history

    state = fold(SPEC, entries_of(history(SPEC, LAST)))
    assert state.entered == EPOCHS and isinstance(state.entered[0], Entered)
    assert np.all(np.diff([found.epoch for found in state.entered]) == 1)
