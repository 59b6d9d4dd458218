"""Stage ``gate``: a contract applied to the report of a suite evaluation, kept as a ``decision`` artifact.

Here: artifacts in, artifact out. Not here: judging (``gate``). A verdict that is not GO does not fail the stage: the
decision is what was asked for, and a stage that failed would leave none. Who promotes reads the outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult

if TYPE_CHECKING:
    from posttrain.artifacts.writer import ArtifactWriter
    from posttrain.promotion.gate import Report
    from posttrain.promotion.records import Decision

DECISION_KIND = "decision"
DECISION_FILE = "decision.json"
PAGE_FILE = "decision.html"
TEXT_FILE = "decision.txt"


class GateConfig(StageConfig):
    """Config of the ``gate`` stage."""

    contract: str = Field(min_length=1)
    """The text of the contract, rules and header, to the byte."""

    @field_validator("contract")
    @classmethod
    def _parses(cls, value: str) -> str:
        from posttrain.promotion.errors import ContractError
        from posttrain.promotion.grammar import parse_contract

        try:
            parse_contract(value)
        except ContractError as error:  # pydantic wants a ValueError whose text is the whole message
            raise ValueError(f"{error.message}{f' ({error.hint})' if error.hint else ''}") from error
        return value


def run_gate(config: GateConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageResult:
    """Decide. Inputs: ``candidate``, optional ``baseline`` and ``canary`` (reports of suites, or of traffic).

    Output: ``decision`` with ``decision.json``, ``decision.html`` and ``decision.txt``.
    """
    from posttrain.promotion.gate import gate
    from posttrain.promotion.grammar import parse_contract

    reports = {
        name: read_report(context.store.view(artifact), artifact.digest) for name, artifact in inputs.items()
    }
    decision = gate(
        parse_contract(config.contract),
        reports["candidate"],
        baseline=reports.get("baseline"),
        canary=reports.get("canary"),
    )
    with context.writer(DECISION_KIND, "decision", meta={"outcome": decision.outcome}) as writer:
        add_decision(writer, decision)
        artifact = writer.commit()
    context.emit("note", text=f"gate: {decision.outcome}")
    return StageResult({"decision": artifact}, {"outcome": decision.outcome})


def read_report(folder: Path, artifact: str | None = None) -> Report:
    """The report in a folder. Raises DataError."""
    from posttrain.evaluation.outcomes import read_outcomes
    from posttrain.promotion.gate import Report

    return Report(read_outcomes(folder), artifact)


def add_decision(writer: ArtifactWriter, decision: Decision) -> None:
    """Put a decision's three files into an artifact."""
    for name, data in decision_files(decision).items():
        writer.add_bytes(name, data)


def decision_files(decision: Decision) -> dict[str, bytes]:
    """The files of a decision: the record last, since it is what makes the folder one."""
    from posttrain.promotion.page import render_page
    from posttrain.promotion.terminal import render_decision

    return {
        PAGE_FILE: render_page(decision).encode(),
        TEXT_FILE: render_decision(decision).encode(),
        DECISION_FILE: decision.to_bytes() + b"\n",
    }
