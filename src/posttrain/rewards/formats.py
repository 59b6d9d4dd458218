"""Whether a completion keeps to its form.

Here: the format verifiers. Not here: whether the answer is right. Each case's score is stated in
``design/020-rewards.md`` and tested from that table. To add one: a frozen dataclass with ``name`` and
``score``, a config in ``config``, an entry in ``registry``, a column in the table.

White space is free between and inside the parts: exact-newline rules left policies at 0 for ever (open-r1
issue 235).
"""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.rewards.parsing import Parsed, Tag, parse_completion
from posttrain.rewards.records import Layout, Sample, Score

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True, slots=True)
class ThinkFormat:
    """1.0 for exactly the layout, else 0.0.

    ``think_answer``: one ``<think>…</think>`` and then one ``<answer>…</answer>``, both with something in
    them, nothing before, between or after (R1-Zero's template). ``think``: one think block with something in
    it, nothing before it, something after it, and no tag inside it; what follows is free (R1's cold-start
    form).
    """

    name: str = "think_format"
    layout: Layout = "think_answer"

    def score(self, sample: Sample) -> Score:
        """Judge the form of ``sample``; the reference is not read."""
        return _verdict(self.name, layout_fault(parse_completion(sample), self.layout))


@dataclass(frozen=True, slots=True)
class AnswerTag:
    """1.0 for exactly one ``<answer>…</answer>``, with something and no tag in it, outside every closed think
    block, last."""

    name: str = "answer_tag"

    def score(self, sample: Sample) -> Score:
        """Judge the answer tag of ``sample``; the think block and the reference are not read."""
        return _verdict(self.name, _answer_fault(parse_completion(sample)))


@dataclass(frozen=True, slots=True)
class TagCount:
    """0.25 for each of the four tags that stands exactly once: partial credit while a policy learns the form.

    After open-r1's ``tag_count_reward`` without its newlines. A prefilled ``<think>`` counts as there. Not
    covered: order and nesting, so use it beside a strict format verifier.
    """

    name: str = "tag_count"

    def score(self, sample: Sample) -> Score:
        """Count the tags of ``sample``."""
        parsed = parse_completion(sample)
        off = [tag for tag in _TAGS if parsed.count(tag) != 1]
        value = (len(_TAGS) - len(off)) / len(_TAGS)
        return Score(value, {self.name: value}, "not exactly once: " + " ".join(off) if off else "")


def layout_fault(parsed: Parsed, layout: Layout) -> str:
    """What breaks ``layout``, in a few words; empty where nothing does."""
    expected = _TAGS if layout == "think_answer" else _TAGS[:2]
    tags = tuple(tag for tag in parsed.tags if tag.text in expected)
    if fault := _order_fault(parsed, tuple(tag.text for tag in tags), expected):
        return fault
    opening, closing = tags[:2]
    if parsed.between(None, opening):
        return "text before <think>"
    if not parsed.between(opening, closing):
        return "empty think block"
    if layout == "think":
        if any(opening.start < tag.start < closing.start for tag in parsed.tags):
            return "tags inside the think block"
        return "" if parsed.between(closing, None) else "nothing after </think>"
    return _answer_part_fault(parsed, tags)


def _order_fault(parsed: Parsed, found: tuple[str, ...], expected: tuple[str, ...]) -> str:
    for tag in expected:
        if parsed.count(tag) != 1:
            return f"{tag} more than once" if parsed.count(tag) else f"no {tag}"
    return "" if found == expected else "tags in the wrong order"


def _answer_part_fault(parsed: Parsed, tags: tuple[Tag, ...]) -> str:
    if parsed.between(tags[1], tags[2]):
        return "text between </think> and <answer>"
    if not parsed.between(tags[2], tags[3]):
        return "empty answer"
    return "text after </answer>" if parsed.between(tags[3], None) else ""


def _answer_fault(parsed: Parsed) -> str:
    found = tuple(tag.text for tag in parsed.tags if tag.text in _TAGS[2:])
    if fault := _order_fault(parsed, found, _TAGS[2:]):
        return fault
    if len(parsed.answers) != 1:
        return "answer tag inside the think block, or a tag inside it"
    if not parsed.answers[0]:
        return "empty answer"
    last = parsed.tags[-1]
    if last.text != "</answer>" or parsed.between(last, None):
        return "text after </answer>"
    return ""


def _verdict(name: str, fault: str) -> Score:
    value = 0.0 if fault else 1.0
    return Score(value, {name: value}, fault)
