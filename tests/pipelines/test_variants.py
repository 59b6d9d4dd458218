"""Variants of a recipe: named changes, stage inputs among them."""

from __future__ import annotations

import pytest

from posttrain.core.errors import ConfigError, UnknownReferenceError
from posttrain.pipelines import (
    STAGES,
    RecipeSource,
    ResolvedRecipe,
    apply_overrides,
    apply_variants,
    read_recipe,
    resolve_recipe,
    shipped_recipes,
)
from posttrain.pipelines.compare_runs import config_differences
from posttrain.pipelines.recipe import Recipe
from tests.pipelines.toy_stages import TOY_RECIPE, TOY_STAGES

SHIPPED = [
    (name, variant)
    for name in shipped_recipes()
    for variant in Recipe.model_validate(read_recipe(name).data).variants
]


@pytest.mark.parametrize(("name", "variant"), SHIPPED)
def test_every_shipped_variant_resolves_to_another_recipe(name: str, variant: str) -> None:
    plain = resolve_recipe(read_recipe(name))
    changed = resolve_recipe(apply_variants(read_recipe(name), [variant], STAGES))
    assert config_differences([plain.document, changed.document])
    assert variant in str(changed.document["title"])
    assert "variants" not in changed.document


def toy(*settings: str, variants: tuple[str, ...] = ()) -> ResolvedRecipe:
    import yaml

    data = yaml.safe_load(TOY_RECIPE)
    data["variants"] = {
        "longer": {"summary": "more steps", "set": {"second.steps": 9}},
        "alone": {"set": {"second.inputs.model": None, "report.inputs.runs.a": "second.model"}},
    }
    source = apply_variants(RecipeSource.from_mapping(data, "toy.yaml"), variants, TOY_STAGES)
    return resolve_recipe(apply_overrides(source, settings, TOY_STAGES), stages=TOY_STAGES)


def test_a_variant_sets_keys_and_rewires_inputs() -> None:
    both = toy(variants=("longer", "alone"))
    differences = {d["key"]: d["values"] for d in config_differences([toy().document, both.document])}
    assert differences == {
        "second.steps": [6, 9],
        "second.inputs.model": ["first.model", "–"],
        "report.inputs.runs.a": ["first.model", "second.model"],
    }
    assert toy("second.steps=2", variants=("longer",)).document["stages"][2]["with"]["steps"] == 2


def test_inputs_can_be_set_from_outside() -> None:
    assert (
        toy("report.inputs.runs.b=first.model").document["stages"][3]["inputs"]["runs"]["b"] == "first.model"
    )
    with pytest.raises(ConfigError, match="there is no stage 'frist'"):
        toy("second.inputs.model=frist.model")


def test_unknown_variants_name_the_nearest() -> None:
    with pytest.raises(UnknownReferenceError, match="no variant 'loger'") as failure:
        toy(variants=("loger",))
    assert "longer" in str(failure.value.hint)
    with pytest.raises(UnknownReferenceError, match="no variant") as failure:
        apply_variants(read_recipe("r1-zero-tiny"), ["x"], STAGES)
    assert "it has none" in str(failure.value.hint)
