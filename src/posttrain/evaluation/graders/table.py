"""The grades of one answer as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.evaluation.graders.config import GraderConfig
from posttrain.evaluation.graders.registry import CaseGrades

_HEADER = ("Verifier", "Check Description", "Result", "Notes")
_RESULTS = {True: "Pass", False: "Fail", None: "No grade"}


def verifier_rows(configs: Sequence[GraderConfig], grades: CaseGrades) -> list[tuple[str, str, str, str]]:
    """One row for each grader with a ``check`` to describe it, and the case's success last."""
    rows = []
    for config in configs:
        if config.check:
            grade = grades.grades[config.name]
            note = config.pass_note if grade.passed else grade.reason
            rows.append((config.title or config.name, config.check, _RESULTS[grade.passed], note))
    success = {
        True: ("1", "All constraints met"),
        False: ("0", "Fails required constraints"),
        None: ("-", grades.reason),
    }
    result, note = success[grades.success]
    return [*rows, ("Success@1", "Overall pass flag", result, note)]


def verifier_table(configs: Sequence[GraderConfig], grades: CaseGrades) -> str:
    """The rows in Markdown."""
    lines = ["| " + " | ".join(_HEADER) + " |", "|" + "---|" * len(_HEADER)]
    for row in verifier_rows(configs, grades):
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |")
    return "\n".join(lines) + "\n"
