"""Reading a completion: its tags, its think block, its answers.

Here: the one parser that every verifier uses. Not here: what a form is worth (``formats``) or whether an
answer is right (``accuracy``). All scans are linear in the length of the text. To read another tag, add it to
``_TAG`` and a field.

Tags are exact and lower case: ``<think>``, ``</think>``, ``<answer>``, ``</answer>``. Where the prompt
already opened the think block (``think_prefilled``), the opening tag is put back in front of the text, so
that every rule sees one form.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from posttrain.rewards.records import AnswerSource, Sample

_TAG = re.compile(r"</?(?:think|answer)>")
_BOXED = re.compile(r"\\f?box(?:ed)?\s*\{")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Tag:
    """One tag in the text."""

    text: str
    """``<think>``, ``</think>``, ``<answer>`` or ``</answer>``."""
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Parsed:
    """A completion taken apart."""

    text: str
    """The completion with a prefilled ``<think>`` put back."""
    tags: tuple[Tag, ...]
    """Every tag, in order."""
    answers: tuple[str, ...]
    """Contents of the well-formed answer tags (an opening tag, no tag inside, a closing tag) outside closed
    think blocks, in order, stripped."""
    outside: str
    """The text without its closed think blocks (from a ``<think>`` to the next ``</think>``)."""
    tail: str | None
    """The text after the last ``</think>``; the whole text where no think tag stands; None where a think
    block was opened and never closed."""

    def count(self, tag: str) -> int:
        """How often ``tag`` stands in the text."""
        return sum(found.text == tag for found in self.tags)

    def between(self, first: Tag | None, second: Tag | None) -> str:
        """The stripped text between two tags; None stands for the start or the end of the text."""
        return self.text[first.end if first else 0 : second.start if second else len(self.text)].strip()


@dataclass(frozen=True, slots=True)
class FoundAnswer:
    """The final answer of a completion, or why there is none."""

    text: str | None
    """The answer as written; None where there is none."""
    reason: str = ""
    """Why there is none."""
    alternatives: tuple[str, ...] = ()
    """Every answer that was given, in order. More than one: the caller decides whether they differ."""


def parse_completion(sample: Sample) -> Parsed:
    """Take ``sample.completion`` apart."""
    return _parse(sample.completion, sample.think_prefilled)


@lru_cache(maxsize=16)  # the verifiers of one recipe ask for the same completion one after the other
def _parse(completion: str, think_prefilled: bool) -> Parsed:
    text = "<think>" + completion if think_prefilled else completion
    tags = tuple(Tag(found[0], found.start(), found.end()) for found in _TAG.finditer(text))
    blocks = _closed_think_blocks(tags)
    return Parsed(text, tags, _answers(text, tags, blocks), _outside(text, blocks), _tail(text, tags))


def _closed_think_blocks(tags: tuple[Tag, ...]) -> list[tuple[int, int]]:
    blocks: list[tuple[int, int]] = []
    opened: int | None = None
    for tag in tags:
        if tag.text == "<think>" and opened is None:
            opened = tag.start
        elif tag.text == "</think>" and opened is not None:
            blocks.append((opened, tag.end))
            opened = None
    return blocks


def _answers(text: str, tags: tuple[Tag, ...], blocks: list[tuple[int, int]]) -> tuple[str, ...]:
    starts = [start for start, _ in blocks]
    found = []
    for tag, following in pairwise(tags):
        if tag.text != "<answer>" or following.text != "</answer>":
            continue
        before = bisect_right(starts, tag.start) - 1  # the last block that starts before the tag
        if before < 0 or blocks[before][1] <= tag.start:
            found.append(text[tag.end : following.start].strip())
    return tuple(found)


def _outside(text: str, blocks: list[tuple[int, int]]) -> str:
    pieces, position = [], 0
    for start, end in blocks:
        pieces.append(text[position:start])
        position = end
    return "".join([*pieces, text[position:]])


def _tail(text: str, tags: tuple[Tag, ...]) -> str | None:
    think = [tag for tag in tags if tag.text in ("<think>", "</think>")]
    if not think:
        return text
    return text[think[-1].end :] if think[-1].text == "</think>" else None


def find_answer(parsed: Parsed, source: AnswerSource) -> FoundAnswer:
    r"""The final answer, read from ``source``.

    ``tag``: the last well-formed ``<answer>…</answer>`` outside closed think blocks. ``boxed``: the last
    ``\boxed{…}`` with balanced braces outside closed think blocks. ``tag_or_boxed``: the tag where there is
    one, else the box. ``last_number``: the text after the think block, of which the caller takes the last
    number; no answer while a think block is open.
    """
    if source == "last_number":
        if parsed.tail is None:
            return FoundAnswer(None, "reasoning is not closed")
        return FoundAnswer(_TAG.sub(" ", parsed.tail), alternatives=(parsed.tail,))
    answers = parsed.answers if source != "boxed" else ()
    if answers:
        answers = tuple(unboxed(answer) for answer in answers)
    elif source != "tag":
        answers = tuple(unboxed(answer) for answer in boxed_contents(parsed.outside))
    if not answers:
        return FoundAnswer(
            None, {"tag": "no answer tag", "boxed": "no box"}.get(source, "no answer tag and no box")
        )
    if not answers[-1]:
        return FoundAnswer(None, "answer is empty")
    return FoundAnswer(answers[-1], alternatives=answers)


def unboxed(answer: str) -> str:
    r"""The content of the last ``\boxed{…}`` in ``answer``, or ``answer`` itself where there is none."""
    boxes = boxed_contents(answer)
    return boxes[-1] if boxes else answer


def boxed_contents(text: str) -> list[str]:
    r"""The contents of every ``\boxed{…}`` (``\fbox`` too) with balanced braces, in order, stripped."""
    found: list[str] = []
    position = 0
    while match := _BOXED.search(text, position):
        end = _closing_brace(text, match.end())
        if end is None:
            break
        found.append(text[match.end() : end].strip())
        position = end
    return found


def _closing_brace(text: str, position: int) -> int | None:
    depth = 1
    for index in range(position, len(text)):
        character = text[index]
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return index
    return None


def one_line(text: str) -> str:
    """``text`` with every run of white space as one space, for comparing and for reports."""
    return _SPACE.sub(" ", text).strip()


def opens_think(prompt: str) -> bool:
    """Whether a rendered prompt ends inside a think block that it opened, so that completions are
    ``think_prefilled``."""
    return prompt.rstrip().endswith("<think>")


def reasoning_of(text: str) -> str:
    """What a completion says before it answers: the think block, or else all up to the answer tag."""
    thought = text.split("</think>", 1)[0] if "</think>" in text else text.split("<answer>", 1)[0]
    return thought.replace("<think>", "").strip()


def final_part(text: str) -> str:
    """What follows the think block; everything where there is none, nothing where it was never closed."""
    if "<think>" in text and "</think>" not in text:
        return ""
    return text.rsplit("</think>", 1)[-1].strip()
