"""The records of the evaluation room: what one completion was worth, and what a whole evaluation measured.

Here: frozen, torch-free data with its JSON form. Not here: how values are computed (``measures``) or drawn
(``figures``, ``report``). Each JSON form carries ``schema``; a change that an old reader would misread gets a
new number, a reader for the old one, and a golden file beside the old ones in ``tests/evaluation/golden``.

A sample that could not be scored has ``correct`` None. It is never a zero: rates are taken over scored
samples, and the share of unscored ones is a measure of its own (``none_rate``) that a reader must look at
first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from posttrain.core.documents import Digest, Document, Record
from posttrain.core.errors import DataError, UnknownReferenceError
from posttrain.core.suggest import did_you_mean

Mode: TypeAlias = Literal["greedy", "sampled"]
"""How completions were drawn: the most likely token each time, or from the distribution."""
Scalar: TypeAlias = str | bool | int | float | None
"""What a tag or a setting may hold."""


class CaseRow(Document):
    """One completion of one held-out case, and what the verifiers said about it."""

    record_kind: ClassVar[str] = "case_row"

    case_id: str
    """Which problem; the same in every evaluation of the suite."""
    sample_index: int = Field(ge=0)
    """0-based number of the sample within its case and mode; always 0 for ``greedy``."""
    mode: Mode
    question: str
    """The problem as a person would read it, without the chat template."""
    reference: str
    """The right answer."""
    completion: str
    """The text that the model produced, tags included."""
    correct: bool | None
    """Whether the answer, taken from where the format puts it, is right; None where none could tell."""
    correct_anywhere: bool | None
    """Whether the right answer stands anywhere in the completion, whatever its format; None as above."""
    format_ok: bool
    """Whether the completion keeps the recipe's format."""
    mixed_language: bool
    """Whether the reasoning mixes languages (``data.languages.mixes_languages``)."""
    language: str
    """Language of the question, a tag such as ``en`` or ``zh``."""
    think_tokens: int = Field(ge=0)
    """Tokens of reasoning; 0 where there is none."""
    completion_tokens: int = Field(ge=0)
    """All tokens of the completion, the end token included."""
    truncated: bool
    """Whether the completion ran into the token limit."""
    error_kind: str | None = None
    """What went wrong, in the recipe's words (``wrong_number``, ``no_answer_tag``…); None for nothing."""
    reward_parts: Mapping[str, float | None] = Field(default_factory=dict)
    """Score of each verifier by its name."""
    tags: Mapping[str, Scalar] = Field(default_factory=dict)
    """What kind of case it is (``steps``: 2, ``topic``: …); slices of the report are made of these."""

    @model_validator(mode="after")
    def _one_greedy_sample(self) -> Self:
        if self.mode == "greedy" and self.sample_index != 0:
            raise ValueError(f"case {self.case_id!r}: greedy has one sample, so sample_index is 0")
        return self


class Measure(Record):
    """One measured number with its interval."""

    name: str
    """``<mode>.<what>``, for example ``sampled.success@1``; the list is ``measures.MEASURES``."""
    value: float | None
    """A share in [0, 1] or a mean number of tokens; None where there was nothing to measure."""
    low: float | None
    """Lower end of the two-sided interval at the report's confidence; None where none can be given."""
    high: float | None
    n: int = Field(ge=0)
    """Samples behind the value."""
    method: str
    """How the interval was made: ``clopper-pearson``, ``korn-graubard`` or ``t``."""
    count: int | None = None
    """Samples that had the property, for rates; gates compare counts, not floats."""
    cases: int = Field(default=0, ge=0)
    """Independent cases behind the value."""


class Slice(Record):
    """The measures of the cases that share one tag value."""

    tag: str
    value: str
    """The tag's value as text."""
    cases: int = Field(ge=0)
    measures: tuple[Measure, ...]
    """``success@1`` of every mode."""


class EvaluationReport(Document):
    """Everything that one evaluation of one model on one frozen suite measured."""

    record_kind: ClassVar[str] = "evaluation_report"

    model: Digest
    """Artifact digest of the model."""
    suite: Digest
    """Artifact digest of the held-out set."""
    sampling: Mapping[str, Scalar] = Field(default_factory=dict)
    """Decoding settings: ``temperature``, ``top_p``, ``max_new_tokens``, ``samples_per_case``, ``seed``…"""
    confidence: float = Field(gt=0, lt=1)
    """Two-sided confidence of every interval."""
    cases: int = Field(ge=0)
    """Distinct cases."""
    samples: Mapping[Mode, int]
    """Completions by mode."""
    measures: tuple[Measure, ...]
    error_counts: Mapping[Mode, Mapping[str, int]]
    """Completions by mode and outcome: ``correct``, ``unscored``, ``other``, or the row's ``error_kind``."""
    slices: tuple[Slice, ...] = ()

    def measure(self, name: str) -> Measure:
        """The measure called ``name``. Raises UnknownReferenceError and names the nearest one."""
        for measure in self.measures:
            if measure.name == name:
                return measure
        known = [measure.name for measure in self.measures]
        raise UnknownReferenceError(f"the report has no measure {name!r}", hint=did_you_mean(name, known))

    def has(self, name: str) -> bool:
        """Whether the measure called ``name`` was taken and has a value."""
        return any(measure.name == name and measure.value is not None for measure in self.measures)


class PairedDifference(Record):
    """One measure of two models on the same cases."""

    name: str
    """Name of the measure."""
    before: float | None
    """Value of the first model over the paired cases."""
    after: float | None
    difference: float | None
    """``after - before``; None where no case could be paired."""
    low: float | None
    high: float | None
    cases: int = Field(ge=0)
    """Cases paired."""
    dropped: int = Field(ge=0)
    """Cases left out because one side could not be scored."""
    method: str
    """How the interval was made: ``tango``, ``mover-korn-graubard`` or ``t``."""
    gained: int | None = None
    """Cases that turned from no to yes; only with one sample a case."""
    lost: int | None = None
    """Cases that turned from yes to no; only with one sample a case."""
    p_value: float | None = None
    """Two-sided exact McNemar; only with one sample a case."""


class Comparison(Document):
    """Two models on the same cases, paired."""

    record_kind: ClassVar[str] = "comparison"

    before_label: str
    after_label: str
    confidence: float = Field(gt=0, lt=1)
    differences: tuple[PairedDifference, ...]

    def difference(self, name: str) -> PairedDifference | None:
        """The difference of the measure called ``name``, if it was taken and any case could be paired."""
        found = (d for d in self.differences if d.name == name and d.difference is not None)
        return next(found, None)


class WinRate(Record):
    """One model against the baseline."""

    name: str
    wins: int = Field(ge=0)
    ties: int = Field(ge=0)
    losses: int = Field(ge=0)
    undecided: int = Field(ge=0)
    """Prompts that the judge could not decide; they count neither way."""
    value: float | None
    """``(wins + ties / 2) / (wins + ties + losses)``."""
    low: float | None
    """Lower end of the 95 % interval (Korn-Graubard over prompts; Clopper-Pearson where there are no ties)."""
    high: float | None


class WinRateReport(Document):
    """Every model against one baseline on one set of open prompts."""

    record_kind: ClassVar[str] = "win_rate_report"

    baseline: str
    suite: Digest
    """Digest of the open prompts."""
    judge: str
    """Who judged, for the reader."""
    prompts: int = Field(ge=0)
    rates: tuple[WinRate, ...]


def dump_case_rows(rows: Iterable[CaseRow]) -> bytes:
    """JSON lines, one row each, in order of mode, case and sample: the same rows give the same bytes."""
    ordered = sorted(rows, key=lambda row: (row.mode, row.case_id, row.sample_index))
    return b"".join(row.to_bytes() + b"\n" for row in ordered)


def load_case_rows(data: bytes) -> list[CaseRow]:
    """The inverse of :func:`dump_case_rows`. Raises DataError that names the line."""
    rows = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(CaseRow.from_json(line))
        except DataError as error:
            raise DataError(f"line {number}: {error.message}", hint=error.hint) from error
    return rows
