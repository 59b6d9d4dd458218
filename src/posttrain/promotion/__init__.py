"""promotion: contracts of promotion rules, and the gate that applies one to a report.

Every verdict is exact and recomputable from the records. Not here: measuring (``evaluation``), taking traffic
(``serving``). Names load on first use, because the statistics need scipy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from posttrain.core.lazy import lazy_names

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

__all__ = [
    "DECISION_FILE",
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
    "Proportion",
    "Quantile",
    "RatioOfSums",
    "Report",
    "RuleResult",
    "ThresholdRule",
    "Total",
    "apply_rule",
    "decision_files",
    "find_metric",
    "gate",
    "lint",
    "parse_call",
    "parse_contract",
    "parse_rule",
    "read_contract",
    "read_report",
    "remake",
    "render_decision",
    "render_page",
]

_HOMES = {
    "": ("gate", "lint"),
    "errors": ("ContractError", "GateError"),
    "gate": ("Report", "apply_rule", "remake"),
    "gate_stage": ("DECISION_FILE", "decision_files", "read_report"),
    "grammar": ("parse_contract", "parse_rule", "read_contract"),
    "lint": ("Finding", "Known", "parse_call"),
    "metrics": ("METRICS", "Metric", "Proportion", "Quantile", "RatioOfSums", "Total", "find_metric"),
    "page": ("render_page",),
    "records": ("Check", "Decision", "RuleResult"),
    "rules": ("Contract", "NoRegressionRule", "Options", "ThresholdRule"),
    "terminal": ("render_decision",),
}


__getattr__ = lazy_names(__name__, _HOMES)
