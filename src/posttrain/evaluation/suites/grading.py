"""The graders of a slice as the runner sees them.

Here: grades as rows keep them, and which graders need a model. Not here: any grader or the pass rule (``graders``), the
processes that they run in (``grading_worker``).
"""

from __future__ import annotations

from posttrain.environments.records import Answer, Case
from posttrain.environments.suites.slice_records import SliceSpec
from posttrain.evaluation.graders import GraderConfig, GradingResources, SliceGraders, read_grader
from posttrain.evaluation.outcomes import Column
from posttrain.evaluation.suites.rows import Graded

_LEARNED = ("reward_model", "llm_judge")
_ERROR_CHARACTERS = 300


class SliceGrader:
    """Judges answers to the cases of one slice."""

    def __init__(self, spec: SliceSpec, resources: GradingResources | None = None) -> None:
        self._graders = SliceGraders(spec, resources)

    def grade(self, case: Case, answer: Answer) -> Graded:
        """What the slice's rule says of one answer."""
        found = self._graders.grade(case, answer)
        details = {
            name: {"passed": grade.passed, "reason": grade.reason} for name, grade in found.grades.items()
        }
        metrics = {name: value for name, value in found.metrics.items() if value is not None}
        if found.success is not None:
            return Graded(found.success, None, metrics, details)
        unsure = (name for name in self._graders.required if found.grades[name].passed is None)
        reasons = "; ".join(f"{name}: {found.grades[name].reason or 'could not tell'}" for name in unsure)
        return Graded(None, f"grader: {reasons}"[:_ERROR_CHARACTERS], metrics, details)

    def close(self) -> None:
        """End the sandboxes that grading started."""
        self._graders.close()


def grader_columns(spec: SliceSpec, resources: GradingResources | None = None) -> list[Column]:
    """The columns that a slice's graders fill."""
    graders = SliceGraders(spec, resources)
    try:
        return [Column(name=m.name, type=m.type, meaning=m.meaning) for m in graders.metrics]
    finally:
        graders.close()


def learned_graders(spec: SliceSpec) -> list[GraderConfig]:
    """The graders of a slice that ask a model: they cannot run in a process whose network is closed."""
    return [config for data in spec.graders if (config := read_grader(dict(data))).kind in _LEARNED]
