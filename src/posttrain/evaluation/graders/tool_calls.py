"""Graders of what an answer did on its way: its tool calls, and how many steps it took.

Here: checking calls against the schemas of the slice's tools. Not here: answering calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from posttrain.environments.records import Answer, Case, ToolCall
from posttrain.environments.suites.slice_records import ToolSpec
from posttrain.evaluation.graders import config as c
from posttrain.evaluation.graders.records import Grade, Metric
from posttrain.evaluation.graders.schemas import Schema
from posttrain.evaluation.graders.texts import Verdict


class ToolCallSchema(Verdict):
    """All calls are valid by their tools' schemas."""

    usual_metric = "tool_call_correctness.schema"
    meaning = "Every tool call names an offered tool and is valid by its schema."
    config: c.ToolCallSchemaConfig

    def __init__(self, config: c.ToolCallSchemaConfig, tools: Sequence[ToolSpec]) -> None:
        super().__init__(config)
        self._schemas: Mapping[str, Schema] = {tool.name: Schema(tool.parameters) for tool in tools}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The verdict and the number of calls."""
        return (*super().metrics, Metric("tool_calls", "int64", "Tool calls made."))

    def grade(self, case: Case, answer: Answer) -> Grade:
        """Check each call, then their order."""
        calls = answer.tool_calls
        fault = next((fault for call in calls if (fault := self._fault(case, call))), "")
        if not fault and len(calls) < self.config.min_calls:
            fault = f"{len(calls)} tool calls, at least {self.config.min_calls}"
        if not fault and not _in_order(self.config.order, [call.name for call in calls]):
            fault = "not called in the order " + ", ".join(self.config.order)
        return self.verdict(not fault, fault, tool_calls=len(calls))

    def _fault(self, case: Case, call: ToolCall) -> str:
        if call.name not in case.tools or call.name not in self._schemas:
            return f"unknown tool {call.name!r}"
        if call.arguments is None:
            return f"{call.name}: the arguments are not a JSON object"
        fault = self._schemas[call.name].fault(dict(call.arguments))
        return f"{call.name}: {fault}" if fault else ""


class Steps(Verdict):
    """The number of steps is within its limit."""

    usual_metric = "steps_within_limit"
    meaning = "The final answer came within the limit of steps."
    config: c.StepsConfig

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The verdict and the number of steps."""
        meaning = "Times the model was asked until its final answer, whether that was right or not."
        return (*super().metrics, Metric("steps_to_solve", "int64", meaning))

    def grade(self, case: Case, answer: Answer) -> Grade:
        """Compare with the limit; an answer that ran out of turns never came."""
        steps, limit = answer.turns, self.config.max_steps
        if answer.finish == "turns":
            return self.verdict(False, f"no final answer after {steps} steps", steps_to_solve=steps)
        if limit is not None and steps > limit:
            return self.verdict(False, f"{steps} steps, at most {limit}", steps_to_solve=steps)
        return self.verdict(True, f"{steps} steps", steps_to_solve=steps)


def _in_order(wanted: Sequence[str], made: Sequence[str]) -> bool:
    rest = iter(made)
    return all(name in rest for name in wanted)
