"""Each watch fires past its limit, stays quiet before it, and says what to try."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.training.health import HealthConfig, Limit, judge

HEALTHY: dict[str, Any] = {
    "reward": 0.5,
    "rewards/accuracy/mean": 0.5,
    "rewards/format/mean": 0.6,
    "frac_reward_zero_std": 0.2,
    "completions/clipped_ratio": 0.05,
    "entropy": 0.3,
    "kl": 0.1,
    "rewards/none_rate": 0.0,
}


def rows(count: int = 10, **changes: Any) -> list[dict[str, Any]]:
    return [{**HEALTHY, **changes} for _ in range(count)]


def test_a_healthy_run_has_no_findings() -> None:
    assert judge(HealthConfig(), rows(50)) == []


def test_nothing_is_judged_before_a_whole_window() -> None:
    assert judge(HealthConfig(), rows(9, **{"entropy": 0.0})) == []


@pytest.mark.parametrize(
    ("column", "value", "name", "action"),
    [
        ("frac_reward_zero_std", 0.95, "max_zero_variance", "warn"),
        ("completions/clipped_ratio", 0.8, "max_clipped", "warn"),
        ("entropy", 0.001, "min_entropy", "warn"),
        ("kl", 30.0, "max_kl", "stop"),
        ("rewards/none_rate", 0.5, "max_none", "stop"),
    ],
)
def test_each_limit(column: str, value: float, name: str, action: str) -> None:
    (finding,) = judge(HealthConfig(), rows(**{column: value}))
    assert (finding.name, finding.action) == (name, action)
    assert f"{value:.3g}" in finding.text
    assert finding.hint


def test_one_bad_step_is_not_a_window() -> None:
    assert judge(HealthConfig(), [*rows(9), {**HEALTHY, "completions/clipped_ratio": 1.0}]) == []


def test_format_up_while_accuracy_falls_is_divergence() -> None:
    good = rows(10, **{"rewards/accuracy/mean": 0.6, "rewards/format/mean": 0.5})
    gamed = rows(10, **{"rewards/accuracy/mean": 0.3, "rewards/format/mean": 0.99})
    (finding,) = judge(HealthConfig(), good + gamed)
    assert (finding.name, finding.action) == ("divergence", "stop")
    assert "format" in finding.text


def test_accuracy_alone_falling_is_not_divergence() -> None:
    good = rows(10, **{"rewards/accuracy/mean": 0.6})
    worse = rows(10, **{"rewards/accuracy/mean": 0.3})
    assert judge(HealthConfig(), good + worse) == []


def test_a_limit_can_be_turned_off() -> None:
    config = HealthConfig(max_kl=Limit(value=10, action="off"))
    assert judge(config, rows(**{"kl": 99.0})) == []
