"""What a gate decided, and the arithmetic by which it did.

Here: frozen, torch-free records with their JSON form. Not here: deciding (``gate``), layout (``terminal``, ``page``).
A decision holds everything that it was made from by digest, so ``posttrain gate verify`` can make it again and compare
bytes. Figures that are not exact are rounded to ten significant digits, far beyond what any rule reads: verdicts are
taken on the unrounded ones, and machines differ in the last bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, Field

from posttrain.core.documents import Digest, Document, Record

Verdict: TypeAlias = Literal["PASS", "FAIL", "INCONCLUSIVE", "ERROR"]
"""Of a rule: it holds; the data refute it; both are possible; it could not be judged."""
Outcome: TypeAlias = Literal["GO", "NO-GO", "INCONCLUSIVE", "ERROR", "INVALID"]
"""Of a contract. Only GO, which needs every rule to pass, lets a model go on."""

EXIT_CODES: Mapping[Outcome, int] = {"GO": 0, "NO-GO": 1, "ERROR": 2, "INVALID": 2, "INCONCLUSIVE": 3}
"""What ``posttrain gate`` exits with."""

STATISTICS_VERSION = 1
"""Of the formulas behind a decision; a change that can move a figure or a verdict gets a new number."""

_DIGITS = 10


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


Figure: TypeAlias = Annotated[float, AfterValidator(_rounded)]
"""A number that is not exact."""


class Check(Record):
    """One comparison: a threshold rule is one, ``no_regressions_on`` is one for each slice."""

    verdict: Verdict
    decision: str
    """The line that decides, with its numbers: ``P(X >= 198 | n=200, 0.98) = 0.2 > 0.025``."""
    slice: str | None = None
    """None for all cases."""
    metric: str = ""
    """The metric without its slice."""
    estimator: str = ""
    """How the figures were made."""
    cases: int = Field(0, ge=0)
    """Independent units behind the figures: cases, or requests of a canary."""
    samples: int = Field(0, ge=0)
    """Rows that were read for them."""
    missing: int = Field(0, ge=0)
    """Of those, rows without a value. They count against the candidate."""
    successes: int | None = None
    """True values, the total, or cases gained less lost."""
    value: Figure | None = None
    """The point."""
    exact: str | None = None
    """The point as a fraction, where it is one: ``174/200``."""
    low: Figure | None = None
    """Lower end of the two-sided interval; None where there is none or it is infinite."""
    high: Figure | None = None
    baseline: Figure | None = None
    """The baseline's point, where it was compared."""
    p_value: Figure | None = None
    margin: str | None = None
    """Of a non-inferiority check."""
    gained: int | None = None
    """Cases wrong in the baseline and right now; their ids are in the decision's ``flips``."""
    lost: int | None = None
    needed: int | None = None
    """Of an INCONCLUSIVE check: cases at which this effect would pass four times in five; None: no number helps."""
    coin_toss: bool = False
    """Whether the threshold of a point rule lies inside the interval: another draw of cases may decide otherwise."""
    notes: tuple[str, ...] = ()

    def revised(self, **changes: Any) -> Check:
        """A copy with these fields changed, validated and rounded like a new one."""
        return Check(**{**dict(self), **changes})


class RuleResult(Record):
    """A rule and how it came out."""

    text: str
    line: int
    column: int
    verdict: Verdict
    checks: tuple[Check, ...]
    """The worst of them is the verdict."""


class Evidence(Record):
    """A report that a decision rests on."""

    model: str
    suite: Digest
    lane: str
    header: Digest
    """Digest of the report's header."""
    content: Digest
    """Digest of every value in it."""
    artifact: Digest | None
    """The report's artifact in a store; None for a folder."""
    rows: int
    cases: int
    unscored: int


class Flips(Record):
    """Cases of one slice whose success changed."""

    gained: tuple[str, ...]
    lost: tuple[str, ...]


class TableRow(Record):
    """One row of the table that a decision opens with."""

    slice: str
    """``Aggregate`` in the last."""
    cases: int
    baseline: Figure | None
    """Success@1 of the baseline."""
    candidate: Figure | None
    metrics: tuple[str, ...]
    """``rule_violation_rate 0.62 → 0.06 ✗``."""


class SampleRatio(Record):
    """Whether traffic was split as meant."""

    counts: Mapping[str, int]
    weights: Mapping[str, int]
    p_value: Figure
    valid: bool


class Decision(Document):
    """A contract applied to a candidate."""

    record_kind: ClassVar[str] = "decision"

    outcome: Outcome
    contract: str
    """The contract's text, to the byte."""
    contract_digest: Digest
    options: Mapping[str, str]
    """Every option of the header, defaults included."""
    candidate: Evidence
    baseline: Evidence | None
    canary: Evidence | None
    rules: tuple[RuleResult, ...]
    table: tuple[TableRow, ...]
    flips: Mapping[str, Flips]
    """Slice to the cases that changed; empty without a comparable baseline."""
    sample_ratio: SampleRatio | None
    statistics: int = STATISTICS_VERSION
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """What the command line exits with."""
        return EXIT_CODES[self.outcome]


_SEVERITY: Mapping[Verdict, int] = {"PASS": 0, "INCONCLUSIVE": 1, "FAIL": 2, "ERROR": 3}


def worst(verdicts: tuple[Verdict, ...]) -> Verdict:
    """The verdict that counts among several. ERROR for none at all: nothing was judged."""
    return max(verdicts, key=lambda verdict: _SEVERITY[verdict], default="ERROR")
