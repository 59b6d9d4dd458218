"""From a recipe as written to one that can run: every default filled in, every wire checked, one canonical
JSON.

Here: ``resolve_recipe``. Not here: stage keys, which need the digests of inputs (``plan``). The canonical
document of a resolved recipe is itself a recipe; resolving it again gives the same document, so an
unfinished run is taken up from what it stored.

Checked here, all before anything starts: keys and values of the recipe and of every stage's configuration;
stage kinds; that each input names an output of an *earlier* stage, or an artifact that exists, of the kind
that the stage declares; that no required input is left out. *Not checked*: what is inside the artifacts;
each stage does that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import ValidationError

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageSpec
from posttrain.core.canonical import canonical_json, digest_json, is_digest
from posttrain.core.errors import ConfigError, MissingArtifactError, UnknownReferenceError
from posttrain.core.explain import Problem, explain, raise_problems
from posttrain.core.suggest import did_you_mean
from posttrain.core.yaml_text import KeyPath
from posttrain.pipelines.recipe import Recipe, RecipeSource, StageEntry, each_input, split_stage_output
from posttrain.pipelines.registry import STAGES, config_class

Lookup: TypeAlias = Callable[[str], Artifact]
"""Finds the artifact that a reference names; raises UnknownReferenceError."""


@dataclass(frozen=True, slots=True)
class StageOutput:
    """An input wired to an output of an earlier stage, or an output of the recipe."""

    stage: str
    output: str

    def __str__(self) -> str:
        return f"{self.stage}.{self.output}"


@dataclass(frozen=True, slots=True)
class ArtifactInput:
    """An input wired to an artifact that exists outside the recipe."""

    reference: str
    """Its digest; the text of the recipe where nothing was looked up."""

    @property
    def digest(self) -> str | None:
        """The artifact's digest; None where nothing was looked up."""
        return self.reference if is_digest(self.reference) else None

    def __str__(self) -> str:
        return self.reference


Wire: TypeAlias = StageOutput | ArtifactInput


@dataclass(frozen=True, slots=True)
class ResolvedStage:
    """One stage, ready to run."""

    name: str
    spec: StageSpec
    config: StageConfig
    """With every default filled in."""
    inputs: Mapping[str, Wire]
    """By the names that the stage sees (``name`` or ``name.key``)."""

    @property
    def config_json(self) -> dict[str, Any]:
        """The configuration as JSON data."""
        return self.config.model_dump(mode="json", by_alias=True)


@dataclass(frozen=True, slots=True)
class ResolvedRecipe:
    """A recipe that can run."""

    recipe: Recipe
    """As written, with ``--set`` applied."""
    stages: tuple[ResolvedStage, ...]
    outputs: Mapping[str, StageOutput]
    document: Mapping[str, Any]
    """The canonical form: a recipe with nothing left to defaults. Artifact references are digests where they
    were looked up."""

    @property
    def name(self) -> str:
        """The recipe's name."""
        return self.recipe.name

    @property
    def digest(self) -> str:
        """Identity of the canonical document."""
        return digest_json(self.document)


def resolve_recipe(
    source: RecipeSource, *, stages: Mapping[str, StageSpec] = STAGES, lookup: Lookup | None = None
) -> ResolvedRecipe:
    """Check ``source`` completely and fill in every default.

    ``lookup`` finds artifacts named outside the recipe and pins them to their digests; without it they stay
    as written, unchecked. Raises one ConfigError that names every problem.
    """
    try:
        recipe = Recipe.model_validate(source.data)
    except ValidationError as error:
        raise_problems(source, explain(error, Recipe, source.data))
        raise
    resolver = _Resolver(recipe, stages, lookup)
    resolver.run()
    raise_problems(source, resolver.problems)
    resolved = ResolvedRecipe(
        recipe, tuple(resolver.done.values()), resolver.outputs, _document(recipe, resolver)
    )
    try:
        canonical_json(resolved.document)
    except ValueError as error:
        raise ConfigError(
            f"{source.origin}: {error}", hint="use numbers that JSON can carry exactly"
        ) from error
    return resolved


def _document(recipe: Recipe, resolver: _Resolver) -> dict[str, Any]:
    """The canonical recipe: same shape as the YAML."""
    stages = []
    for entry in recipe.stages:
        stage = resolver.done[entry.name]
        inputs: dict[str, Any] = {}
        for name, path, _ in each_input(entry.inputs):
            owner = inputs if len(path) == 1 else inputs.setdefault(path[0], {})
            owner[path[-1]] = str(stage.inputs[name])
        stages.append({"name": entry.name, "uses": entry.uses, "inputs": inputs, "with": stage.config_json})
    return {
        "schema": recipe.schema_,
        "name": recipe.name,
        "title": recipe.title,
        "description": recipe.description,
        "seed": recipe.seed,
        "allow_hub": recipe.allow_hub,
        "stages": stages,
        "outputs": {name: str(wire) for name, wire in resolver.outputs.items()},
    }


class _Resolver:
    """Walks the stages in order, collecting what is wrong rather than stopping at the first problem."""

    def __init__(self, recipe: Recipe, stages: Mapping[str, StageSpec], lookup: Lookup | None) -> None:
        self.recipe = recipe
        self.stages = stages
        self.lookup = lookup
        self.problems: list[Problem] = []
        self.done: dict[str, ResolvedStage] = {}
        self.outputs: dict[str, StageOutput] = {}
        self.names = [entry.name for entry in recipe.stages]
        self.earlier: dict[str, StageSpec | None] = {}
        """Stages before the current one; None where their kind is unknown, so that no follow-up problem is
        reported."""

    def run(self) -> None:
        for index, entry in enumerate(self.recipe.stages):
            path: KeyPath = ("stages", index)
            spec = self.stages.get(entry.uses)
            if entry.name in self.earlier:
                self._problem(
                    (*path, "name"), f"there are two stages called {entry.name!r}", "rename one of them"
                )
            elif spec is None:
                self._problem(
                    (*path, "uses"),
                    f"unknown stage kind {entry.uses!r}",
                    did_you_mean(entry.uses, self.stages),
                )
            else:
                self._stage(entry, spec, path)
            self.earlier.setdefault(entry.name, spec)
        for name, text in self.recipe.outputs.items():
            wire = self._stage_output(text, ("outputs", name))
            if wire is not None:
                self.outputs[name] = wire

    def _stage(self, entry: StageEntry, spec: StageSpec, path: KeyPath) -> None:
        config = self._config(entry, spec, (*path, "with"))
        inputs = self._inputs(entry, spec, (*path, "inputs"))
        if config is not None:
            self.done[entry.name] = ResolvedStage(entry.name, spec, config, inputs)

    def _config(self, entry: StageEntry, spec: StageSpec, path: KeyPath) -> StageConfig | None:
        model = config_class(spec)
        given = dict(entry.config)
        if "seed" in model.model_fields:
            given.setdefault("seed", self.recipe.seed)
        try:
            return model.model_validate(given)
        except ValidationError as error:
            self.problems.extend(explain(error, model, given, path))
            return None

    def _inputs(self, entry: StageEntry, spec: StageSpec, path: KeyPath) -> dict[str, Wire]:
        declared = {name.rstrip("?*"): (name, kind) for name, kind in spec.inputs.items()}
        for name, value in entry.inputs.items():
            if name not in declared:
                self._problem(
                    (*path, name), f"{spec.kind} has no input {name!r}", did_you_mean(name, declared)
                )
            elif declared[name][0].endswith("*") == isinstance(value, str):
                shape = "a mapping of name to stage.output" if isinstance(value, str) else "one stage.output"
                self._problem((*path, name), f"expected {shape}")
        for name, (marked, kind) in declared.items():
            if marked == name and name not in entry.inputs:
                self._problem(path, f"the input {name!r} is missing", self._where_from(name, kind))
        wires: dict[str, Wire] = {}
        for name, key, text in each_input(entry.inputs):
            if key[0] in declared:
                wire = self._wire(text, declared[key[0]][1], (*path, *key))
                if wire is not None:
                    wires[name] = wire
        return wires

    def _where_from(self, name: str, kind: str) -> str:
        offers = [
            f"{stage}.{output}"
            for stage, spec in self.earlier.items()
            if spec
            for output, offered in spec.outputs.items()
            if offered == kind
        ]
        source = offers[-1] if offers else "an artifact reference"
        return f"add `{name}: {source}` (an artifact of kind {kind!r})"

    def _wire(self, text: str, kind: str, path: KeyPath) -> Wire | None:
        split = split_stage_output(text)
        if split is not None and (split[0] in self.names or not self._exists(text)):
            wire = self._stage_output(text, path)
            spec = self.earlier[wire.stage] if wire else None
            if wire is not None and spec is not None and spec.outputs[wire.output] != kind:
                self._wrong_kind(path, text, spec.outputs[wire.output], kind)
            return wire
        if self.lookup is None:
            return ArtifactInput(text)
        try:
            artifact = self.lookup(text)
        except (UnknownReferenceError, MissingArtifactError) as error:
            self._problem(path, error.message, error.hint)
            return None
        if artifact.kind != kind:
            self._wrong_kind(path, text, artifact.kind, kind)
        return ArtifactInput(artifact.digest)

    def _exists(self, text: str) -> bool:
        """Whether a ref happens to be written like an output of a stage."""
        try:
            return self.lookup is not None and self.lookup(text) is not None
        except (UnknownReferenceError, MissingArtifactError):
            return False

    def _wrong_kind(self, path: KeyPath, text: str, given: str, wanted: str) -> None:
        self._problem(path, f"expected an artifact of kind {wanted!r}, given {text} of kind {given!r}")

    def _stage_output(self, text: str, path: KeyPath) -> StageOutput | None:
        split = split_stage_output(text)
        if split is None:
            self._problem(path, f"expected stage.output, given {text!r}", self._known_outputs(text))
            return None
        stage, output = split
        if stage not in self.earlier:
            if stage in self.names:
                self._problem(path, f"{text!r} comes from a stage that runs later", "move that stage up")
            else:
                self._problem(path, f"there is no stage {stage!r}", self._known_outputs(text))
            return None
        spec = self.earlier[stage]
        if spec is None:
            return None
        if output not in spec.outputs:
            self._problem(
                path, f"stage {stage!r} has no output {output!r}", did_you_mean(output, spec.outputs)
            )
            return None
        return StageOutput(stage, output)

    def _known_outputs(self, text: str) -> str:
        return did_you_mean(
            text,
            [f"{name}.{output}" for name, spec in self.earlier.items() if spec for output in spec.outputs],
        )

    def _problem(self, path: KeyPath, text: str, hint: str | None = None) -> None:
        self.problems.append(Problem(path, text, hint))
