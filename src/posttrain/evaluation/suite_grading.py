"""The graders of a slice as the runner sees them, and which code they are.

Here: grades as rows keep them, which slices need a model to be graded, and the digests of the source files that grade.
Not here: any grader or the pass rule (``graders``), the processes that they run in (``grading_worker``).
"""

from __future__ import annotations

from pathlib import Path

from posttrain.core.canonical import digest_bytes
from posttrain.core.errors import DataError
from posttrain.environments.records import Answer, Case
from posttrain.environments.slice_records import SliceSpec
from posttrain.environments.suite import Suite
from posttrain.evaluation.graders import GraderConfig, GradingResources, SliceGraders, read_grader
from posttrain.evaluation.outcomes import Column
from posttrain.evaluation.suite_rows import Graded

_ROOT = Path(__file__).resolve().parents[1]
_LEARNED = ("reward_model", "llm_judge")
_ERROR_CHARACTERS = 300
FROZEN_CODE = (
    "data/languages.py",
    "environments/retrieval.py",
    "environments/sandbox",
    "environments/tools.py",
    "evaluation/conversation.py",
    "evaluation/graders",
    "evaluation/suite_grading.py",
    "rewards/formats.py",
    "rewards/parsing.py",
    "rewards/quantities.py",
    "rewards/records.py",
)
"""Files and folders of the package that decide what comes of an answer. A test finds what is missing here."""


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


def frozen_code() -> dict[str, str]:
    """Every source file of ``FROZEN_CODE``, by its path in the package, to its digest."""
    found = {}
    for place in FROZEN_CODE:
        root = _ROOT / place
        for path in [root] if root.is_file() else sorted(root.rglob("*.py")):
            source = path.read_bytes().replace(b"\r\n", b"\n")
            found[path.relative_to(_ROOT).as_posix()] = digest_bytes(source)
    return found


def check_code(suite: Suite) -> None:
    """Raise DataError where the suite was built with other code than is installed: its identity names that."""
    here = frozen_code()
    if dict(suite.code) == here:
        return
    names = sorted(here.keys() | suite.code.keys())
    other = next(name for name in names if here.get(name) != suite.code.get(name))
    raise DataError(
        f"the suite {suite.settings.name!r} was built with other code: {other} differs",
        hint="build it again with `posttrain suite build`, and evaluate the baseline on the new suite",
    )
