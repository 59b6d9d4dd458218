"""In which way a completion failed, for reports.

Here: one label a completion. Not here: its value. Labels are by what a reader would do about them: more
practice (``wrong_answer``), a form to learn (the ``broken_format`` ones), a longer limit (``truncated``).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from posttrain.rewards.accuracy import Accuracy
from posttrain.rewards.formats import layout_fault
from posttrain.rewards.parsing import find_answer, parse_completion
from posttrain.rewards.records import AnswerSource, Layout, Sample

ErrorKind: TypeAlias = Literal[
    "correct",  # the form is kept and the answer is right
    "wrong_answer",  # the form is kept and the answer is not right
    "truncated",  # the form is not kept because generation met the length limit
    "broken_format_right_number",  # the form is not kept, but the answer or the last number is right
    "no_answer",  # the form is not kept and no answer can be found
    "broken_format",  # the form is not kept and the answer is not right
    "unscored",  # the verification had no result
]


def error_kind(
    sample: Sample,
    correct: float | Literal["ask"] | None = "ask",
    *,
    layout: Layout | None = "think_answer",
    answer_source: AnswerSource = "tag",
) -> ErrorKind:
    """Label ``sample``.

    ``correct`` is its accuracy part (``score.parts["accuracy"]``, None for unscored); with ``"ask"`` the
    answer is compared here, as plain numbers only, so that this never hangs. ``layout`` None asks for no
    form.
    """
    if correct == "ask":
        correct = _compare(sample, answer_source)
    if correct is None:
        return "unscored"
    parsed = parse_completion(sample)
    answer = find_answer(parsed, answer_source).text
    kept = answer is not None if layout is None else not layout_fault(parsed, layout)
    if kept:
        return "correct" if correct == 1.0 else "wrong_answer"
    if sample.truncated:
        return "truncated"
    if correct == 1.0 or _last_number_is_right(sample):
        return "broken_format_right_number"
    return "no_answer" if answer is None else "broken_format"


def _compare(sample: Sample, source: AnswerSource) -> float | None:
    return Accuracy(mode="numeric", answer_source=source).score(sample).value


def _last_number_is_right(sample: Sample) -> bool:
    """Whether the last number anywhere in the text is the reference, tags or none."""
    text = parse_completion(sample).text
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        text = text.replace(tag, " ")
    bare = Sample(text, sample.reference)
    return Accuracy(mode="numeric", answer_source="last_number").score(bare).value == 1.0
