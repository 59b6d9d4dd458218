"""What a person writes to make a release: a short YAML or JSON file, or options of the command line.

Here: the file's form, reading it, and saying what is wrong with it. Not here: looking up what it names (``create``).
Unknown keys are refused and the nearest known one is named; a key that is written twice is refused.

    name: v1.3
    model: 20261125-003407-b98a:final-rl.model      # an artifact; or {hub: NAME@COMMIT}, {file: PATH}
    sampling: {temperature: 0.2, top_p: 0.9}
    tools: {search_api: "3.2.1", fixtures: {file: search_v3.json}}
    contract: {file: promote.rules}
    decision: 20261125-003407-b98a:gate.decision
    parent: v1.2

A piece is a text or one of ``{artifact: REF}``, ``{file: PATH}``, ``{files: [PATH, …]}``, ``{hub: NAME@COMMIT}``,
``{git: COMMIT}``, ``{api: NAME@VERSION}``, ``{package: NAME==VERSION}``, ``{version: LABEL}``. A text is a version
under ``verifiers`` and ``tools``, and an artifact everywhere else. Paths start at the file's own folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeAlias, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from posttrain.core.documents import Record
from posttrain.core.errors import ConfigError
from posttrain.core.suggest import did_you_mean
from posttrain.releases.fields import Name, ReleaseName, Sampling
from posttrain.releases.policies import RollbackPolicy, SloPolicy


class PieceMapping(Record):
    """A piece, said explicitly; exactly one key."""

    artifact: str | None = None
    """A reference to an artifact of the home."""
    file: str | None = None
    """A file or a folder, copied into the release."""
    files: tuple[str, ...] | None = Field(None, min_length=1)
    """Several files, copied into the release."""
    hub: str | None = None
    """``NAME@COMMIT`` of a model hub."""
    git: str | None = None
    """A commit, or ``URL@COMMIT``."""
    api: str | None = None
    """``NAME@VERSION`` of a service."""
    package: str | None = None
    """``NAME==VERSION``."""
    version: str | None = None
    """A version label."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"give exactly one of {', '.join(PieceMapping.model_fields)}")
        return self


PieceSpec: TypeAlias = str | PieceMapping


class AdapterSpec(Record):
    """An adapter."""

    name: Name
    """Unique in the release."""
    piece: PieceSpec
    """Where it is."""


class CodeSpec(Record):
    """The code, where the repository around the spec file is not it."""

    commit: Name | None = None
    """Of the code that made the model."""
    dirty: bool | None = None
    """Whether files differed from it."""
    posttrain: Name | None = None
    """Version of posttrain that made the model."""


class ResultSpec(Record):
    """A report with the figures to remember; without ``headline`` they are looked up."""

    report: PieceSpec
    """The whole report."""
    headline: Mapping[Name, float] | None = None
    """Figures by name."""


class ReleaseSpec(Record):
    """A release as a person writes it. What is left out is looked up (see ``create``)."""

    name: ReleaseName
    """For people, never used twice: ``v1.3``."""
    model: PieceSpec
    """The base weights."""
    adapters: tuple[AdapterSpec, ...] = ()
    """In the order in which they are applied."""
    tokenizer: PieceSpec | None = None
    """Left out: the tokenizer files of the model's artifact."""
    chat_template: PieceSpec | None = None
    """Left out: that of the model's artifact."""
    input_processing: PieceSpec | None = None
    """What happens to a request before the template."""
    sampling: Sampling = Field(default_factory=dict)
    """What a request that does not say otherwise is given."""
    reward_models: Mapping[Name, PieceSpec] | None = None
    """Left out: the reward models in the model's lineage."""
    verifiers: Mapping[Name, PieceSpec] = Field(default_factory=dict)
    """Name to version, or to a piece."""
    tools: Mapping[Name, PieceSpec] = Field(default_factory=dict)
    """Name to version, or to a piece: fixtures by ``{file: PATH}``."""
    data: Mapping[Name, PieceSpec] | None = None
    """Left out: the datasets in the model's lineage."""
    configuration: Mapping[Name, PieceSpec] = Field(default_factory=dict)
    """``recipe`` is added where a run of this home made the model."""
    code: CodeSpec | None = None
    """Left out: the Git repository around the spec file, and this posttrain."""
    results: Mapping[Name, PieceSpec | ResultSpec] | None = None
    """Left out: the report that the decision rests on."""
    contract: PieceSpec | None = None
    """Left out: the contract that the decision was made under."""
    decision: PieceSpec | None = None
    """What the gate said about this model."""
    slo: SloPolicy | None = None
    """Service level objectives, named fields."""
    rollback: RollbackPolicy | None = None
    """When to go back, named fields."""
    drift_profile: PieceSpec | None = None
    """What the traffic looked like that it was made for."""
    parent: str | None = None
    """An earlier release, by name or digest."""


def parse_spec(data: Any, origin: str = "release") -> ReleaseSpec:
    """The spec of a parsed document. Raises ConfigError that names the key, what is wrong, and the nearest key."""
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"{origin}: expected a mapping of keys", hint="name, model…: `posttrain release create -h`"
        )
    try:
        return ReleaseSpec.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        # The members of a union all complain; the most specific complaint is the one deepest in.
        raise _explained(max(details, key=_weight), origin) from error


def read_spec(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file, not yet checked. Raises ConfigError."""
    found = read_yaml(path)
    if not isinstance(found, dict):
        raise ConfigError(f"{path.name}: expected a mapping of keys", hint="see docs/releases.md")
    return found


def read_yaml(path: Path) -> Any:
    """The value in a YAML or JSON file; a key written twice is refused. Raises ConfigError."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", hint="give a YAML or JSON file") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_twice(node, path.name)
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        first = (str(error) or "nested too deeply").splitlines()[0]
        raise ConfigError(
            f"{path.name}: not valid YAML: {first}", hint="check the indentation and quotes"
        ) from error


def _refuse_twice(node: Any, origin: str) -> None:
    import yaml

    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"{origin}:{line}: {key.value!r} is there twice", hint="remove one of them")
            seen.add(key.value)
            _refuse_twice(value, origin)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_twice(value, origin)


def _weight(detail: ErrorDetails) -> tuple[int, int]:
    return (len(detail["loc"]), 0 if detail["type"] in ("string_type", "model_type") else 1)


def _explained(detail: ErrorDetails, origin: str) -> ConfigError:
    location = [part for part in detail["loc"] if not _is_member(part)]
    path = ".".join(map(str, location))
    if detail["type"] == "extra_forbidden":
        return ConfigError(
            f"{origin}: {path}: unknown key",
            hint=did_you_mean(str(location[-1]), _keys_at(detail["loc"][:-1])),
        )
    if detail["type"] == "missing":
        return ConfigError(f"{origin}: {path}: this key is required", hint="add it")
    if detail["type"] == "value_error":
        return ConfigError(f"{origin}: {path or 'release'}: {detail['ctx']['error']}")
    if detail["type"] in ("model_type", "model_attributes_type", "dict_type", "mapping_type"):
        known = ", ".join(_keys_at(detail["loc"]))
        return ConfigError(
            f"{origin}: {path}: expected a mapping of named fields, given {_given(detail['input'])}",
            hint=f"its fields: {known}" if known else None,
        )
    hint = "quote it: versions are text" if detail["type"] == "string_type" else None
    return ConfigError(
        f"{origin}: {path}: {detail['msg'][:1].lower()}{detail['msg'][1:]}, given {_given(detail['input'])}",
        hint=hint,
    )


def _is_member(part: int | str) -> bool:
    """Whether pydantic added this part of a place to say which member of a union it means."""
    return part in ("str", "PieceMapping", "ResultSpec") or (isinstance(part, str) and "[" in part)


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    models: list[type[BaseModel]] = [ReleaseSpec]
    for part in location:
        below = [
            m
            for model in models
            if part in model.model_fields
            for m in _models_in(model.model_fields[str(part)])
        ]
        models = below or [model for model in models if model.__name__ == part] or models
    return sorted({name for model in models for name in model.model_fields})


def _models_in(field: Any) -> list[type[BaseModel]]:
    found, waiting = [], [getattr(field, "annotation", field)]
    while waiting:
        annotation = waiting.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        waiting.extend(get_args(annotation))
    return found


def _given(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
