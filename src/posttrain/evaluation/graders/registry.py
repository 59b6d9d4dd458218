"""From configuration to graders, and the pass rule of a slice.

Here: one builder a kind, all graders of a slice as one (``SliceGraders``). To add a grader, see ``config``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.core.errors import ConfigError
from posttrain.core.suggest import did_you_mean
from posttrain.engines.reward_scorer import RewardScorer
from posttrain.environments.records import Answer, Case
from posttrain.environments.sandbox import Sandbox
from posttrain.environments.suites.slice_records import SliceSpec
from posttrain.evaluation.graders import config as c
from posttrain.evaluation.graders import learned, rules, texts, tool_calls, unit_tests
from posttrain.evaluation.graders.records import Grade, Grader, Metric, MetricValue


@dataclass(frozen=True, slots=True)
class GradingResources:
    """What graders use that no config can hold."""

    sandbox: Sandbox | None = None
    """Shared by all slices; by default each ``unit_tests`` grader starts its own from its config."""
    reward_model: Callable[[], RewardScorer] | None = None
    """Loads the reward model, once, when the first answer is graded."""
    judge_model: Callable[[], tuple[Any, Any]] | None = None
    """Loads the model and the tokenizer of a judge of kind ``model``."""


@dataclass(frozen=True, slots=True)
class CaseGrades:
    """What all graders of a slice said of one answer."""

    success: bool | None
    """The pass rule: False where a required grader failed it, None where one of them could not tell, else True."""
    grades: Mapping[str, Grade] = field(default_factory=dict)
    """By grader name, in the order of the slice."""

    @property
    def metrics(self) -> dict[str, MetricValue]:
        """All columns."""
        return {name: value for grade in self.grades.values() for name, value in grade.metrics.items()}

    @property
    def reason(self) -> str:
        """The graders that failed, and those that could not tell, with their reasons."""
        said = [f"{name}: {grade.reason}" for name, grade in self.grades.items() if not grade.passed]
        return "; ".join(said)


class SliceGraders:
    """The graders of one slice. Close it: a sandbox of its own has processes."""

    def __init__(self, spec: SliceSpec, resources: GradingResources | None = None) -> None:
        self.configs = tuple(c.read_grader(dict(data)) for data in spec.graders)
        self.required = spec.required
        self._own: list[Sandbox] = []
        _check_names(spec, self.configs)
        built: dict[str, Grader] = {}
        for config in sorted(self.configs, key=lambda config: config.kind == "rule_set"):
            built[config.name] = self._build(config, spec, resources or GradingResources(), built)
        self.graders: tuple[Grader, ...] = tuple(built[config.name] for config in self.configs)
        self.metrics = _metrics(spec.name, self.graders)
        """Every column of the slice."""

    def grade(self, case: Case, answer: Answer) -> CaseGrades:
        """All grades of one answer. A grader that raises could not tell."""
        grades = {grader.name: _grade_safely(grader, case, answer) for grader in self.graders}
        verdicts = [grades[name].passed for name in self.required]
        success = False if False in verdicts else None if None in verdicts else True
        return CaseGrades(success, grades)

    def close(self) -> None:
        """End the sandboxes that were started for this slice."""
        for sandbox in self._own:
            sandbox.close()

    def _build(
        self,
        config: c.GraderConfig,
        spec: SliceSpec,
        resources: GradingResources,
        built: Mapping[str, Grader],
    ) -> Grader:
        match config:
            case c.RuleSetConfig():
                return rules.RuleSet(config, [built[name] for name in config.counts])
            case c.ToolCallSchemaConfig():
                return tool_calls.ToolCallSchema(config, spec.tools)
            case c.UnitTestsConfig():
                sandbox = resources.sandbox
                if sandbox is None:
                    sandbox = Sandbox(config.sandbox)
                    self._own.append(sandbox)
                return unit_tests.UnitTests(config, spec.files, sandbox)
            case c.RewardModelConfig():
                return learned.RewardModel(config, resources.reward_model)
            case c.LlmJudgeConfig():
                return learned.LlmJudge(config, resources.judge_model)
        return _PLAIN[config.kind](config)


_PLAIN: dict[str, Callable[[Any], Grader]] = {
    "exact": texts.Exact,
    "numeric": texts.Numeric,
    "regex": texts.Regex,
    "json_schema": texts.JsonSchema,
    "word_limit": texts.WordLimit,
    "answer_tag": texts.AnswerTag,
    "one_language": texts.OneLanguage,
    "step_check": texts.StepCheck,
    "version_match": rules.VersionMatch,
    "deprecation": rules.Deprecation,
    "steps": tool_calls.Steps,
}


def build_grader(data: Mapping[str, Any], resources: GradingResources | None = None) -> Grader:
    """One grader by itself, of a slice without tools and files."""
    config = c.read_grader(dict(data))
    spec = SliceSpec("alone", "", (), (data,), (config.name,))
    return SliceGraders(spec, resources).graders[0]


def _grade_safely(grader: Grader, case: Case, answer: Answer) -> Grade:
    try:
        return grader.grade(case, answer)
    except (
        Exception
    ) as error:  # a boundary: what a grader cannot handle is recorded data, never a failure of the model
        empty: dict[str, MetricValue] = {metric.name: None for metric in grader.metrics}
        return Grade(None, empty, f"the grader raised {type(error).__name__}: {error}")


def _check_names(spec: SliceSpec, configs: Sequence[c.GraderConfig]) -> None:
    names = [config.name for config in configs]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ConfigError(
            f"slice {spec.name!r}: two graders are called {doubled[0]!r}",
            hint="give one of them another `name`",
        )
    if not spec.required:
        raise ConfigError(f"slice {spec.name!r} requires no grader", hint="name at least one in `required`")
    plain = [config.name for config in configs if config.kind != "rule_set"]
    wanted = [(name, names) for name in spec.required]
    wanted += [(name, plain) for config in configs if config.kind == "rule_set" for name in config.counts]
    for name, known in wanted:
        if name not in known:
            raise ConfigError(f"slice {spec.name!r} has no grader {name!r}", hint=did_you_mean(name, known))
    for config in configs:
        for name in config.files if config.kind == "unit_tests" else ():
            if name not in spec.files:
                raise ConfigError(
                    f"slice {spec.name!r} has no file {name!r}", hint=did_you_mean(name, spec.files)
                )


def _metrics(slice_name: str, graders: Sequence[Grader]) -> tuple[Metric, ...]:
    found = tuple(metric for grader in graders for metric in grader.metrics)
    names = [metric.name for metric in found]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ConfigError(
            f"slice {slice_name!r}: two graders fill the column {doubled[0]!r}",
            hint="set `metric` of one of them",
        )
    return found
