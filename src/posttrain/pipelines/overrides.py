"""``--set key=value`` and ``--variant name``: changing keys of a recipe without editing it.

Here: ``stage.key`` (the stage's ``with`` keys, nested ones by dots, list items by position), ``stage.inputs.name``
(another output or artifact; null takes it out) and top-level keys such as ``seed``. Not here: whether the result is
valid; an unknown key is refused by ``resolve`` like one in the file. A list or mapping that the recipe leaves to its
default is first filled in, so that setting one of its keys keeps the others.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from posttrain.artifacts.stage import StageSpec
from posttrain.core.errors import ConfigError, UnknownReferenceError
from posttrain.core.explain import models_at
from posttrain.core.suggest import did_you_mean
from posttrain.core.yaml_text import KeyPath, parse_value
from posttrain.pipelines.recipe import Recipe, RecipeSource
from posttrain.pipelines.registry import config_class

_TOP_KEYS = ("seed", "allow_hub", "name", "title", "description")


def apply_overrides(
    source: RecipeSource, settings: Iterable[str], stages: Mapping[str, StageSpec]
) -> RecipeSource:
    """``source`` with each ``key=value`` applied in order.

    ``stages`` gives the defaults of lists and mappings. Raises ConfigError for text that is not
    ``key=value``, for a first part that names neither a stage nor a top-level key, and for a path that leads
    through a scalar.
    """
    data = copy.deepcopy(source.data)
    overrides: dict[KeyPath, str] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        parts = [part.strip() for part in key.strip().split(".")]
        if not equals or not all(parts):
            raise ConfigError(
                f"--set {setting}: expected key=value", hint="for example --set rl.steps=10 or --set seed=3"
            )
        path = _change(_Put(data, f"--set {setting}", stages), parts, parse_value(text))
        overrides[path] = f"--set {setting}"
    return source.with_data(data, overrides)


def apply_variants(
    source: RecipeSource, names: Iterable[str], stages: Mapping[str, StageSpec]
) -> RecipeSource:
    """``source`` with the changes of its variants ``names`` applied in order.

    Its title says which. Raises UnknownReferenceError for a variant that it does not have.
    """
    data = copy.deepcopy(source.data)
    known = data.get("variants") or {} if isinstance(data, dict) else {}
    overrides: dict[KeyPath, str] = {}
    for name in names:
        if name not in known:
            raise UnknownReferenceError(
                f"{source.origin} has no variant {name!r}",
                hint=did_you_mean(name, known) if known else "it has none",
            )
        for key, value in known[name]["set"].items():
            label = f"variant {name}: {key}"
            overrides[_change(_Put(data, label, stages), key.split("."), copy.deepcopy(value))] = label
        data["title"] = f"{data.get('title') or data.get('name')}, {name}"
    return source.with_data(data, overrides)


def _change(put: _Put, parts: list[str], value: Any) -> KeyPath:
    """Set one key in the data of a recipe; returns where it stands."""
    path = put.put(_locate(put.data, parts, put.setting), value)
    if value is None and len(path) == 4 and path[2] == "inputs":
        del put.data["stages"][path[1]]["inputs"][path[3]]
    return path


def _locate(data: Any, parts: list[str], setting: str) -> KeyPath:
    entries = data.get("stages") if isinstance(data, dict) else None
    names = [
        entry.get("name") if isinstance(entry, dict) else None
        for entry in (entries if isinstance(entries, list) else [])
    ]
    if len(parts) > 2 and parts[0] in names and parts[1] == "inputs":
        return ("stages", names.index(parts[0]), *parts[1:])
    if len(parts) > 1 and parts[0] in names:
        return ("stages", names.index(parts[0]), "with", *parts[1:])
    if len(parts) == 1 and parts[0] in _TOP_KEYS:
        return (parts[0],)
    known = [f"{name}.{'.'.join(parts[1:])}" for name in names if name] if len(parts) > 1 else list(_TOP_KEYS)
    hint = did_you_mean(".".join(parts), known)
    raise ConfigError(
        f"{setting}: {parts[0]!r} is neither a stage of this recipe nor one of its keys",
        hint="write stage.key=value; " + hint,
    )


class _Put:
    """Sets one value in the data of a recipe."""

    def __init__(self, data: Any, setting: str, stages: Mapping[str, StageSpec]) -> None:
        self.data = data
        self.setting = setting
        self.stages = stages

    def put(self, path: KeyPath, value: Any) -> KeyPath:
        """Set it and return the path with list positions as numbers."""
        here, steps = self.data, list[str | int]()
        for part in path:
            steps.append(self._step(here, part))
            if len(steps) == len(path):
                here[steps[-1]] = value
                break
            if isinstance(here, dict) and here.get(steps[-1]) is None:
                here[steps[-1]] = self._default_at(steps)
            here = here[steps[-1]]
        return tuple(steps)

    def _step(self, container: Any, part: str | int) -> str | int:
        if isinstance(container, dict):
            return part
        if isinstance(container, list):
            position = int(part) if isinstance(part, int) or part.isdecimal() else len(container)
            if position < len(container):
                return position
            raise ConfigError(
                f"{self.setting}: {part!r} is not a position in a list of {len(container)}",
                hint=f"use 0 to {len(container) - 1}" if container else "set the whole list: key=[…]",
            )
        raise ConfigError(
            f"{self.setting}: {part!r} leads into a value that has no keys", hint="set the value itself"
        )

    def _default_at(self, path: list[str | int]) -> Any:
        """The default of a list or mapping that the recipe leaves out; an empty mapping where there is
        none."""
        model: type[BaseModel] = Recipe
        below = path
        match path:
            case ["stages", int(index), "with", *keys] if keys:
                spec = self.stages.get(str(self.data["stages"][index].get("uses")))
                if spec is None:
                    return {}
                model, below = config_class(spec), keys
            case _:
                pass
        for owner in models_at(model, below[:-1]):
            for name, field in owner.model_fields.items():
                if below[-1] == (field.alias or name):
                    default = field.get_default(call_default_factory=True, validated_data={})
                    plain = None if default is PydanticUndefined else to_jsonable_python(default)
                    return plain if isinstance(plain, dict | list) else {}
        return {}
