"""The chain of snapshots, what it says about rolling back, and the latch."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.errors import ServingError
from posttrain.rollouts.errors import RolloutError
from posttrain.serving.control.history import Latch, Latches, find_earlier, production_stack, upstreams_of
from posttrain.serving.control.snapshots import SnapshotStore
from tests.serving.control_world import snapshot, target


def test_snapshots_are_kept_in_order_and_never_changed(tmp_path: Path):
    store = SnapshotStore(tmp_path)
    assert store.current() is None
    for epoch, name in enumerate(["v1", "v2", "v3"], start=1):
        store.publish(snapshot(epoch, name))
    assert store.epochs() == [1, 2, 3]
    assert store.current() == snapshot(3, "v3")
    assert SnapshotStore(tmp_path).get(2) == snapshot(2, "v2")
    with pytest.raises(ServingError, match="does not follow 3"):
        store.publish(snapshot(3, "other"))
    with pytest.raises(ServingError, match="does not follow"):
        store.publish(snapshot(5, "other"))
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_of_many_writers_of_one_epoch_one_wins(tmp_path: Path):
    SnapshotStore(tmp_path).publish(snapshot(1, "v1"))
    won, lost = [], []

    def write(name: str) -> None:
        try:
            SnapshotStore(tmp_path).publish(snapshot(2, name))
            won.append(name)
        except ServingError:
            lost.append(name)

    threads = [threading.Thread(target=write, args=(f"v{number}",)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(lost) == 11
    assert SnapshotStore(tmp_path).get(2) == snapshot(2, won[0])


def history(*names: str) -> list:
    return [snapshot(epoch, name) for epoch, name in enumerate(names, start=1)]


def test_rolling_back_twice_goes_back_twice():
    assert find_earlier(history("v1", "v2", "v3"), "m", None) == target("v2")
    assert find_earlier(history("v1", "v2", "v3", "v2"), "m", None) == target("v1")
    with pytest.raises(RolloutError, match="nothing earlier"):
        find_earlier(history("v1", "v2", "v3", "v2", "v1"), "m", None)


def test_a_named_release_is_found_however_long_ago():
    past = history("v1", "v2", "v3", "v1")
    assert find_earlier(past, "m", "v3") == target("v3")
    assert find_earlier(past, "m", target("v2").release) == target("v2")
    with pytest.raises(RolloutError, match=r"v9.* never was production") as refused:
        find_earlier(past, "m", "v9")
    assert "v1" in str(refused.value.hint)


def test_a_canary_is_no_production_to_roll_back_to():
    past = [snapshot(1, "v1"), snapshot(2, "v1", "v2"), snapshot(3, "v1", "v2", share=500), snapshot(4, "v1")]
    assert production_stack(past, "m") == [target("v1")]


def test_the_upstreams_of_an_earlier_target_are_those_it_had():
    assert [upstream.name for upstream in upstreams_of(history("v1", "v2"), target("v1"))] == ["a"]
    assert upstreams_of(history("v1"), target("v7")) == ()


@given(st.lists(st.sampled_from(["v1", "v2", "v3", "v4"]), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_the_stack_ends_in_what_is_served_and_holds_nothing_twice(names: list[str]):
    stack = production_stack(history(*names), "m")
    assert stack[-1] == target(names[-1])
    assert len({kept.name for kept in stack}) == len(stack)
    if len(stack) > 1:  # a rollback and another one only ever go down
        deeper = production_stack(history(*names, stack[-2].name), "m")
        assert deeper == stack[:-1]


def test_a_latch_holds_until_it_is_cleared(tmp_path: Path):
    latches = Latches(tmp_path / "latches")
    latches.refuse("org/model")
    latches.set(
        Latch(route="org/model", at="2026-01-01T00:00:00Z", actor="trigger", reason="errors", epoch=4)
    )
    with pytest.raises(RolloutError, match=r"org/model.*errors") as refused:
        Latches(tmp_path / "latches").refuse("org/model")
    assert "--clear org/model" in str(refused.value.hint)
    latches.refuse("other")
    assert latches.clear("org/model")
    assert not latches.clear("org/model")
    latches.refuse("org/model")


def test_a_latch_that_cannot_be_read_holds(tmp_path: Path):
    latches = Latches(tmp_path)
    latches.set(Latch(route="m", at="2026-01-01T00:00:00Z", actor="a", reason="r", epoch=1))
    next(tmp_path.iterdir()).write_bytes(b"{")
    with pytest.raises(RolloutError, match="cannot be read"):
        latches.refuse("m")
