r"""Scoring a batch of short completions: the verifier pool beside reward functions that run in the trainer's process.

Here: 512 completions (groups of 16 that share a reference), accuracy and think-format, on two kinds of answers: whole
numbers, as in the recipes for word problems, and formulas. Peers: TRL's own ``accuracy_reward`` (math-verify) and
``think_format_reward``, and a pair of regular expressions, the least that a user could write (numbers only). Every
round has new texts, so that no cache of either side has seen them, and both sides must give the same scores.

The pool's workers and math-verify's tables are warm: they start once a run. What the pool adds is not speed but a
wall clock that ends a verification which never returns.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks import Outcome, Pairs, Size, Values, measure, pair, quiet_environment

if TYPE_CHECKING:
    from posttrain.rewards.pool import VerifierPool

_GROUPS = {"smallest": 2, "default": 32}
_GROUP = 16
_KINDS = ("numbers", "formulas")
_BOXED_NUMBER = re.compile(r"\\boxed\{\s*(-?\d+)\s*\}")
_THINKING = re.compile(r"<think>(?!.*<think>).*?</think>.*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Task:
    """A completion with its reference."""

    completion: str
    reference: str


def run(size: Size, rounds: int) -> Outcome:
    """One batch of each kind on each side a round."""
    from posttrain.rewards.config import AccuracyConfig, RewardConfig, ThinkFormatConfig, WeightedVerifier
    from posttrain.rewards.pool import VerifierPool

    quiet_environment()
    config = RewardConfig(
        verifiers=(
            WeightedVerifier(verifier=AccuracyConfig(answer_source="boxed")),
            WeightedVerifier(verifier=ThinkFormatConfig(layout="think"), weight=0.1),
        )
    )
    faults: list[str] = []
    groups = _GROUPS[size]
    with VerifierPool(config) as pool:
        for number in (-2, -1):  # every worker is up, every import done
            _compare(
                pool, make_tasks("numbers", number, groups) + make_tasks("formulas", number, groups), faults
            )
        pairs = pair(rounds, lambda n: _ours(pool, n, groups), lambda n: _peers(n, groups))
    samples = groups * _GROUP
    return Outcome(
        rows=_rows(pairs),
        notes=(_speeds(pairs, samples), f"{samples} completions a batch, {config.workers} workers"),
        facts={"right": {kind: _share_right(make_tasks(kind, 0, groups)) for kind in _KINDS}},
        faults=faults,
    )


def make_tasks(kind: str, number: int, groups: int) -> list[Task]:
    """Completions of round ``number``: six in ten right, one in ten without a closed think block."""
    rng = random.Random(f"benchmark-rewards/{kind}/{number}")
    tasks = []
    for _ in range(groups):
        right = _number(rng) if kind == "numbers" else _formula(rng)
        for _ in range(_GROUP):
            answer = right if rng.random() < 0.6 else _number(rng) if kind == "numbers" else _formula(rng)
            closing = "" if rng.random() < 0.1 else "</think>"
            thought = f"Take {rng.randrange(1000)} and {rng.randrange(1000)}, step by step."
            tasks.append(Task(rf"<think>{thought}{closing} The answer is \boxed{{{answer}}}.", right))
    return tasks


def _number(rng: random.Random) -> str:
    return str(rng.randrange(-20, 10_000))


def _formula(rng: random.Random) -> str:
    a, b, c = (rng.randrange(2, 60) for _ in range(3))
    forms = (
        rf"\frac{{{a}\sqrt{{{b}}}}}{{{c}}}",
        rf"{a}x^2+{b}x-{c}",
        rf"{a}\pi+{b}",
        rf"\left[{a},{a + b}\right)",
        rf"{a}\sqrt{{{b}}}-{c}",
    )
    return rng.choice(forms)


def _ours(pool: VerifierPool, number: int, groups: int) -> Values:
    values: dict[str, float] = {}
    for kind in _KINDS:
        samples = _samples(make_tasks(kind, number, groups))
        values |= {f"{kind}_{k}": v for k, v in measure(lambda s=samples: pool.score_many(s)).items()}  # type: ignore[misc]
    return values


def _peers(number: int, groups: int) -> Values:
    values: dict[str, float] = {}
    for kind in _KINDS:
        tasks = make_tasks(kind, number, groups)
        values |= {f"{kind}_{k}": v for k, v in measure(lambda t=tasks: _trl(t)).items()}  # type: ignore[misc]
    tasks = make_tasks("numbers", number, groups)
    return values | {f"plain_{k}": v for k, v in measure(lambda: _plain(tasks)).items()}


def _samples(tasks: list[Task]) -> list[Any]:
    from posttrain.rewards.records import Sample

    return [Sample(task.completion, task.reference) for task in tasks]


def _trl(tasks: list[Task]) -> list[tuple[float | None, float | None]]:
    """TRL's own functions, called as its trainer calls them."""
    from trl.rewards import accuracy_reward, think_format_reward

    completions = [[{"role": "assistant", "content": task.completion}] for task in tasks]
    accuracy = accuracy_reward(completions, solution=[f"${task.reference}$" for task in tasks])
    return list(zip(accuracy, think_format_reward(completions), strict=True))


def _plain(tasks: list[Task]) -> list[tuple[float | None, float | None]]:
    """Two regular expressions; they know whole numbers only."""
    scores: list[tuple[float | None, float | None]] = []
    for task in tasks:
        found = _BOXED_NUMBER.findall(task.completion)
        right = bool(found) and int(found[-1]) == int(task.reference)
        scores.append((float(right), float(_THINKING.fullmatch(task.completion) is not None)))
    return scores


def _compare(pool: VerifierPool, tasks: list[Task], faults: list[str]) -> None:
    """Note each task on which the sides disagree: then they do not do the same work."""
    for task, score, (accuracy, form) in zip(
        tasks, pool.score_many(_samples(tasks)), _trl(tasks), strict=True
    ):
        ours = (score.parts["accuracy"], score.parts["think_format"])
        if ours != (accuracy, form):
            faults.append(f"{task} scores {ours} here and {(accuracy, form)} in TRL")


def _share_right(tasks: list[Task]) -> float:
    """Share of the tasks that TRL finds right: neither none nor all, or equal scores would show little."""
    return sum(accuracy == 1.0 for accuracy, _ in _trl(tasks)) / len(tasks)


def _rows(pairs: Pairs) -> list[Any]:
    unit = {"unit": "ms", "scale": 1000.0}
    rows = []
    for kind in _KINDS:
        rows.append(pairs.row(f"{kind}, wall", f"{kind}_wall", "trl.rewards", **unit))
        rows.append(pairs.row(f"{kind}, processor", f"{kind}_cpu", "trl.rewards", **unit))
    rows.append(pairs.row("numbers, wall", "numbers_wall", "plain regex", their_name="plain_wall", **unit))
    return rows


def _speeds(pairs: Pairs, samples: int) -> str:
    def speed(values: list[float]) -> str:
        return f"{samples / median(values):,.0f}"

    parts = [
        f"{kind}: ours {speed([v[f'{kind}_wall'] for v in pairs.ours])}, "
        f"trl.rewards {speed([v[f'{kind}_wall'] for v in pairs.theirs])}"
        for kind in _KINDS
    ]
    plain = speed([v["plain_wall"] for v in pairs.theirs])
    return f"completions a second by wall clock: {'; '.join(parts)}; plain regex {plain}"
