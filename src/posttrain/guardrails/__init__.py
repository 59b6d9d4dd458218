"""guardrails: simple rules over what goes in and what comes out, applied while it streams.

``config`` the rules as data, ``plan`` the rules compiled, ``scan`` one answer on its way out, ``records`` what they
say. A worker compiles once and asks twice for each request::

    plan = compile_guardrails(read_guardrails(data))
    asked = plan.request(body["messages"])       # .action, .findings, .prompt, .audit
    scan = plan.start(stream=True)               # None where no rule looks at answers
    out = scan.feed(piece)                       # what may go out now
    end = scan.finish()                          # .tail, .action, .findings, .audit
"""

from __future__ import annotations

from posttrain.core.lazy import lazy_names
from posttrain.guardrails.config import GuardrailConfig, read_guardrails
from posttrain.guardrails.plan import GuardrailPlan
from posttrain.guardrails.records import Finding, RequestScan, ScanEnd
from posttrain.guardrails.scan import Scan

__all__ = [
    "Finding",
    "GuardrailConfig",
    "GuardrailPlan",
    "PhraseFinder",
    "RequestScan",
    "Scan",
    "ScanEnd",
    "compile_guardrails",
    "fold",
    "read_guardrails",
]

_HOMES = {"": ("fold",), "phrases": ("PhraseFinder",)}


def compile_guardrails(config: GuardrailConfig) -> GuardrailPlan:
    """Make the rules ready. A few milliseconds for thousands of terms; once for a configuration."""
    return GuardrailPlan(config)


__getattr__ = lazy_names(__name__, _HOMES)
