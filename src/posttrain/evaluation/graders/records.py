"""What a grader says of one answer.

Here: frozen records and the role. Not here: any grader. ``Grade.passed`` is None where an answer *could not be graded*
(the sandbox failed, a judge did not answer): never a pass and never a failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, TypeAlias

from posttrain.environments.records import Answer, Case

MetricValue: TypeAlias = bool | int | float | None


class Metric(NamedTuple):
    """One column that a grader fills."""

    name: str
    """As a promotion rule's column, arguments included: ``api_version_match('3.2.1')``."""
    type: Literal["bool", "int64", "float64"]
    meaning: str
    """One sentence: what is true, counted or measured, and its unit."""


@dataclass(frozen=True, slots=True)
class Grade:
    """The verdict of one grader on one answer."""

    passed: bool | None
    """None where it could not be graded."""
    metrics: Mapping[str, MetricValue] = field(default_factory=dict)
    """Value by metric name; None for one that could not be measured."""
    reason: str = ""
    """Why, in a few words, for tables; of a pass it may be empty."""


class Grader(Protocol):
    """Anything that judges one answer. The same answer always gets the same grade."""

    @property
    def name(self) -> str:
        """Unique in its slice."""
        ...

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Every column that it may fill."""
        ...

    def grade(self, case: Case, answer: Answer) -> Grade:
        """Judge ``answer``."""
        ...
