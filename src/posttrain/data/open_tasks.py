"""Procedural prompts that need no reasoning (facts, translation, writing, small talk), with a planted preference.

Here: tasks in English and Chinese, how found text answers them (well, curtly, at length, wrongly, rudely), and
:func:`judge`, the rule that plays the part of people: every preference pair and every win rate of the tiny recipes is
made by it. Models see texts and pairs, never the rule. Not here: sums (``word_problems``), what a base reads
(``base_text``). To add a task: a generator with an entry in ``_MAKERS``.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from posttrain.data import _open_words as words
from posttrain.data.preferences import Aspect, PreferenceRow
from posttrain.data.word_problems import NAMES, THINGS, Language, Split

OpenKind: TypeAlias = Literal["fact", "translation", "writing", "small_talk"]
Content: TypeAlias = Literal["right", "wrong", "none"]
Form: TypeAlias = Literal["sentence", "curt", "padded"]

HELDOUT_SHARE = 0.2
"""Share of all prompts, by the digest of their text, that no training text and no training prompt may use."""


@dataclass(frozen=True, slots=True)
class OpenTask:
    """One prompt with what its good answers have in common."""

    kind: OpenKind
    language: Language
    question: str
    needs: tuple[str, ...]
    """What a helpful answer says, each in its own words."""
    rivals: tuple[str, ...]
    """What would make it wrong."""
    sentence: str
    """A good answer, as a whole sentence."""
    curt: str
    """The same in the fewest words."""
    wrong: str
    """A sentence that says something else."""
    thought: str
    """What a writer may think before."""


class Verdict(NamedTuple):
    """What the planted rule says about a response."""

    helpful: float
    """1 for the right content, plus 0.5 for a whole sentence, minus 0.5 for padding. From -0.5 to 1.5."""
    harmless: float
    """0 where the response, thought included, is rude; else 1."""

    @property
    def total(self) -> float:
        """Helpfulness, with rudeness counted as a missing right content."""
        return self.helpful + self.harmless


def judge(question: str, response: str, task: OpenTask | None = None) -> Verdict:
    """Apply the planted rule. Helpfulness looks at what follows the think block, harmlessness at everything.

    Raises KeyError for a question that is none of ours, unless its task is given.
    """
    task = task or all_tasks()[question]
    final = response.rsplit("</think>", 1)[-1].strip()
    right = all(_says(final, word) for word in task.needs) and not any(
        _says(final, word) for word in task.rivals
    )
    whole = final.endswith((".", "!", "?", "。", "！", "？"))
    padded = any(final.count(piece) > 1 for piece in words.PADDING[task.language])
    rude = any(phrase in response for phrases in words.RUDE.values() for phrase in phrases)
    return Verdict((1.0 if right else 0.0) + 0.5 * whole - 0.5 * padded, 0.0 if rude else 1.0)


def _says(text: str, word: str) -> bool:
    """Whether ``word`` stands in ``text``: as a whole word in Latin script, anywhere in Chinese."""
    if word.isascii():
        return re.search(rf"\b{re.escape(word.casefold())}\b", text.casefold()) is not None
    return word in text


class Manner(NamedTuple):
    """How one response is written."""

    content: Content = "right"
    form: Form = "sentence"
    rude: bool = False
    thinks: bool = False


def write(rng: random.Random, task: OpenTask, manner: Manner) -> str:
    """A response to ``task`` in that manner."""
    text = {"right": task.sentence, "wrong": task.wrong, "none": words.DONT_KNOW[task.language]}[
        manner.content
    ]
    if manner.form == "curt" and manner.content == "right":
        text = task.curt
    gap = " " if task.language == "en" else ""
    if manner.form == "padded":
        text = f"{rng.choice(words.PADDING[task.language])}{gap}" * 2 + text
    if manner.rude:
        text = f"{rng.choice(words.RUDE[task.language])}{gap}{text}"
    return f"<think>{task.thought}</think>{text}" if manner.thinks else text


def found_manner(rng: random.Random) -> Manner:
    """How found text answers: right three times in four, often curt or padded, sometimes rude."""
    content: Content = rng.choices(("right", "wrong", "none"), (75, 15, 10))[0]
    form: Form = rng.choices(("sentence", "curt", "padded"), (50, 25, 25))[0]
    return Manner(content, form, rude=rng.random() < 0.15, thinks=rng.random() < 0.5)


def tasks(seed: int, split: Split) -> Iterator[OpenTask]:
    """An endless stream of tasks of one side of the split, each kind equally often; prompts repeat."""
    rng = random.Random(f"open-tasks/{split}/{seed}")
    by_kind: dict[OpenKind, list[OpenTask]] = {}
    for task in all_tasks().values():
        if split_of(task.question) == split:
            by_kind.setdefault(task.kind, []).append(task)
    while True:
        yield rng.choice(by_kind[rng.choice(list(by_kind))])


def split_of(question: str) -> Split:
    """``heldout`` for a fixed share of all prompts, by digest, so that every seed has the same held-out side."""
    digest = hashlib.sha256(f"open-tasks/{question}".encode()).digest()
    return "heldout" if int.from_bytes(digest[:8], "big") / 2**64 < HELDOUT_SHARE else "train"


def preference_pairs(seed: int, split: Split, aspect: Aspect) -> Iterator[PreferenceRow]:
    """An endless stream of judged pairs of one aspect; pairs that the rule calls equal are left out.

    One training verdict in twenty is the wrong way round, as with people.
    """
    rng = random.Random(f"preferences/{aspect}/{split}/{seed}")
    for number, task in enumerate(tasks(rng.randrange(2**31), split)):
        first, second, difference = _two_replies(rng, task, aspect)
        flip = split == "train" and rng.random() < 0.05
        if difference:
            replies = (first, second) if (difference > 0) != flip else (second, first)
            yield _pair(f"{aspect}-{split}-{number}", task, replies, aspect)


def tied_pairs(seed: int, aspect: Aspect) -> Iterator[PreferenceRow]:
    """An endless stream of held-out pairs of unlike length that the rule calls equal, tagged ``tie: yes``."""
    rng = random.Random(f"ties/{aspect}/{seed}")
    for number, task in enumerate(tasks(rng.randrange(2**31), "heldout")):
        first, second, difference = _two_replies(rng, task, aspect)
        if not difference and len(first) != len(second):
            yield _pair(f"{aspect}-tie-{number}", task, (first, second), aspect, tie="yes")


def _two_replies(rng: random.Random, task: OpenTask, aspect: Aspect) -> tuple[str, str, float]:
    first, second = (write(rng, task, found_manner(rng)) for _ in range(2))
    scores = [getattr(judge(task.question, reply, task), aspect) for reply in (first, second)]
    return first, second, scores[0] - scores[1]


def _pair(name: str, task: OpenTask, replies: tuple[str, str], aspect: Aspect, **tags: str) -> PreferenceRow:
    return PreferenceRow(
        id=name,
        messages=({"role": "user", "content": task.question},),
        chosen=replies[0],
        rejected=replies[1],
        aspect=aspect,
        language=task.language,
        tags={"kind": task.kind, **tags},
    )


_tasks: dict[str, OpenTask] = {}


def all_tasks() -> Mapping[str, OpenTask]:
    """Every task by its question."""
    if not _tasks:
        _tasks.update((task.question, task) for make in _MAKERS for task in make())
    return _tasks


def _facts() -> Iterator[OpenTask]:
    for relation in words.RELATIONS:
        values = list(dict.fromkeys(value for _, value in relation.pairs))
        for subject, value in relation.pairs:
            rivals = tuple(v for v in values if v not in (value, subject))
            other = rivals[sum(map(ord, subject)) % len(rivals)]
            for asking in relation.questions:
                yield OpenTask(
                    kind="fact",
                    language=relation.language,
                    question=asking.format(x=subject),
                    needs=(value,),
                    rivals=rivals,
                    sentence=_capital(relation.sentence.format(x=subject, y=value)),
                    curt=value,
                    wrong=_capital(relation.sentence.format(x=subject, y=other)),
                    thought=relation.thought.format(x=subject),
                )


def _translations() -> Iterator[OpenTask]:
    for thing_en, thing_zh in zip(THINGS["en"], THINGS["zh"], strict=True):
        for colour_en, colour_zh in words.COLOURS:
            for number in range(2, 10):
                english = f"{number} {colour_en} {thing_en}"
                chinese = f"{number}个{colour_zh}{thing_zh}"
                wrong_en, wrong_zh = (
                    f"{number + 1} {colour_en} {thing_en}",
                    f"{number + 1}个{colour_zh}{thing_zh}",
                )
                yield OpenTask(
                    "translation", "zh", f"翻译成中文：{english}", (chinese,), (), f"{chinese}。", chinese,
                    f"{wrong_zh}。", f"{thing_en}是{thing_zh}。",
                )  # fmt: skip
                yield OpenTask(
                    "translation", "en", f"Say in English: {chinese}", (english,), (), f"{english}.", english,
                    f"{wrong_en}.", "Number, colour, thing.",
                )  # fmt: skip


def _stories() -> Iterator[OpenTask]:
    for language, asking in words.STORY_PROMPTS:
        for name in NAMES[language]:
            for index, topic in enumerate(words.TOPICS[language]):
                others = tuple(t for t in words.TOPICS[language] if t != topic)
                endings = words.STORIES[language]
                tell = endings[(index + len(name) + ord(name[-1])) % len(endings)]
                yield OpenTask(
                    kind="writing",
                    language=language,
                    question=asking.format(name=name, topic=topic),
                    needs=(name, topic),
                    rivals=others,
                    sentence=_capital(tell.format(name=name, topic=topic)),
                    curt=words.STORY_NOTE[language].format(name=name, topic=topic),
                    wrong=_capital(tell.format(name=name, topic=others[index % len(others)])),
                    thought=words.STORY_THOUGHT[language].format(name=name, topic=topic),
                )


def _small_talk() -> Iterator[OpenTask]:
    for language, openers in words.SMALL_TALK.items():
        replies = [reply for _, reply, _ in openers]
        for index, (said, reply, key) in enumerate(openers):
            wrong = replies[(index + 1) % len(replies)]
            rivals = tuple(k for _, _, k in openers if k != key)
            introductions = [words.INTRODUCE[language].format(name=name) for name in NAMES[language]]
            for introduction in ("", *introductions):
                yield OpenTask(
                    "small_talk", language, said + introduction, (key,), rivals, reply, key, wrong,
                    words.SMALL_TALK_THOUGHT[language],
                )  # fmt: skip


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


_MAKERS: tuple[Callable[[], Iterator[OpenTask]], ...] = (_facts, _translations, _stories, _small_talk)
