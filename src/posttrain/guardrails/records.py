"""What a guardrail says: findings, and the end of a scan.

Here: plain values for the hot path. Not here: rules (``config``), finding (``personal``, ``phrases``), streams
(``scan``). No value in here carries the text that was found.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

Action: TypeAlias = Literal["report", "redact", "block"]
Verdict: TypeAlias = Literal["pass", "report", "redact", "block"]
"""The strongest thing that was done."""

VERDICTS: tuple[Verdict, ...] = ("pass", "report", "redact", "block")
"""From the weakest to the strongest."""


class Finding(NamedTuple):
    """One place that a rule spoke of."""

    rule: str
    """The rule's name."""
    kind: str
    """What it is: ``email``, ``iban``, ``blocked_terms``, ``length``…"""
    start: int
    """First character, counted in the text as it came."""
    end: int
    """The character after it; equal to ``start`` where the text as a whole is meant."""
    action: Action
    """What was done about it; in audit mode always ``report``."""
    place: str = ""
    """Of a request: ``messages[2].content``."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in an audit."""
        return self._asdict()


class RequestScan(NamedTuple):
    """What the rules say of a request."""

    action: Verdict
    findings: tuple[Finding, ...]
    prompt: Any
    """What may be sent on: the very object that came in unless something was redacted."""
    audit: dict[str, Any] | None
    """None where no rule looks at requests."""


class ScanEnd(NamedTuple):
    """The end of an answer."""

    tail: str
    """What was held back and may go out now."""
    action: Verdict
    findings: tuple[Finding, ...]
    audit: dict[str, Any]
    """For the traffic log: what was really scanned."""


def strongest(findings: tuple[Finding, ...] | list[Finding]) -> Verdict:
    """The strongest action among ``findings``."""
    return VERDICTS[max((VERDICTS.index(finding.action) for finding in findings), default=0)]
