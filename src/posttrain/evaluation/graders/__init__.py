"""graders: what an answer to a case is worth.

One role: ``Grader.grade(case, answer) -> Grade(passed or None, metrics, reason)``. A slice's grader configs become one
``SliceGraders``, which also holds the slice's pass rule: all of its required graders pass. Kinds are in ``config``; a
judge or a reward model loads when it is first asked.
"""

from posttrain.evaluation.graders.config import KINDS, GraderConfig, read_grader
from posttrain.evaluation.graders.records import Grade, Grader, Metric
from posttrain.evaluation.graders.registry import CaseGrades, GradingResources, SliceGraders, build_grader
from posttrain.evaluation.graders.table import verifier_rows, verifier_table

__all__ = [
    "KINDS",
    "CaseGrades",
    "Grade",
    "Grader",
    "GraderConfig",
    "GradingResources",
    "Metric",
    "SliceGraders",
    "build_grader",
    "read_grader",
    "verifier_rows",
    "verifier_table",
]
