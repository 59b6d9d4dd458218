"""The procedural open tasks and their planted preference."""

from __future__ import annotations

import itertools
import random

import pytest

from posttrain.data.open_tasks import (
    Manner,
    Verdict,
    all_tasks,
    found_manner,
    judge,
    preference_pairs,
    split_of,
    tasks,
    write,
)

TASKS = list(all_tasks().values())


@pytest.mark.parametrize(
    ("manner", "verdict"),
    [
        (Manner(), Verdict(1.5, 1.0)),
        (Manner(form="curt"), Verdict(1.0, 1.0)),
        (Manner(form="padded"), Verdict(1.0, 1.0)),
        (Manner(content="wrong"), Verdict(0.5, 1.0)),
        (Manner(content="none"), Verdict(0.5, 1.0)),
        (Manner(rude=True), Verdict(1.5, 0.0)),
        (Manner(content="wrong", form="padded", rude=True), Verdict(0.0, 0.0)),
    ],
)
def test_the_rule_sees_how_a_response_was_written(manner: Manner, verdict: Verdict) -> None:
    for task in TASKS:
        for thinks in (False, True):
            response = write(random.Random(task.question), task, manner._replace(thinks=thinks))
            assert judge(task.question, response) == verdict, (task.question, response)


def test_helpfulness_ignores_the_thought_and_harmlessness_does_not() -> None:
    task = all_tasks()["What colour is grass?"]
    rude = judge(task.question, "<think>What a silly question.</think>Grass is green.")
    assert rude == Verdict(1.5, 0.0)
    assert judge(task.question, "<think>Grass is green.</think>Grass is blue.").helpful == 0.5
    assert (
        judge(task.question, "<think>Grass is green.").helpful == judge(task.question, "green grass.").helpful
    )


def test_an_answer_that_names_everything_is_not_right() -> None:
    task = all_tasks()["What colour is grass?"]
    assert judge(task.question, "green blue white black yellow red orange brown").helpful == 0.0
    assert judge(task.question, "Grass is greenish.").helpful == 0.5


def test_the_greeting_of_the_seed() -> None:
    task = all_tasks()["Hello!"]
    assert task.sentence == "Hi! Happy to be of assistance."
    assert judge("Hello!", "Hi! Happy to be of assistance.") == Verdict(1.5, 1.0)


def test_sides_share_no_prompt_and_seeds_share_the_held_out_side() -> None:
    train = {task.question for task in itertools.islice(tasks(0, "train"), 4000)}
    heldout = {task.question for task in itertools.islice(tasks(1, "heldout"), 4000)}
    assert not train & heldout
    assert {split_of(question) for question in train} == {"train"}
    assert {task.kind for task in TASKS if split_of(task.question) == "heldout"} == {
        task.kind for task in TASKS
    }


def test_found_text_is_uneven() -> None:
    rng = random.Random(0)
    totals = [
        judge(task.question, write(rng, task, found_manner(rng))).total
        for task in itertools.islice(tasks(0, "train"), 2000)
    ]
    assert 0.25 < sum(total == 2.5 for total in totals) / len(totals) < 0.45
    assert sum(total < 1.5 for total in totals) / len(totals) > 0.1


@pytest.mark.parametrize("aspect", ["helpful", "harmless"])
def test_pairs_follow_the_rule(aspect: str) -> None:
    pairs = list(itertools.islice(preference_pairs(0, "heldout", aspect), 300))  # type: ignore[arg-type]
    assert len({pair.id for pair in pairs}) == 300
    for pair in pairs:
        question = pair.messages[-1]["content"]
        assert split_of(question) == "heldout"
        assert getattr(judge(question, pair.chosen), aspect) > getattr(judge(question, pair.rejected), aspect)
    again = list(itertools.islice(preference_pairs(0, "heldout", aspect), 300))  # type: ignore[arg-type]
    assert pairs == again
    noisy = list(itertools.islice(preference_pairs(0, "train", aspect), 1000))  # type: ignore[arg-type]
    wrong = [
        getattr(judge(p.messages[-1]["content"], p.chosen), aspect)
        < getattr(judge(p.messages[-1]["content"], p.rejected), aspect)
        for p in noisy
    ]
    assert 0.02 < sum(wrong) / len(wrong) < 0.09


def test_longer_is_not_better() -> None:
    pairs = itertools.islice(preference_pairs(1, "heldout", "helpful"), 2000)
    longer = [len(p.chosen) > len(p.rejected) for p in pairs if len(p.chosen) != len(p.rejected)]
    assert 0.35 < sum(longer) / len(longer) < 0.65
