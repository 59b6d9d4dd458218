"""evaluation: what completions were worth, measured with honest intervals, compared in pairs, and shown.

Reads scored completions (``CaseRow``), hands on ``EvaluationReport`` and ``Comparison`` records and the page
that a person reads. Scoring itself belongs to ``rewards``, generation to ``engines``. Names load on first
use, because the statistics need scipy and the figures matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.evaluation.heldout.figures import Drawing, draw_outcomes, draw_training
    from posttrain.evaluation.heldout.measures import MEASURES, compare, measure_info, measure_rows
    from posttrain.evaluation.heldout.records import (
        CaseRow,
        Comparison,
        EvaluationReport,
        Measure,
        PairedDifference,
        Slice,
        dump_case_rows,
        load_case_rows,
    )
    from posttrain.evaluation.heldout.report import render_report
    from posttrain.evaluation.heldout.summary import (
        Completion,
        Example,
        ModelRow,
        ReportData,
        headline,
        pick_examples,
    )
    from posttrain.evaluation.heldout.terminal import render_terminal, render_text
    from posttrain.evaluation.outcomes import (
        Arm,
        Column,
        Evaluated,
        OutcomeRow,
        Outcomes,
        OutcomesHeader,
        Series,
        column_name,
        make_outcomes,
        read_header,
        read_outcomes,
        write_outcomes,
    )

_HOMES = {
    "heldout.figures": ("Drawing", "draw_outcomes", "draw_training"),
    "heldout.measures": ("MEASURES", "compare", "measure_info", "measure_rows"),
    "outcomes": (
        "Arm",
        "Column",
        "Evaluated",
        "OutcomeRow",
        "Outcomes",
        "OutcomesHeader",
        "Series",
        "column_name",
        "make_outcomes",
        "read_header",
        "read_outcomes",
        "write_outcomes",
    ),
    "heldout.records": (
        "CaseRow",
        "Comparison",
        "EvaluationReport",
        "Measure",
        "PairedDifference",
        "Slice",
        "dump_case_rows",
        "load_case_rows",
    ),
    "heldout.report": ("render_report",),
    "heldout.summary": ("Completion", "Example", "ModelRow", "ReportData", "headline", "pick_examples"),
    "heldout.terminal": ("render_terminal", "render_text"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "MEASURES",
    "Arm",
    "CaseRow",
    "Column",
    "Comparison",
    "Completion",
    "Drawing",
    "Evaluated",
    "EvaluationReport",
    "Example",
    "Measure",
    "ModelRow",
    "OutcomeRow",
    "Outcomes",
    "OutcomesHeader",
    "PairedDifference",
    "ReportData",
    "Series",
    "Slice",
    "column_name",
    "compare",
    "draw_outcomes",
    "draw_training",
    "dump_case_rows",
    "headline",
    "load_case_rows",
    "make_outcomes",
    "measure_info",
    "measure_rows",
    "pick_examples",
    "read_header",
    "read_outcomes",
    "render_report",
    "render_terminal",
    "render_text",
    "write_outcomes",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
