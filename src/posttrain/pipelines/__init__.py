"""pipelines: recipes and the runner that works through them, resumable and cached by content.

A recipe (YAML, or a mapping made by a Python function) is read, resolved against the stage registry into one
canonical JSON, and run stage by stage. Names are resolved when first used, so that importing this room loads
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from posttrain.core.lazy import lazy_names

if TYPE_CHECKING:
    from posttrain.pipelines.codeversion import CodeClosure, code_closure, code_version
    from posttrain.pipelines.compare_runs import compare_runs
    from posttrain.pipelines.doctor import Check, examine
    from posttrain.pipelines.overrides import apply_overrides, apply_variants
    from posttrain.pipelines.plan import PlannedStage, existing_home, lookup_in, plan_recipe
    from posttrain.pipelines.recipe import Recipe, RecipeSource, read_recipe, shipped_recipes
    from posttrain.pipelines.records import RunOutcome, StageOutcome
    from posttrain.pipelines.registry import STAGES
    from posttrain.pipelines.resolve import ResolvedRecipe, ResolvedStage, resolve_recipe
    from posttrain.pipelines.runner import resume_run, run_recipe
    from posttrain.pipelines.runs import find_run, latest_unfinished, read_events, remove_run, run_status
    from posttrain.pipelines.show import describe, list_recipes, list_runs
    from posttrain.pipelines.single import find_stage, stage_recipe

__all__ = [
    "STAGES",
    "Check",
    "CodeClosure",
    "EvaluationRequest",
    "FinishedEvaluation",
    "PlannedStage",
    "Recipe",
    "RecipeSource",
    "ResolvedRecipe",
    "ResolvedStage",
    "RunOutcome",
    "StageOutcome",
    "apply_overrides",
    "apply_variants",
    "code_closure",
    "code_version",
    "compare_runs",
    "describe",
    "evaluate_model",
    "event_line",
    "examine",
    "existing_home",
    "find_run",
    "find_stage",
    "find_suite",
    "keep_suite",
    "latest_unfinished",
    "list_recipes",
    "list_runs",
    "lookup_in",
    "plan_recipe",
    "prove_evaluation",
    "read_baseline",
    "read_events",
    "read_recipe",
    "remove_run",
    "resolve_recipe",
    "resume_command",
    "resume_run",
    "run_recipe",
    "run_status",
    "shipped_recipes",
    "stage_recipe",
    "verify_suite",
    "write_report",
]

_HOMES = {
    "codeversion": ("CodeClosure", "code_closure", "code_version"),
    "compare_runs": ("compare_runs",),
    "doctor": ("Check", "examine"),
    "eventlog": ("event_line",),
    "overrides": ("apply_overrides", "apply_variants"),
    "plan": ("PlannedStage", "existing_home", "lookup_in", "plan_recipe"),
    "recipe": ("Recipe", "RecipeSource", "read_recipe", "shipped_recipes"),
    "records": ("RunOutcome", "StageOutcome"),
    "registry": ("STAGES",),
    "resolve": ("ResolvedRecipe", "ResolvedStage", "resolve_recipe"),
    "runner": ("resume_run", "run_recipe"),
    "runs": ("find_run", "latest_unfinished", "read_events", "remove_run", "resume_command", "run_status"),
    "show": ("describe", "list_recipes", "list_runs"),
    "single": ("find_stage", "stage_recipe"),
    "suites": (
        "EvaluationRequest",
        "FinishedEvaluation",
        "evaluate_model",
        "find_suite",
        "keep_suite",
        "prove_evaluation",
        "read_baseline",
        "verify_suite",
        "write_report",
    ),
}


__getattr__ = lazy_names(__name__, _HOMES)
