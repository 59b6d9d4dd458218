"""One stage by itself, as a recipe of one stage: it runs, resumes, is reused and is recorded like any other.

Here: making that recipe. Not here: running it (``runner``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.artifacts.stage import StageSpec
from posttrain.core.errors import UnknownReferenceError
from posttrain.core.suggest import did_you_mean
from posttrain.pipelines.recipe import RECIPE_SCHEMA, RecipeSource


def find_stage(kind: str, stages: Mapping[str, StageSpec]) -> StageSpec:
    """The stage kind of that name; dashes are as good as underscores. Raises UnknownReferenceError."""
    spec = stages.get(kind) or stages.get(kind.replace("-", "_"))
    if spec is None:
        raise UnknownReferenceError(f"there is no stage kind {kind!r}", hint=did_you_mean(kind, stages))
    return spec


def stage_recipe(
    spec: StageSpec,
    inputs: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    allow_hub: bool = False,
) -> RecipeSource:
    """A recipe of one stage.

    ``inputs`` maps input names to artifact references (``sets.reasoning`` for one of an input that takes any number),
    ``config`` the keys that differ from the stage's defaults.
    """
    wired: dict[str, Any] = {}
    for name, reference in (inputs or {}).items():
        outer, _, inner = name.partition(".")
        if inner:
            wired.setdefault(outer, {})[inner] = reference
        else:
            wired[outer] = reference
    name = spec.kind.replace("_", "-")
    stage = {"name": name, "uses": spec.kind, "inputs": wired, "with": dict(config or {})}
    recipe = {
        "schema": RECIPE_SCHEMA,
        "name": name,
        "title": spec.summary,
        "seed": seed,
        "allow_hub": allow_hub,
        "stages": [stage],
        "outputs": {output: f"{name}.{output}" for output in spec.outputs},
    }
    return RecipeSource.from_mapping(recipe, origin=f"posttrain stage {name}")
