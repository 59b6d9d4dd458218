"""Word problems: exact, within bounds, split by equation, told in both languages."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.word_problems import WordProblem, make_problem, problems, split_of

bounds = st.tuples(st.integers(0, 2**32), st.integers(1, 5), st.integers(10, 200))


@given(bounds)
@settings(deadline=None)
def test_every_value_on_the_way_is_exact_and_within_bounds(drawn: tuple[int, int, int]) -> None:
    seed, max_steps, max_value = drawn
    problem = make_problem(random.Random(seed), max_steps=max_steps, max_value=max_value)
    assert 1 <= len(problem.steps) <= max_steps
    value = problem.steps[0].left
    for step in problem.steps:
        assert step.left == value
        value = step.result
        assert 0 <= value <= max_value
    assert problem.answer == value


def _one_of_each(split: str) -> list[WordProblem]:
    stream = problems(3, split, max_steps=3, max_value=20, heldout_share=0.1)  # type: ignore[arg-type]
    return list(itertools.islice(stream, 400))


def test_the_question_names_every_number_of_the_chain_in_order() -> None:
    for problem in _one_of_each("train"):
        digits = "".join(letter if letter.isdigit() else " " for letter in problem.question)
        told = [int(number) for number in digits.split()]
        assert told == [problem.steps[0].left, *(step.right for step in problem.steps)]


def test_the_two_sides_share_no_equation() -> None:
    train, heldout = _one_of_each("train"), _one_of_each("heldout")
    assert not {p.chain for p in train} & {p.chain for p in heldout}
    assert {p.language for p in heldout} == {"en", "zh"}
    assert {len(p.steps) for p in heldout} == {1, 2, 3}


def test_the_split_is_near_its_share_and_never_moves() -> None:
    chains = [f"{a}+{b}" for a in range(100) for b in range(100)]
    share = sum(split_of(chain, 0.1) == "heldout" for chain in chains) / len(chains)
    assert 0.09 < share < 0.11
    assert split_of("7+5-3", 0.1) == "train"


def test_the_same_seed_tells_the_same_problems() -> None:
    assert _one_of_each("train") == _one_of_each("train")
