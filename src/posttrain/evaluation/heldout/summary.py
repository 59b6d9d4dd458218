"""What a report says, before it is a page or a terminal screen: its data, its sentences and its table.

Here: the record of what a report shows, the choice of examples, the headline and the table base → result. Not
here: HTML (``report``), the terminal (``terminal``), measuring (``measures``). To add something that both
must show: a field of ``ReportData`` with an empty default.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from posttrain.evaluation.heldout._cases import MODES, outcome
from posttrain.evaluation.heldout.measures import measure_info
from posttrain.evaluation.heldout.records import (
    CaseRow,
    Comparison,
    EvaluationReport,
    Measure,
    Mode,
    PairedDifference,
    WinRate,
)

MAX_SHOWN_CHARACTERS = 6000
"""A completion longer than this is cut where it is shown, and says so."""
UNSCORED_WARNING_SHARE = 0.01
"""From this share of unscored completions on, the page says so at the top."""

Tone: TypeAlias = Literal["good", "bad", ""]


class ModelRow(NamedTuple):
    """One model of the report, a column of its table."""

    label: str
    """Unique in the report; the labels of a comparison are among these."""
    report: EvaluationReport


@dataclass(frozen=True, slots=True)
class Completion:
    """One model's answer to an example."""

    label: str
    text: str
    correct: bool | None
    outcome: str
    """``correct``, or the error kind."""


@dataclass(frozen=True, slots=True)
class Example:
    """One held-out problem with one completion of each model."""

    case_id: str
    question: str
    reference: str
    language: str
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class Preferred:
    """How often the replies to open prompts were preferred to one baseline's."""

    baseline: str
    """Label of the model compared with."""
    judge: str
    """Who judged."""
    prompts: int
    rates: Mapping[str, WinRate]
    """By the label of the model."""


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything a report shows."""

    title: str
    recipe: str
    """Name of the recipe."""
    rows: Sequence[ModelRow]
    """The models, the first one the base, the last one the result."""
    comparison: Comparison | None = None
    """The paired differences that the headline and the change column show."""
    more_comparisons: Sequence[Comparison] = ()
    """Further pairs of the models, listed in a table of their own."""
    preferred: Preferred | None = None
    """The replies to open prompts, where there were any."""
    training: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Name of each training run to its rows of trainer metrics, see ``figures.draw_training``."""
    reward_models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name of each reward model to its report, as ``training.reward_model`` writes it."""
    examples: Sequence[Example] = ()
    """See ``pick_examples``."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What was run: parameters, steps, seed, device… in this order."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Name to ``sha256:`` digest: recipe, data sets, models."""
    reproduce: Sequence[str] = ()
    """Command lines."""
    notes: Sequence[str] = ()
    """Sentences that a reader must not miss, such as warnings of the run."""

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("a report needs at least one model")
        if len({row.label for row in self.rows}) != len(self.rows):
            raise ValueError("the labels of a report's models must differ")


@dataclass(frozen=True, slots=True)
class Cell:
    """One number as text."""

    value: str
    interval: str = ""
    """``18.2 to 24.9``; empty where there is none."""
    tone: Tone = ""
    """For a change whose interval excludes zero: whether it is the wanted direction."""


@dataclass(frozen=True, slots=True)
class TableLine:
    """One measure of every model."""

    name: str
    title: str
    meaning: str
    cells: tuple[Cell, ...]
    change: Cell | None
    """The paired difference in points or tokens; None without a comparison."""


@dataclass(frozen=True, slots=True)
class TableGroup:
    """The lines of one decoding mode, or of the open prompts."""

    name: str
    """In one word or two, for narrow screens."""
    title: str
    lines: tuple[TableLine, ...]


@dataclass(frozen=True, slots=True)
class Headline:
    """What happened, in words."""

    sentence: str
    lines: tuple[str, ...]
    """Further sentences: the interval, what it is not, warnings."""


def pick_examples(
    rows_by_label: Mapping[str, Sequence[CaseRow]], *, count: int = 5, mode: Mode = "sampled"
) -> tuple[Example, ...]:
    """``count`` problems that all models answered, chosen by the hash of the case id and never by the result.

    Languages take turns, so that each is seen. Of several samples the first is shown.
    """
    first: dict[str, dict[str, CaseRow]] = {}
    for label, rows in rows_by_label.items():
        chosen = first.setdefault(label, {})
        for row in sorted((r for r in rows if r.mode == mode), key=lambda r: r.sample_index):
            chosen.setdefault(row.case_id, row)
    shared = set.intersection(*(set(chosen) for chosen in first.values())) if first else set()
    if not shared:
        return ()
    any_model = next(iter(first.values()))
    by_language: dict[str, list[str]] = {}
    for case_id in sorted(shared, key=lambda c: hashlib.sha256(c.encode()).digest()):
        by_language.setdefault(any_model[case_id].language, []).append(case_id)
    queues = [by_language[language] for language in sorted(by_language)]
    turns = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    return tuple(
        Example(
            case_id=case_id,
            question=any_model[case_id].question,
            reference=any_model[case_id].reference,
            language=any_model[case_id].language,
            completions=tuple(
                Completion(label, row.completion, row.correct, outcome(row))
                for label, row in ((label, chosen[case_id]) for label, chosen in first.items())
            ),
        )
        for case_id in turns[:count]
    )


def primary_mode(data: ReportData) -> Mode:
    """Sampled where every model has it, else greedy."""
    return "sampled" if all(row.report.has("sampled.success@1") for row in data.rows) else "greedy"


def headline(data: ReportData) -> Headline:
    """The result in one sentence, and the sentences that keep it honest."""
    mode = primary_mode(data)
    change = data.comparison.difference(f"{mode}.success@1") if data.comparison else None
    if data.comparison is None or change is None:
        last = data.rows[-1]
        measure = find(last.report, f"{mode}.success@1")
        if measure is None:
            return Headline(f"No completion of {last.label} could be scored.", tuple(_warnings(data)))
        sentence = f"{last.label} solves {share(measure.value)} of the held-out problems."
        return Headline(sentence, (f"{percent(last.report.confidence)} interval: {interval(measure)}%.",))
    before, after = data.comparison.before_label, data.comparison.after_label
    was, now = share(change.before), share(change.after)
    ending = {1: f"up from {was}", -1: f"down from {was}", 0: f"against {was} before: no clear change"}
    sentence = f"{after} solves {now} of the held-out problems, {ending[_direction(change)]}."
    lines = [
        f"Paired difference to {before} over {change.cases} problems: {points(change.difference)} points "
        f"({percent(data.comparison.confidence)} interval {points(change.low)} to {points(change.high)})."
    ]
    lines += _format_line(data.comparison, mode, change)
    if mode == "sampled" and (greedy := data.comparison.difference("greedy.success@1")):
        lines.append(
            f"Decoded greedily: {share(greedy.before)} before, {share(greedy.after)} after, "
            f"{points(greedy.difference)} points ({points(greedy.low)} to {points(greedy.high)})."
        )
    return Headline(sentence, (*lines, *_warnings(data)))


def summary_table(data: ReportData) -> list[TableGroup]:
    """The table base → result: every measure that at least one model has, the headline's mode first."""
    modes = sorted(MODES, key=lambda mode: mode != primary_mode(data))
    groups = []
    for mode in modes:
        names: dict[str, None] = {}
        for row in data.rows:
            names.update(dict.fromkeys(m.name for m in row.report.measures if m.name.startswith(f"{mode}.")))
        if names:
            ordered = sorted(names, key=lambda name: _position(name, data))
            lines = tuple(_line(name, data) for name in ordered)
            groups.append(TableGroup(mode, _mode_title(mode, data), lines))
    if data.preferred is not None:
        groups.append(_preferred_group(data, data.preferred))
    return groups


# --- text


def share(value: float | None) -> str:
    """``78.2%``; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}%"


def percent(value: float) -> str:
    """``95%``."""
    return f"{100 * value:g}%"


def points(value: float | None) -> str:
    """``+56.8``, in percentage points, with a true minus sign."""
    return "–" if value is None else _signed(100 * value)


def interval(measure: Measure | PairedDifference) -> str:
    """``18.2 to 24.9`` (percent, or tokens); empty where there is none."""
    if measure.low is None or measure.high is None:
        return ""
    scale = 100 if measure_info(measure.name).unit == "share" else 1
    if isinstance(measure, PairedDifference):
        return f"{_signed(scale * measure.low)} to {_signed(scale * measure.high)}"
    return f"{scale * measure.low:.1f} to {scale * measure.high:.1f}"


def visible(text: str) -> str:
    """``text`` with control characters, direction overrides and lone surrogates written out; cut when very
    long.

    A model's output must not steer the terminal or the page that shows it: ESC becomes ``␛``, U+202E
    ``[U+202E]``.
    """
    cut = text[:MAX_SHOWN_CHARACTERS]
    shown = "".join(map(_visible_character, cut))
    return shown if len(cut) == len(text) else f"{shown}… ({len(text) - len(cut)} more characters)"


_HIDDEN = ((0x7F, 0x9F), (0x202A, 0x202E), (0x2066, 0x2069), (0xD800, 0xDFFF))


def _visible_character(character: str) -> str:
    code = ord(character)
    if code < 0x20 and character not in "\n\t":
        return chr(0x2400 + code)
    return f"[U+{code:04X}]" if any(low <= code <= high for low, high in _HIDDEN) else character


def _signed(number: float) -> str:
    rounded = round(number, 1)
    return f"+{rounded:.1f}" if rounded > 0 else f"{abs(rounded):.1f}" if rounded == 0 else f"−{-rounded:.1f}"


# --- pieces


def find(report: EvaluationReport, name: str) -> Measure | None:
    """The measure, if it was taken and has a value."""
    return report.measure(name) if report.has(name) else None


def _direction(change: PairedDifference) -> int:
    """1 or -1 where the interval excludes zero, else 0."""
    if change.low is None or change.high is None or change.low <= 0 <= change.high:
        return 0
    return 1 if change.low > 0 else -1


def _format_line(comparison: Comparison, mode: Mode, change: PairedDifference) -> list[str]:
    """How much of a gain is more than a gain of format."""
    number = comparison.difference(f"{mode}.accuracy_any_format")
    if number is None or _direction(change) <= 0:
        return []
    figures = f"{points(number.difference)} points ({points(number.low)} to {points(number.high)})"
    if _direction(number) > 0:
        return [f"Not only format: counting the right number wherever it stands, the gain is {figures}."]
    return [
        f"This may be format alone: counting the right number wherever it stands, the change is {figures}."
    ]


def _warnings(data: ReportData) -> list[str]:
    warnings = []
    for row in data.rows:
        for mode in MODES:
            measure = find(row.report, f"{mode}.none_rate")
            if measure and measure.value is not None and measure.value >= UNSCORED_WARNING_SHARE:
                warnings.append(
                    f"{share(measure.value)} of the {mode} completions of {row.label} could not be scored."
                )
    return warnings


def _position(name: str, data: ReportData) -> tuple[int, int]:
    """Where a measure stands in the reports: they all list measures in one order, some of them fewer."""
    longest = max((row.report.measures for row in data.rows if row.report.has(name)), key=len, default=())
    return next(((0, i) for i, measure in enumerate(longest) if measure.name == name), (1, 0))


def _mode_title(mode: Mode, data: ReportData) -> str:
    if mode == "greedy":
        return "Greedy"
    title = "Sampled"
    temperatures = {row.report.sampling.get("temperature") for row in data.rows}
    if len(temperatures) == 1 and (temperature := temperatures.pop()) is not None:
        title += f" at temperature {temperature:g}" if isinstance(temperature, int | float) else ""
    per_case = {row.report.samples.get(mode, 0) / max(1, row.report.cases) for row in data.rows}
    if len(per_case) == 1 and (samples := per_case.pop()) > 1 and samples == int(samples):
        title += f", {samples:.0f} samples a problem"
    return title


def _preferred_group(data: ReportData, preferred: Preferred) -> TableGroup:
    cells = []
    for row in data.rows:
        rate = preferred.rates.get(row.label)
        if rate is None or rate.low is None or rate.high is None:
            cells.append(Cell("–"))
        else:
            tone: Tone = "good" if rate.low > 0.5 else "bad" if rate.high < 0.5 else ""
            cells.append(Cell(share(rate.value), f"{100 * rate.low:.1f} to {100 * rate.high:.1f}", tone))
    line = TableLine(
        "win_rate",
        f"Preferred to {preferred.baseline}",
        "Replies judged better than the baseline's to the same open prompt; a tie is half.",
        tuple(cells),
        None if data.comparison is None else Cell(""),
    )
    judge = preferred.judge.replace("_", " ")
    return TableGroup("open prompts", f"{preferred.prompts} open prompts, judge: {judge}", (line,))


def _line(name: str, data: ReportData) -> TableLine:
    info = measure_info(name)
    cells = []
    for row in data.rows:
        measure = find(row.report, name)
        cells.append(
            Cell("–") if measure is None else Cell(_value(measure.value, info.unit), interval(measure))
        )
    change = None
    if data.comparison is not None:
        difference = data.comparison.difference(name)
        change = Cell("–") if difference is None else change_cell(difference)
    return TableLine(name, info.title, info.meaning, tuple(cells), change)


def _value(value: float | None, unit: str) -> str:
    if unit == "share":
        return share(value)
    return "–" if value is None else f"{value:.1f}"


def change_cell(difference: PairedDifference) -> Cell:
    """A paired difference as text, toned by whether its interval excludes zero in the wanted direction."""
    info = measure_info(difference.name)
    tone: Tone = ""
    if (moved := _direction(difference)) and info.better != "neither":
        tone = "good" if (moved > 0) == (info.better == "higher") else "bad"
    value = (difference.difference or 0.0) * (100 if info.unit == "share" else 1)
    return Cell(_signed(value), interval(difference), tone)
