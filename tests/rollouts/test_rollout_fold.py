"""What events add up to: the same in any order, twice or once; forward by evidence, back by anybody."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from posttrain.core.canonical import digest_bytes
from posttrain.core.errors import DataError
from posttrain.rollouts.events import (
    KINDS,
    Aborted,
    Advanced,
    Cleared,
    Completed,
    Created,
    Entry,
    Held,
    Resumed,
    RolledBack,
    SnapshotAcked,
    Started,
    Tripped,
    event_from_json,
)
from posttrain.rollouts.fold import Entered, RolloutState, fold
from posttrain.rollouts.records import RolloutSpec, Stage
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
    go,
    history,
    make_spec,
)

SPEC = make_spec()

events = st.one_of(
    st.just(Created(spec=SPEC.digest)),
    st.sampled_from([go(SPEC), go(SPEC, outcome="NO-GO"), go(SPEC, candidate="another")]),
    st.builds(Started, epoch=st.integers(0, 3)),
    st.builds(Advanced, to=st.integers(1, 5), epoch=st.integers(1, 9)),
    st.builds(Held, reason=st.just("why"), trigger=st.sampled_from([None, "no-data"]), invalid=st.booleans()),
    st.just(Resumed()),
    st.builds(Aborted, reason=st.just("no"), epoch=st.integers(0, 9)),
    st.builds(Tripped, trigger=st.just("t"), line=st.just("bad"), epoch=st.integers(0, 9)),
    st.builds(RolledBack, reason=st.just("bad"), epoch=st.integers(1, 9)),
    st.just(Cleared(reason="seen")),
    st.just(Completed()),
    st.builds(SnapshotAcked, epoch=st.integers(1, 9)),
)
# Most random histories end at once, so half of them begin with a rollout under way.
histories = st.tuples(st.integers(-1, LAST), st.lists(events, max_size=12)).map(
    lambda found: (history(SPEC, found[0]) if found[0] >= 0 else []) + found[1]
)


def test_a_rollout_that_goes_well():
    phases = []
    for stage in (GATED, SHADOW, SMALL, LARGE, LAST):
        state = fold(SPEC, entries_of(history(SPEC, stage)))
        phases.append((state.phase(SPEC), state.label(SPEC), state.serving(SPEC)))
    assert phases == [
        ("GATED", "gated", PRODUCTION),
        ("SHADOW", "shadow 10 %", PRODUCTION),
        ("CANARY", "canary 5 %", PRODUCTION),
        ("CANARY", "canary 50 %", PRODUCTION),
        ("PRODUCTION", "production", CANDIDATE),
    ]
    done = fold(SPEC, entries_of([*history(SPEC, LAST), Completed()]))
    assert done.label(SPEC) == "COMPLETED" and done.serving(SPEC) == CANDIDATE and not done.active
    assert fold(SPEC, []) == RolloutState() and RolloutState().phase(SPEC) == "DEV"
    assert done.entered == tuple(Entered(2 + stage, stage) for stage in range(5)) and done.ignored == ()


@settings(max_examples=150, deadline=None)
@given(histories, st.randoms(use_true_random=False), st.integers(0, 3))
def test_reordered_and_duplicated_entries_leave_the_same_state(happened, shuffler, twice):
    entries = entries_of(happened)
    expected = fold(SPEC, entries)
    again = entries + [shuffler.choice(entries) for _ in range(twice) if entries]
    shuffler.shuffle(again)
    assert fold(SPEC, again) == expected


@settings(max_examples=100, deadline=None)
@given(histories, st.data())
def test_the_same_id_again_is_the_same_event(happened, data):
    """A step that was retried after a crash, written as a new line with its old id, changes nothing but the number."""
    entries = entries_of(happened)
    retried = [
        replace(entry, seq=len(entries) + 1 + number)
        for number, entry in enumerate(
            data.draw(st.lists(st.sampled_from(entries), max_size=3)) if entries else []
        )
    ]
    assert replace(fold(SPEC, entries + retried), seq=0) == replace(fold(SPEC, entries), seq=0)


@settings(max_examples=100, deadline=None)
@given(histories, st.integers(0, 12))
def test_what_is_unknown_is_skipped(happened, at):
    """A line of a later posttrain between ours."""
    entries = entries_of(happened)
    wider = [replace(entry, seq=2 * entry.seq) for entry in entries]
    unknown = Entry(2 * min(at, len(entries)) + 1, "new", 0, None)

    def forms(state: RolloutState) -> RolloutState:  # numbers differ, so their notes do
        return replace(state, seq=0, ignored=tuple(note.split(" ", 1)[1] for note in state.ignored))

    assert forms(fold(SPEC, [*wider, unknown])) == forms(fold(SPEC, entries))


@settings(max_examples=150, deadline=None)
@given(histories, st.lists(events, max_size=6))
def test_a_rollback_is_latched_and_final(happened, later):
    entries = entries_of([*happened, Tripped(trigger="t", line="bad", epoch=99)])
    state = fold(SPEC, entries)
    if fold(SPEC, entries[:-1]).active:
        assert state.end == "rolled_back" and state.latched and state.serving(SPEC) == PRODUCTION
    after = fold(SPEC, entries_of([*happened, Tripped(trigger="t", line="bad", epoch=99), *later]))
    if state.end == "rolled_back":
        assert after.end == "rolled_back" and after.serving(SPEC) == PRODUCTION
        assert after.latched == (state.latched and not any(isinstance(event, Cleared) for event in later))
    if state.end is not None:
        assert after.end == state.end and after.current(SPEC) is None, "nothing starts again what has ended"


@settings(max_examples=150, deadline=None)
@given(histories)
def test_the_candidate_never_serves_without_a_go_and_steps_are_never_skipped(happened):
    state = fold(SPEC, entries_of(happened))
    stages = [found.stage for found in state.entered if found.stage is not None]
    assert stages == list(range(len(stages)))
    epochs = [found.epoch for found in state.entered]
    assert epochs == sorted(set(epochs))
    if stages:
        assert any(event == go(SPEC) for event in happened)
    assert sum(found.stage is None for found in state.entered) <= 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"outcome": "INCONCLUSIVE"}, "INCONCLUSIVE, not GO"),
        ({"candidate": digest_bytes(b"v1.1")}, "the candidate is the release"),
        ({"suite": digest_bytes(b"another")}, "about the suite"),
        ({"contract": digest_bytes(b"softer")}, "by the contract"),
    ],
)
def test_a_decision_must_be_about_this_candidate_suite_and_contract(wrong, words):
    state = fold(SPEC, entries_of([go(SPEC, **wrong), Started(epoch=2)]))
    assert state.phase(SPEC) == "DEV" and words in state.refusal
    assert "started at DEV" in state.ignored[0]


def test_decisions_may_name_the_model_of_the_release_and_another_gate():
    model, gate = digest_bytes(b"weights"), digest_bytes(b"gate")
    spec = make_spec(known_as=(model,), gate_digest=gate)
    assert fold(spec, entries_of([go(spec, candidate=model, contract=gate)])).go
    assert not fold(spec, entries_of([go(spec)])).go, "the gate's contract is the one that is asked for"
    one = make_spec(decision=digest_bytes(b"this one"))
    assert "names the decision" in fold(one, entries_of([go(one)])).refusal
    # A NO-GO that comes later takes the GO away; after the start it is for triggers to end it.
    assert fold(SPEC, entries_of([go(SPEC), go(SPEC, outcome="NO-GO"), Started(epoch=2)])).stage is None
    assert fold(SPEC, entries_of([go(SPEC), Started(epoch=2), go(SPEC, outcome="NO-GO")])).go


def test_holds_the_stronger_stays():
    here = history(SPEC, SMALL)
    by_trigger, by_person = Held(reason="silent", trigger="no-data"), Held(reason="lunch", by="ana")
    invalid = Held(reason="split", trigger="sample-ratio", invalid=True)
    state = fold(SPEC, entries_of([*here, by_trigger, by_person]))
    assert state.hold == by_person and state.label(SPEC) == "HOLD at canary 5 %: lunch"
    assert fold(SPEC, entries_of([*here, by_person, by_trigger])).hold == by_person
    assert fold(SPEC, entries_of([*here, by_person, Advanced(to=LARGE, epoch=5)])).stage == SMALL
    assert fold(SPEC, entries_of([*here, by_person, Resumed(), Advanced(to=LARGE, epoch=5)])).stage == LARGE
    state = fold(SPEC, entries_of([*here, by_person, invalid, Resumed()]))
    assert state.phase(SPEC) == "INVALID" and state.current(SPEC).share == 500, "its share stays"
    assert fold(SPEC, entries_of([*here, invalid, Aborted(reason="again", by="ana")])).end == "aborted"
    assert fold(SPEC, entries_of([*here, invalid, RolledBack(reason="no", epoch=5)])).end == "rolled_back"


def test_an_advance_that_lost_the_race_against_a_trip_changes_nothing():
    trip = Tripped(trigger="errors", line="error rate 61 of 410", epoch=5)
    state = fold(SPEC, entries_of([*history(SPEC, SMALL), trip, Advanced(to=LARGE, epoch=6)]))
    assert state.phase(SPEC) == "ROLLED_BACK" and state.label(SPEC) == "ROLLED_BACK: error rate 61 of 410"
    assert state.entered[-1] == Entered(5, None) and not state.confirmed
    assert state.ignored == ("#7 advanced at ROLLED_BACK: error rate 61 of 410",)
    done = fold(
        SPEC,
        entries_of(
            [*history(SPEC, SMALL), trip, RolledBack(reason="errors", epoch=5), SnapshotAcked(epoch=5)]
        ),
    )
    assert done.confirmed and done.acked_epoch == 5 and done.latched and done.ignored == ()


def test_an_epoch_names_one_stage():
    """Rows find their stage by epoch, so a stage cannot begin in an epoch that another has."""
    for epoch in (1, 4):
        state = fold(SPEC, entries_of([*history(SPEC, SMALL), Advanced(to=LARGE, epoch=epoch)]))
        assert state.stage == SMALL and state.ignored == ("#6 advanced at canary 5 %",)


def test_a_person_rolls_back_and_the_workers_confirm():
    asked = [*history(SPEC, SMALL), RolledBack(reason="users complain", epoch=5, by="ana")]
    state = fold(SPEC, entries_of(asked))
    assert state.label(SPEC) == "ROLLED_BACK: users complain" and state.latched and not state.confirmed
    assert not fold(SPEC, entries_of([*asked, SnapshotAcked(epoch=4)])).confirmed, "that is the old epoch"
    for word in (SnapshotAcked(epoch=5), RolledBack(reason="done", epoch=5)):
        done = fold(SPEC, entries_of([*asked, word]))
        assert done.confirmed and done.end_reason == "users complain"


def test_a_journal_of_another_rollout_is_noticed():
    assert fold(SPEC, entries_of([Created(spec=digest_bytes(b"x"))])).ignored == ("#1 created at DEV",)


def test_events_read_back_and_unknown_ones_are_none():
    samples = [*history(SPEC, 1), Held(reason="x"), Resumed(), Aborted(reason="x"), Cleared(reason="x")]
    samples += [
        Tripped(trigger="t", line="l"),
        RolledBack(reason="x", epoch=1),
        Completed(),
        SnapshotAcked(epoch=1),
    ]
    assert {event.kind for event in samples} == KINDS, "every kind is tried"
    for event in samples:
        assert event_from_json(event.model_dump(mode="json")) == event
    assert event_from_json({"kind": "paused_for_lunch", "x": 1}) is None
    with pytest.raises(DataError, match="not an event"):
        event_from_json({"kind": "advanced"})
    with pytest.raises(DataError, match="not an event"):
        event_from_json({"to": 3})


def test_what_cannot_be_meant_is_refused_when_it_is_written():
    for stages, words in (
        (STAGES[1:], "the first is 'gated'"),
        ((STAGES[0], STAGES[3], STAGES[2], STAGES[4]), "cannot follow"),
        ((STAGES[0], STAGES[2], STAGES[1], STAGES[4]), "cannot follow"),
    ):
        with pytest.raises(ValidationError, match=words):
            make_spec(stages=stages)
    with pytest.raises(ValidationError, match="a canary of all users"):
        Stage(kind="canary", share=10_000)
    with pytest.raises(ValidationError, match="not the digest of the contract"):
        make_spec(contract=SPEC.contract + "canary.abandon_rate.point <= 0.5\n")
    with pytest.raises(ValidationError, match="target says"):
        make_spec(release=digest_bytes(b"x"))
    with pytest.raises(ValidationError, match="is there twice"):
        make_spec(triggers=(SPEC.triggers[0], SPEC.triggers[0]))
    with pytest.raises(ValidationError, match="baseline: nothing serves yet"):
        make_spec(production=None)
    people = {"kind": "recorded", "answers": NEW, "name": "support"}
    with pytest.raises(ValidationError, match="nobody answers the users"):
        make_spec(production=None, baseline=people)
    spec = make_spec(production=None, baseline=people, stages=(*STAGES[:2], STAGES[-1]))
    assert RolloutSpec.from_json(spec.to_bytes()) == spec
    assert fold(spec, []).serving(spec) is None
