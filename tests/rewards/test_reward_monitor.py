"""The limit on samples that could not be scored."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.core.errors import HealthError
from posttrain.rewards import RewardMonitor, Score
from posttrain.rewards.monitor import LEAST_SAMPLES, WINDOW_SAMPLES

GOOD = Score(1.0)


def none(reason: str = "timeout") -> Score:
    return Score(None, reason=reason)


def test_counts_by_reason() -> None:
    monitor = RewardMonitor(0.5)
    assert monitor.none_rate == 0.0
    monitor.record([GOOD, none(), none("crash"), none()])
    assert (monitor.total, monitor.none_total, monitor.none_rate) == (4, 3, 0.75)
    assert monitor.none_by_reason == {"timeout": 2, "crash": 1}


def test_past_the_limit_it_stops_and_says_what_to_change() -> None:
    monitor = RewardMonitor(0.05)
    monitor.record([none()] * 10)
    monitor.check()  # 10 of at least 200
    monitor.record([none("accuracy: no reference")])
    with pytest.raises(
        HealthError, match=r"11 of the last 11 completions.*limit 5.0%.*timeout \(10\)"
    ) as caught:
        monitor.check()
    assert "rewards.timeout_seconds" in (caught.value.hint or "")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_old_trouble_is_forgotten() -> None:
    monitor = RewardMonitor(0.0)
    monitor.record([none()])
    with pytest.raises(HealthError):
        monitor.check()
    monitor.record([GOOD] * WINDOW_SAMPLES)
    monitor.check()
    assert monitor.none_total == 1


@given(st.integers(0, 400), st.integers(0, 400), st.floats(0, 1))
def test_the_limit_is_a_share(bad: int, good: int, limit: float) -> None:
    monitor = RewardMonitor(limit)
    monitor.record([GOOD] * good + [none()] * bad)
    if bad > limit * max(bad + good, LEAST_SAMPLES):
        with pytest.raises(HealthError):
            monitor.check()
    else:
        monitor.check()
