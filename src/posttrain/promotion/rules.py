"""What a contract says, as data: its rules, and the options of its header with their defaults.

Here: frozen, torch-free records, made by the parser (``grammar``) or by hand in Python. Not here: what a metric is
(``metrics``), whether a rule holds (``checks``). Numbers are ``Decimal``, as written: 0.020 is twenty thousandths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Literal, TypeAlias

from posttrain.core.canonical import digest_bytes

Stat: TypeAlias = Literal["point", "lower_ci", "upper_ci", "p_value", "count"]
Comparator: TypeAlias = Literal[">=", "<=", "==", "<", ">"]
Scope: TypeAlias = Literal["candidate", "aggregate", "delta", "canary"]
"""What a rule looks at: the candidate's records, all of them weighted, the pairs with the baseline, or traffic."""

STATS: tuple[Stat, ...] = ("point", "lower_ci", "upper_ci", "p_value", "count")
COMPARATORS: tuple[Comparator, ...] = (">=", "<=", "==", "<", ">")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in its file something stands, from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class MetricCall:
    """A metric as a rule names it: ``api_version_match_rate(debug_search_api, '3.2.1')``."""

    name: str
    part: str | None = None
    """After the dot: ``schema`` in ``tool_call_correctness.schema``."""
    at: int | None = None
    """After the @: 1 in ``success@1``."""
    slice: str | None = None
    """The bare name among the arguments; None for all cases."""
    arguments: tuple[str, ...] = ()
    """The quoted arguments."""
    options: tuple[tuple[str, str], ...] = ()
    """The named arguments, in order of name."""

    def __str__(self) -> str:
        name = self.name + (f".{self.part}" if self.part else "") + (f"@{self.at}" if self.at else "")
        inside = [self.slice] if self.slice else []
        inside += [f"'{text}'" for text in self.arguments]
        inside += [f"{key}='{text}'" for key, text in self.options]
        return f"{name}({', '.join(inside)})" if inside else name


@dataclass(frozen=True, slots=True)
class ThresholdRule:
    """``metric.stat cmp number``."""

    text: str
    """The rule as written, without its comment."""
    place: Place
    scope: Scope
    metric: MetricCall
    stat: Stat
    comparator: Comparator
    threshold: Decimal

    @property
    def limit(self) -> Fraction:
        """The threshold, exactly."""
        return Fraction(self.threshold)

    @property
    def upward(self) -> bool:
        """Whether more is better for this rule."""
        return self.comparator in (">=", ">")

    @property
    def strictly(self) -> bool:
        """Whether a tie does not pass."""
        return self.comparator in ("<", ">")


@dataclass(frozen=True, slots=True)
class NoRegressionRule:
    """``no_regressions_on: [...]``: success@1 is not worse than the baseline's by the margin or more, on each slice."""

    text: str
    place: Place
    slices: tuple[str, ...]
    margin: Decimal | None = None
    """Of this rule; None for the contract's."""
    hard: tuple[str, ...] = ()
    """Cases that must not turn from right to wrong, whatever the margin."""


Rule: TypeAlias = ThresholdRule | NoRegressionRule


@dataclass(frozen=True, slots=True)
class Options:
    """The header of a contract: what its rules mean. Every one is printed with the decision."""

    confidence: Decimal = Decimal("0.95")
    """Two-sided confidence of every interval: a bound errs on its side with half of the rest."""
    margin: Decimal = Decimal("0.02")
    """How much worse than the baseline is still no regression, in success@1. ``margin.SLICE`` sets it for one slice."""
    margins: Mapping[str, Decimal] = field(default_factory=lambda: MappingProxyType({}))
    """Slice to its own margin."""
    alpha_rollback: Decimal = Decimal("0.05")
    """Chance that all canary triggers together ever roll back a model that is at its limits."""
    min_n: int = 1
    """Cases below which a slice is INCONCLUSIVE whatever it shows."""
    canary_min_n: int = 5000
    """Requests that a canary window must have before its rules can pass."""
    canary_hours: Decimal = Decimal("24")
    """Hours that a canary window must have lasted before its rules can pass."""
    srm_p: Decimal = Decimal("0.001")
    """p-value of the traffic split below which the canary is INVALID."""
    estimator: Literal["clopper-pearson", "korn-graubard"] = "clopper-pearson"
    """``clopper-pearson``: exact, the first sample of each case. ``korn-graubard``: all samples, 100 cases or more."""
    alternative: Literal["one-sided", "two-sided"] = "one-sided"
    """Of p-values: one-sided in the direction that the rules on the same metric ask for, or two-sided."""
    aggregate_weights: Literal["micro", "macro"] | Mapping[str, Decimal] = "micro"
    """``micro``: every case counts the same. ``macro``: every slice. Or weights: ``math_basic=1, tools=3``."""

    def margin_of(self, name: str) -> Decimal:
        """The margin of a slice."""
        return self.margins.get(name, self.margin)

    @property
    def level(self) -> Fraction:
        """The confidence, exactly."""
        return Fraction(self.confidence)

    def as_text(self) -> dict[str, str]:
        """Every option by its name in the header, as it would be written there."""
        weights = self.aggregate_weights
        fixed = {
            "confidence": self.confidence,
            "margin": self.margin,
            **{f"margin.{name}": value for name, value in sorted(self.margins.items())},
            "alpha_rollback": self.alpha_rollback,
            "min_n": self.min_n,
            "canary_min_n": self.canary_min_n,
            "canary_hours": self.canary_hours,
            "srm_p": self.srm_p,
            "estimator": self.estimator,
            "alternative": self.alternative,
            "aggregate_weights": weights
            if isinstance(weights, str)
            else ", ".join(f"{name}={value}" for name, value in sorted(weights.items())),
        }
        return {name: str(value) for name, value in fixed.items()}


@dataclass(frozen=True, slots=True)
class Contract:
    """A file of promotion rules."""

    text: str
    """The file, to the byte."""
    rules: tuple[Rule, ...]
    options: Options = field(default_factory=Options)
    origin: str = "contract"
    """What messages call it: the file's name."""

    @property
    def digest(self) -> str:
        """``sha256:`` of the text: a contract is registered by it before any run."""
        return digest_bytes(self.text.encode())

    def where(self, rule: Rule) -> str:
        """``file:line:column`` of a rule."""
        return f"{self.origin}:{rule.place.line}:{rule.place.column}"
