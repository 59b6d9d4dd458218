"""evaluation: what completions were worth, measured with honest intervals, compared in pairs, and shown.

Reads scored completions (``CaseRow``), hands on ``EvaluationReport`` and ``Comparison`` records and the page
that a person reads. Scoring itself belongs to ``rewards``, generation to ``engines``. Names load on first
use, because the statistics need scipy and the figures matplotlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from posttrain.core.lazy import lazy_names

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

__all__ = [
    "CASES_FILE",
    "MEASURES",
    "REPORT_FILE",
    "STANDARD",
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
    "Proof",
    "ReportData",
    "Series",
    "Slice",
    "SuiteConfig",
    "SuiteReport",
    "SuiteSummary",
    "build_files",
    "check_code",
    "check_suite",
    "column_name",
    "compare",
    "draw_outcomes",
    "draw_training",
    "dump_case_rows",
    "headline",
    "keep_files",
    "load_case_rows",
    "make_outcomes",
    "measure_info",
    "measure_rows",
    "pick_examples",
    "prove",
    "read_header",
    "read_outcomes",
    "read_policy",
    "read_report",
    "render_proof",
    "render_report",
    "render_summary",
    "render_terminal",
    "render_text",
    "summarise",
    "write_outcomes",
]

_HOMES = {
    "heldout.evaluate": ("CASES_FILE", "REPORT_FILE"),
    "heldout.figures": ("Drawing", "draw_outcomes", "draw_training"),
    "heldout.measures": ("MEASURES", "compare", "measure_info", "measure_rows"),
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
    "suites.build": ("STANDARD", "SuiteConfig", "build_files", "keep_files"),
    "suites.frozen_code": ("check_code",),
    "suites.proof": ("Proof", "prove", "render_proof"),
    "suites.report": ("SuiteReport", "check_suite", "read_report"),
    "suites.scripted": ("read_policy",),
    "suites.summary": ("SuiteSummary", "render_summary", "summarise"),
}


__getattr__ = lazy_names(__name__, _HOMES)
