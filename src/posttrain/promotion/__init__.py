"""promotion: contracts of promotion rules, and the gate that applies one to a report.

Every verdict is exact and recomputable from the records. Not here: measuring (``evaluation``), taking traffic
(``serving``). Names load on first use, because the statistics need scipy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.promotion.errors import ContractError, GateError
    from posttrain.promotion.gate import Report, apply_rule, remake
    from posttrain.promotion.grammar import parse_contract, parse_rule, read_contract
    from posttrain.promotion.lint import Finding, Known
    from posttrain.promotion.metrics import METRICS, Metric
    from posttrain.promotion.page import render_page
    from posttrain.promotion.records import Check, Decision, RuleResult
    from posttrain.promotion.rules import Contract, NoRegressionRule, Options, ThresholdRule
    from posttrain.promotion.terminal import render_decision

# ``gate`` and ``lint`` are functions in modules of the same name: import them from there.
_HOMES = {
    "errors": ("ContractError", "GateError"),
    "gate": ("Report", "apply_rule", "remake"),
    "grammar": ("parse_contract", "parse_rule", "read_contract"),
    "lint": ("Finding", "Known"),
    "metrics": ("METRICS", "Metric"),
    "page": ("render_page",),
    "records": ("Check", "Decision", "RuleResult"),
    "rules": ("Contract", "NoRegressionRule", "Options", "ThresholdRule"),
    "terminal": ("render_decision",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "METRICS",
    "Check",
    "Contract",
    "ContractError",
    "Decision",
    "Finding",
    "GateError",
    "Known",
    "Metric",
    "NoRegressionRule",
    "Options",
    "Report",
    "RuleResult",
    "ThresholdRule",
    "apply_rule",
    "parse_contract",
    "parse_rule",
    "read_contract",
    "remake",
    "render_decision",
    "render_page",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
