"""The text that a tiny base model is made from: answers to word problems, replies to open prompts and verdicts on both,
in the uneven quality of found text.

A writer picks, for each problem, how it thinks (``careful`` works step by step, ``hasty`` answers at once, ``careless``
slips while working), in which language it thinks, and how well it keeps to the ``<think> … </think> <answer> …
</answer>`` form. The choices are independent of the problem, so that a model of this text knows how to solve a problem
and often does not. Nothing here is a demonstration for later training: reinforcement learning sees questions and
final numbers only. A share of the text answers open prompts (``open_tasks``), and a share says of an answer whether it
is good, so that the base can be asked to judge.

To add a way of writing: a member of ``ThinkingStyle`` or ``FormSlip`` and its branch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from posttrain.data import open_tasks
from posttrain.data.word_problems import Language, Step, WordProblem

ThinkingStyle: TypeAlias = Literal["careful", "hasty", "careless"]
FormSlip: TypeAlias = Literal["none", "no_think", "unclosed_think", "no_answer_tag", "twice", "trailing"]


class BaseTextConfig(BaseModel):
    """How uneven the text is: shares of each way of writing, drawn independently for each answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    careful_share: float = Field(0.3, ge=0, le=1)
    """Share of answers that work step by step and are right."""
    careless_share: float = Field(0.2, ge=0, le=1)
    """Share that work step by step with one slip: a wrong result or a wrong operation, carried to the end."""
    hasty_right_share: float = Field(0.3, ge=0, le=1)
    """Of the answers given at once (what is left of the shares above), how many name the right number."""
    mixed_share: float = Field(0.25, ge=0, le=1)
    """Share of step-by-step answers in which at least one step is told in the other language."""
    form_slip_share: float = Field(0.25, ge=0, le=1)
    """Share of answers that break the form in one of several ways."""
    open_share: float = Field(0.25, ge=0, le=1)
    """Share of documents that answer an open prompt."""
    judged_share: float = Field(0.08, ge=0, le=1)
    """Share of documents that say whether an answer is good; one verdict in twenty is wrong."""


JUDGE_PROMPT = "Is this a good answer? {question} {response}"
"""How the text asks for a verdict, and how a model made of it can be asked."""
JUDGE_WORDS = ("Yes", "No")
"""The verdicts."""


_HASTY: dict[Language, str] = {"en": "Easy.", "zh": "很简单。"}
_VERBS: dict[Language, dict[str, str]] = {
    "en": {"+": "Add", "-": "Take", "*": "Times"},
    "zh": {"+": "加", "-": "减", "*": "乘"},
}
_SAY_ANSWER: dict[Language, str] = {"en": "The answer is {n}.", "zh": "答案是{n}。"}


class Document(NamedTuple):
    """One exchange of the text."""

    question: str
    answer: str


def documents(
    rng: random.Random,
    sums: Iterator[WordProblem],
    tasks: Iterator[open_tasks.OpenTask],
    config: BaseTextConfig,
) -> Iterator[Document]:
    """An endless text about ``sums`` and ``tasks``."""
    while True:
        judged = rng.random() < config.judged_share
        if rng.random() < (0.5 if judged else config.open_share):
            document, good = _open_document(rng, next(tasks))
        else:
            problem = next(sums)
            answer = write_answer(rng, problem, config)
            document, good = Document(problem.question, answer), _is_good(problem, answer)
        if judged:
            verdict = JUDGE_WORDS[good == (rng.random() < 0.05)]
            yield Document(
                JUDGE_PROMPT.format(question=document.question, response=document.answer), f"{verdict}."
            )
        else:
            yield document


def _open_document(rng: random.Random, task: open_tasks.OpenTask) -> tuple[Document, bool]:
    reply = open_tasks.write(rng, task, open_tasks.found_manner(rng))
    return Document(task.question, reply), open_tasks.judge(task.question, reply, task).total >= 2


def _is_good(problem: WordProblem, answer: str) -> bool:
    """Whether an answer is right, in form, and in the language of its question."""
    thought, _, rest = answer.partition("</think>")
    foreign = _VERBS[_other(problem.language)].values()
    return (
        thought.startswith("<think>")
        and rest == f"<answer>{problem.answer}</answer>"
        and not any(verb in thought for verb in (*foreign, _HASTY[_other(problem.language)]))
    )


def write_answer(rng: random.Random, problem: WordProblem, config: BaseTextConfig) -> str:
    """One answer to ``problem`` in the quality that ``config`` states."""
    draw = rng.random()
    style: ThinkingStyle = (
        "careful"
        if draw < config.careful_share
        else "careless"
        if draw < config.careful_share + config.careless_share
        else "hasty"
    )
    if style == "hasty":
        language = _other(problem.language) if rng.random() < config.mixed_share / 2 else problem.language
        thought = _HASTY[language]
        answer = problem.answer if rng.random() < config.hasty_right_share else _near(rng, problem.answer)
    else:
        told = (
            [_Told(step, step.result) for step in problem.steps]
            if style == "careful"
            else _slipped(rng, problem.steps)
        )
        thought = _tell_steps(rng, problem.language, told, mixed=rng.random() < config.mixed_share)
        answer = told[-1].result
    slip: FormSlip = "none"
    if rng.random() < config.form_slip_share:
        slip = rng.choice(("no_think", "unclosed_think", "no_answer_tag", "twice", "trailing"))
    return _dress(problem.language, thought, answer, slip)


class _Told(NamedTuple):
    """A step as the writer tells it; ``result`` is what is written, right or not."""

    step: Step
    result: int


def _other(language: Language) -> Language:
    return "zh" if language == "en" else "en"


def _near(rng: random.Random, value: int) -> int:
    return max(0, value + rng.choice((-10, -3, -2, -1, 1, 2, 3, 10)))


def _slipped(rng: random.Random, steps: tuple[Step, ...]) -> list[_Told]:
    """The chain with one slip somewhere, carried to the end: a wrong operation, operand or result."""
    where, kind = rng.randrange(len(steps)), rng.choice(("operation", "operand", "result"))
    told: list[_Told] = []
    value = steps[0].left
    for index, step in enumerate(steps):
        operation, right = step.operation, step.right
        if index == where and kind == "operation":
            operation = "-" if operation == "+" else "+"
        if index == where and kind == "operand":
            right = max(1, right + rng.choice((-1, 1)))
        if operation == "-" and right > value:
            operation = "+"
        taken = Step(value, operation, right)
        value = _near(rng, taken.result) if index == where and kind == "result" else taken.result
        told.append(_Told(taken, value))
    return told


def _tell_steps(rng: random.Random, language: Language, told: list[_Told], *, mixed: bool) -> str:
    languages = [language] * len(told)
    if mixed:
        languages[rng.randrange(len(told))] = _other(language)
    parts = []
    for (step, result), spoken in zip(told, languages, strict=True):
        verb = _VERBS[spoken][step.operation]
        gap, stop = (" ", ". ") if spoken == "en" else ("", "。")
        parts.append(f"{verb}{gap}{step.left}{step.operation}{step.right}={result}{stop}")
    return "".join(parts).rstrip()


def _dress(language: Language, thought: str, answer: int, slip: FormSlip) -> str:
    said = _SAY_ANSWER[language].format(n=answer)
    tag = f"<answer>{answer}</answer>"
    if slip == "no_think":
        return f"{thought}{tag}"
    if slip == "unclosed_think":
        return f"<think>{thought}{tag}"
    if slip == "no_answer_tag":
        return f"<think>{thought}</think>{said}"
    if slip == "twice":
        return f"<think>{thought}</think>{tag}{tag}"
    if slip == "trailing":
        return f"<think>{thought}</think>{tag}{said}"
    return f"<think>{thought}</think>{tag}"
