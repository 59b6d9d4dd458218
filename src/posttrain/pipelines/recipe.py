"""Recipes: an ordered list of stages with named inputs and outputs, as people write them.

Here: the typed model of the YAML, finding and reading a recipe, and where each of its keys was written. Not
here: defaults, kinds and input wiring (``resolve``), ``--set`` (``overrides``), running (``runner``). There
are no templates, conditions or loops in a recipe: a sweep is a Python function that calls
``RecipeSource.from_mapping``.

To add a shipped recipe: one YAML file in ``recipes/``, named after its ``name`` key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from posttrain.core.errors import ConfigError, UnknownReferenceError
from posttrain.core.explain import Written
from posttrain.core.suggest import did_you_mean
from posttrain.core.yaml_text import KeyPath, parse_document

RECIPE_SCHEMA = 1
NAME_PATTERN = r"[A-Za-z][A-Za-z0-9_-]*"
_STAGE_OUTPUT = re.compile(rf"({NAME_PATTERN})\.({NAME_PATTERN})")
_MAX_RECIPE_BYTES = 1 << 20

Name = Annotated[str, StringConstraints(pattern=rf"^{NAME_PATTERN}$", max_length=64)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class StageEntry(_Record):
    """One stage of a recipe."""

    name: Name
    """Unique in the recipe; other stages and ``--set`` call it by this."""
    uses: str
    """Stage kind, a key of ``pipelines.registry.STAGES``."""
    inputs: Mapping[str, str | Mapping[Name, str]] = Field(default_factory=dict)
    """Input name to ``stage.output`` of an earlier stage or to an artifact reference; a mapping of such for
    an input that takes any number."""
    config: Mapping[str, Any] = Field(default_factory=dict, alias="with")
    """The keys of the stage's configuration that differ from its defaults."""


class Variant(_Record):
    """A named set of changes to a recipe, for ablations."""

    summary: str = ""
    """What the variant asks, in one line."""
    changes: Mapping[str, Any] = Field(alias="set")
    """Keys as ``--set`` writes them, with their values; a null for an input takes it out."""


class Recipe(_Record):
    """A recipe as written: sparse, nothing filled in."""

    schema_: Literal[1] = Field(alias="schema")
    """Version of this format."""
    name: Name
    title: str = ""
    """One line for people."""
    description: str = ""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Given to each stage that has a ``seed`` key and does not set it."""
    allow_hub: bool = False
    """Whether stages may download from the Hugging Face hub; otherwise the hub is switched off."""
    stages: tuple[StageEntry, ...] = Field(min_length=1)
    outputs: Mapping[Name, str] = Field(default_factory=dict)
    """Name to ``stage.output``: what the recipe is run for."""
    variants: Mapping[Name, Variant] = Field(default_factory=dict)
    """Ablations: ``posttrain run RECIPE --variant NAME``. A resolved recipe has none; they have been applied."""


@dataclass(frozen=True)
class RecipeSource(Written):
    """The data of a recipe before it is checked, with where each key was written."""

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any], origin: str = "recipe") -> RecipeSource:
        """A recipe made by a Python function."""
        return cls(data, origin)

    def key_name(self, path: KeyPath) -> str:
        """``path`` as people and ``--set`` write it: a stage's keys start with the stage's name."""
        parts = list(path)
        match parts:
            case ["stages", int(index), "with", *rest] | ["stages", int(index), *rest]:
                parts = [self._stage_name(index), *rest]
            case _:
                pass
        return ".".join(str(part) for part in parts)

    def with_data(self, data: Any, overrides: Mapping[KeyPath, str]) -> RecipeSource:
        """A copy with changed data and the record of what changed it."""
        return replace(self, data=data, overrides={**self.overrides, **overrides})

    def _stage_name(self, index: int) -> str:
        try:
            name = self.data["stages"][index]["name"]
        except (KeyError, IndexError, TypeError):
            return f"stages.{index}"
        return name if isinstance(name, str) else f"stages.{index}"


def split_stage_output(text: str) -> tuple[str, str] | None:
    """``("rl", "model")`` for ``rl.model``; None for text of another shape, which is an artifact
    reference."""
    found = _STAGE_OUTPUT.fullmatch(text)
    return (found[1], found[2]) if found else None


def shipped_recipes() -> dict[str, Path]:
    """Name to file of every recipe that comes with posttrain, sorted by name."""
    import posttrain  # only its location is wanted

    package = Path(posttrain.__file__).parent
    installed = package / "_recipes"
    folder = installed if installed.is_dir() else package.parents[1] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(reference: str | Path) -> Path:
    """The file that ``reference`` names: a path, or the name of a shipped recipe.

    Raises UnknownReferenceError naming the nearest shipped recipe.
    """
    path = Path(reference)
    shipped = shipped_recipes()
    if str(reference) in shipped and path.suffix == "":
        return shipped[str(reference)]
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1 or path.exists():
        if not path.exists():
            raise UnknownReferenceError(
                f"there is no recipe file {str(reference)!r}",
                hint="`posttrain recipes` lists those that are shipped",
            )
        return path
    raise UnknownReferenceError(
        f"there is no recipe {str(reference)!r}", hint=did_you_mean(str(reference), shipped)
    )


def read_recipe(reference: str | Path) -> RecipeSource:
    """Read the recipe file that ``reference`` names (see :func:`find_recipe`); nothing but YAML is checked.

    Raises UnknownReferenceError, or ConfigError for a file that cannot be read or is not YAML.
    """
    path = find_recipe(reference)
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_RECIPE_BYTES + 1)
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text", hint="a recipe is a YAML file") from error
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", hint="give the path of a readable recipe file"
        ) from error
    if len(raw) > _MAX_RECIPE_BYTES:
        raise ConfigError(f"{path} is larger than 1 MiB", hint="a recipe is a short YAML file")
    document = parse_document(text, str(path))
    if not isinstance(document.value, dict):
        raise ConfigError(
            f"{path}: a recipe is a mapping that starts with `schema: {RECIPE_SCHEMA}`",
            hint="`posttrain show RECIPE` prints a shipped one",
        )
    return RecipeSource(document.value, str(path), document.lines)


def each_input(inputs: Mapping[str, str | Mapping[str, str]]) -> Iterator[tuple[str, Sequence[str], str]]:
    """Every wire of a stage: ``(name as the stage sees it, key path below ``inputs``, text)``."""
    for name, value in inputs.items():
        if isinstance(value, str):
            yield name, (name,), value
        else:
            for key, text in value.items():
                yield f"{name}.{key}", (name, key), text
