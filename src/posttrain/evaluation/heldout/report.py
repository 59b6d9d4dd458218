"""The report that a person reads: one self-contained HTML page, from records only.

Here: what only the page shows (bars, outcomes, slices, coloured completions) and its rendering through
``report_template.html.j2``. Not here: the words and the table (``summary``), measuring (``measures``),
drawing (``figures``), the terminal (``terminal``). To add a section: a field of ``summary.ReportData`` with
an empty default, and a block in the template.

The page loads nothing, runs no script and holds no time, host or path unless ``facts`` carries one: the same
data give the same bytes. Completions are shown as they are, escaped; control characters and direction
overrides are made visible.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from posttrain.evaluation.heldout.measures import measure_info
from posttrain.evaluation.heldout.records import Comparison, Measure, Mode
from posttrain.evaluation.heldout.summary import (
    Cell,
    Completion,
    Example,
    ModelRow,
    ReportData,
    change_cell,
    find,
    headline,
    interval,
    percent,
    pick_examples,
    primary_mode,
    share,
    summary_table,
    visible,
)
from posttrain.evaluation.heldout.terminal import render_terminal, render_text

if TYPE_CHECKING:
    from posttrain.evaluation.heldout.figures import Drawing

__all__ = [
    "Completion",
    "Example",
    "ModelRow",
    "ReportData",
    "pick_examples",
    "render_report",
    "render_terminal",
    "render_text",
]


def render_report(data: ReportData) -> str:
    """The whole page; write it as UTF-8."""
    # Only the page needs these two; the terminal shows the same data without them.
    from jinja2 import Environment, StrictUndefined

    from posttrain.evaluation.heldout import figures

    template = (
        resources.files("posttrain.evaluation.heldout").joinpath("report_template.html.j2").read_text("utf-8")
    )
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "visible": visible,
        "segments": segments,
        "words": lambda text: text.replace("_", " "),
        # Word joiners: a headline does not break inside "held-out" or "R1-Zero".
        "unbroken": lambda text: text.replace("-", "\u2060-\u2060"),
    }
    mode = primary_mode(data)
    counts = {row.label: row.report.error_counts.get(mode, {}) for row in data.rows}
    return environment.from_string(template).render(
        data=data,
        headline=headline(data),
        groups=summary_table(data),
        bars=_bars(data),
        training=_training(data),
        trust=[(name, _trust_cells(report)) for name, report in data.reward_models.items()],
        outcomes=figures.draw_outcomes(counts) if any(counts.values()) else None,
        outcome_lines=_outcome_lines(counts),
        slices=_slices(data, mode),
        pairs=[(comparison, _pair_lines(comparison)) for comparison in data.more_comparisons],
        methods=_methods(data),
        digests=_digests(data),
        confidence=percent(data.rows[0].report.confidence),
    )


def _training(data: ReportData) -> list[tuple[str, list[Drawing]]]:
    """Figures of each training run; runs without any are left out."""
    from posttrain.evaluation.heldout import figures

    drawn = [
        (name, figures.draw_training(rows, run="" if number == 0 else f"run{number}-"))
        for number, (name, rows) in enumerate(data.training.items())
    ]
    return [(name, drawings) for name, drawings in drawn if drawings]


def _trust_cells(report: Mapping[str, Any]) -> list[Cell]:
    """Held-out pairs ranked as people did, calibration error, and how often the longer of two equals was preferred."""
    ranked, longer = report["pair_accuracy"], report["length_bias"]
    error = report["calibration"]["expected_error"]

    def cell(counted: Mapping[str, Any]) -> Cell:
        if counted["value"] is None:
            return Cell("–")
        return Cell(share(counted["value"]), f"{100 * counted['low']:.1f} to {100 * counted['high']:.1f}")

    return [cell(ranked), Cell("–" if error is None else f"{error:.3f}"), cell(longer)]


class Segment(NamedTuple):
    """A piece of a completion."""

    kind: Literal["tag", "think", "answer", "text"]
    text: str


_TAG = re.compile(r"(</?[A-Za-z_][\w-]{0,30}>|<\|[^|<>\n]{1,40}\|>)")
_KIND_AFTER: Mapping[str, Literal["think", "answer", "text"]] = {
    "<think>": "think",
    "<answer>": "answer",
    "</think>": "text",
    "</answer>": "text",
}


def segments(text: str) -> list[Segment]:
    """A completion cut into tags, reasoning, answer and other text, for colouring; joined they are the text.

    A text whose first think tag is a closing one is reasoning from its start: the prompt held the opening
    tag.
    """
    parts = _TAG.split(text)
    first = next((part for part in parts if part in ("<think>", "</think>")), "")
    kind: Literal["think", "answer", "text"] = "think" if first == "</think>" else "text"
    pieces = []
    for part in filter(None, parts):
        if _TAG.fullmatch(part):
            pieces.append(Segment("tag", part))
            kind = _KIND_AFTER.get(part, kind)
        else:
            pieces.append(Segment(kind, part))
    return pieces


class _Bar(NamedTuple):
    """Success@1 of one model; lengths in percent of the full width."""

    label: str
    text: str
    interval: str
    width: str
    low: str
    span: str


def _bars(data: ReportData) -> list[tuple[str, list[_Bar]]]:
    """One group of bars a decoding mode."""
    groups = []
    for group in summary_table(data):
        bars = []
        for row in data.rows:
            measure = find(row.report, f"{group.name}.success@1")
            if measure is not None:
                low, high = measure.low or 0.0, measure.high or 0.0
                lengths = (f"{100 * length:.2f}" for length in (measure.value or 0.0, low, high - low))
                bars.append(_Bar(row.label, share(measure.value), interval(measure), *lengths))
        if bars:
            groups.append((group.name, bars))
    return groups


def _outcome_lines(counts: Mapping[str, Mapping[str, int]]) -> list[tuple[str, list[Cell]]]:
    """Outcome to share and count of each model; ``correct`` first, then by how frequent they are."""
    totals = sum((Counter(by_outcome) for by_outcome in counts.values()), Counter[str]())
    lines = []
    for name in sorted(totals, key=lambda name: (name != "correct", -totals[name], name)):
        of_model = [(by_outcome.get(name, 0), sum(by_outcome.values())) for by_outcome in counts.values()]
        lines.append(
            (name, [Cell(share(count / total if total else None), str(count)) for count, total in of_model])
        )
    return lines


class _SliceLine(NamedTuple):
    tag: str
    value: str
    cases: int
    cells: list[Cell]
    """Success@1 of each model."""


def _slices(data: ReportData, mode: Mode) -> list[_SliceLine]:
    """Success@1 by tag value; a tag with a single value says nothing and is left out."""
    found: dict[tuple[str, str], dict[str, Measure]] = {}
    for row in data.rows:
        for piece in row.report.slices:
            for measure in piece.measures:
                if measure.name == f"{mode}.success@1" and measure.value is not None:
                    found.setdefault((piece.tag, piece.value), {})[row.label] = measure
    values_of_tag = Counter(tag for tag, _ in found)
    lines = []
    for (tag, value), by_label in found.items():
        if values_of_tag[tag] > 1:
            picked = [by_label.get(row.label) for row in data.rows]
            cells = [Cell("–") if m is None else Cell(share(m.value), interval(m)) for m in picked]
            lines.append(_SliceLine(tag, value, max(m.cases for m in by_label.values()), cells))
    return lines


def _pair_lines(comparison: Comparison) -> list[tuple[str, Cell]]:
    return [
        (f"{measure_info(d.name).title}, {d.name.split('.')[0]}", change_cell(d))
        for d in comparison.differences
        if d.difference is not None
    ]


def _digests(data: ReportData) -> dict[str, str]:
    """The given digests, and those of the models and the held-out set that are not among them."""
    models = {f"Model {row.label}": row.report.model for row in data.rows}
    own = {**models, "Held-out set": data.rows[0].report.suite}
    given = dict(data.digests)
    return given | {name: digest for name, digest in own.items() if digest not in given.values()}


_METHODS = {
    "clopper-pearson": "Clopper-Pearson: exact, one completion a problem.",
    "korn-graubard": "Korn-Graubard: Clopper-Pearson at the effective sample size, because several"
    " completions of one problem are alike.",
    "t": "Student's t over the means of the problems.",
    "tango": "Tango's score interval of a paired difference, one completion a problem.",
    "mover-korn-graubard": "Square-and-add (Newcombe 1998, method 10) of Korn-Graubard limits: a paired"
    " difference with several completions a problem.",
}


def _methods(data: ReportData) -> list[str]:
    """A sentence for every method that the page's intervals use."""
    used = {measure.method for row in data.rows for measure in row.report.measures}
    for comparison in (data.comparison, *data.more_comparisons):
        used |= {difference.method for difference in comparison.differences} if comparison else set()
    return [text for method, text in _METHODS.items() if method in used]
