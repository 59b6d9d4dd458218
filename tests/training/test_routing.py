"""Which prompts are drawn when, who scores them, and when the guard speaks."""

from __future__ import annotations

import pytest

from posttrain.core.errors import ConfigError
from posttrain.data.prompts import PromptRow
from posttrain.training.guard import GuardConfig, over_optimised
from posttrain.training.routing import PreferenceConfig, Schedule, schedule_prompts

ROWS = [PromptRow(f"r{n}", f"sum {n}", "1") for n in range(7)] + [
    PromptRow(f"o{n}", f"talk {n}", "", task="simple" if n % 2 else "open") for n in range(5)
]


def test_open_prompts_come_in_the_last_rounds_only() -> None:
    order = schedule_prompts(ROWS, Schedule(rounds=6, prompts=4, quiet_rounds=4, open_share=0.5), seed=0)
    assert len(order) == 24
    rounds = [order[start : start + 4] for start in range(0, 24, 4)]
    assert [sum(row.task != "reasoning" for row in one) for one in rounds] == [0, 0, 0, 0, 2, 2]


def test_every_prompt_is_met_before_one_is_met_twice() -> None:
    order = schedule_prompts(ROWS, Schedule(rounds=8, prompts=4, quiet_rounds=0, open_share=0.5), seed=3)
    reasoning = [row.id for row in order if row.task == "reasoning"]
    assert set(reasoning[:7]) == {row.id for row in ROWS[:7]}
    assert order == schedule_prompts(ROWS, Schedule(8, 4, 0, 0.5), seed=3)
    assert order != schedule_prompts(ROWS, Schedule(8, 4, 0, 0.5), seed=4)


@pytest.mark.parametrize(("rows", "kind"), [(ROWS[:7], "open"), (ROWS[7:], "reasoning")])
def test_a_missing_kind_is_named(rows: list[PromptRow], kind: str) -> None:
    with pytest.raises(ConfigError, match=f"no {kind} prompts"):
        schedule_prompts(rows, Schedule(2, 4, 0, 0.5), seed=0)


def test_the_signal_takes_the_last_part() -> None:
    assert PreferenceConfig(last_share=400 / 1700).first_step(1700) == 1300
    assert PreferenceConfig(last_share=0.01).first_step(10) == 9
    assert PreferenceConfig(last_share=1).first_step(10) == 0


@pytest.mark.parametrize(
    ("means", "held_out", "speaks"),
    [
        ([0.0, 0.1, 0.5, 0.9], [0.8, 0.6], True),
        ([0.0, 0.1, 0.5, 0.9], [0.8, 0.75], False),  # a small fall
        ([0.9, 0.5, 0.1, 0.0], [0.8, 0.6], False),  # the preference reward fell, too: something else
        ([0.0, 0.1, 0.5, 0.9], [0.8], False),  # one look only
        ([0.0, 0.1, 0.5, 0.9], [0.8, 0.5, 0.79], False),  # it came back
    ],
)
def test_the_guard_wants_both_signs(means: list[float], held_out: list[float], speaks: bool) -> None:
    assert bool(over_optimised(GuardConfig(), means, held_out)) is speaks
