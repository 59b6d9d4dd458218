"""Turning pydantic's findings into lines that name the key, what was expected, what was given, and the
nearest key.

Here: data as a person wrote it with its places, the wording, following a key path through a model's annotations, and
reading one file as one model. Not here: any rule about what is written (recipes, the gateway's configuration).
To word another pydantic error type: one entry in ``_EXPECTED``; a type without one keeps pydantic's own
message.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from posttrain.core.errors import ConfigError
from posttrain.core.suggest import did_you_mean
from posttrain.core.yaml_text import KeyPath, parse_document

_MAX_PROBLEMS_SHOWN = 8
_MAX_GIVEN_CHARACTERS = 60
_ABSENT = object()

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "null",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "union_tag_invalid": "one of {expected_tags} under {discriminator}",
    "union_tag_not_found": "a mapping that names its {discriminator}",
}


_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Written:
    """Data before it is checked, with where each key was written, so that an error can say so."""

    data: Any
    """What the YAML holds."""
    origin: str
    """File name, or what else the data came from."""
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    """Line of each key, where there is a file."""
    overrides: Mapping[KeyPath, str] = field(default_factory=dict)
    """Keys set outside the file, with the text that set them (``--set rl.steps=10``)."""

    def where(self, path: KeyPath) -> str:
        """``file:line`` of the key at ``path``, or of the nearest key around it."""
        for length in range(len(path), -1, -1):
            prefix = path[:length]
            if prefix in self.overrides:
                return self.overrides[prefix]
            if length == len(path):
                inside = [text for key, text in self.overrides.items() if key[:length] == path]
                if inside and length:
                    return inside[-1]
            if prefix in self.lines:
                return f"{self.origin}:{self.lines[prefix]}"
        return self.origin

    def key_name(self, path: KeyPath) -> str:
        """``path`` as people write it."""
        return ".".join(str(part) for part in path)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with what was written."""

    path: KeyPath
    """The key, from the top of the document."""
    text: str
    """What is wrong with it."""
    hint: str | None = None
    """What to change."""


def raise_problems(source: Written, problems: Sequence[Problem]) -> None:
    """Raise one ConfigError that names every problem with its place; do nothing where there are none."""
    if not problems:
        return

    def line(problem: Problem) -> str:
        where, name = source.where(problem.path), source.key_name(problem.path)
        return f"{where}: {name}: {problem.text}" if name else f"{where}: {problem.text}"

    if len(problems) == 1:
        raise ConfigError(line(problems[0]), hint=problems[0].hint)
    shown = [
        f"({number}) {line(p)}" + (f" [{p.hint}]" if p.hint else "")
        for number, p in enumerate(problems[:_MAX_PROBLEMS_SHOWN], start=1)
    ]
    left_out = len(problems) - len(shown)
    raise ConfigError(
        f"{len(problems)} problems in {source.origin}: "
        + "; ".join(shown)
        + (f"; and {left_out} more" if left_out else "")
    )


def read_model(path: Path, model: type[_Model]) -> _Model:
    """The YAML file ``path`` as one ``model``. Raises ConfigError that names the file, the line and the key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}", hint="name a YAML file in UTF-8") from error
    document = parse_document(text, path.name)
    return check_model(Written(document.value, path.name, document.lines), model)


def check_model(source: Written, model: type[_Model]) -> _Model:
    """What was written as one ``model``. Raises ConfigError that names every problem with its place."""
    try:
        return model.model_validate(source.data)
    except ValidationError as error:
        raise_problems(source, explain(error, model, source.data))
        raise


def explain(error: ValidationError, model: type[BaseModel], data: Any, prefix: KeyPath = ()) -> list[Problem]:
    """The problems that ``error`` found when ``data`` (at ``prefix`` in the document) was read as ``model``."""
    return [_explain_one(detail, model, data, prefix) for detail in error.errors(include_url=False)]


def _explain_one(detail: ErrorDetails, model: type[BaseModel], data: Any, prefix: KeyPath) -> Problem:
    kind, location = detail["type"], detail["loc"]
    path = (*prefix, *_data_path(data, location, missing=kind == "missing"))
    context = {key: _plain(value) for key, value in detail.get("ctx", {}).items()}
    if kind == "extra_forbidden":
        return Problem(path, "unknown key", did_you_mean(str(location[-1]), known_keys(model, location[:-1])))
    if kind == "missing":
        return Problem(path, "this key is required", "add it")
    if kind == "value_error":
        return Problem(path, str(detail["ctx"]["error"]))
    expected = _EXPECTED.get(kind)
    if expected is None:
        return Problem(
            path, f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, given {_given(detail['input'])}"
        )
    hint = None
    if kind in ("literal_error", "enum", "union_tag_invalid"):
        choices = [
            part.strip(" '") for part in str(context.get("expected", context.get("expected_tags"))).split(",")
        ]
        choices = [part.strip(" '") for choice in choices for part in choice.split(" or ")]
        tag = context.get("tag", detail["input"])
        hint = did_you_mean(str(tag), choices)
    return Problem(path, f"expected {expected.format(**context)}, given {_given(detail['input'])}", hint)


def _plain(value: Any) -> Any:
    """Bounds without a pointless ``.0``, everything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _given(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= _MAX_GIVEN_CHARACTERS else text[: _MAX_GIVEN_CHARACTERS - 1] + "…"


def _data_path(data: Any, location: Iterable[str | int], *, missing: bool) -> KeyPath:
    """``location`` without the parts that name a member of a union, which are not keys of ``data``."""
    path: list[str | int] = []
    parts = list(location)
    here = data
    for position, part in enumerate(parts):
        below = _below(here, part)
        if below is not _ABSENT:
            here = below
        if below is not _ABSENT or (missing and position == len(parts) - 1):
            path.append(part)
    return tuple(path)


def _below(value: Any, part: str | int) -> Any:
    if isinstance(value, Mapping):
        return value.get(part, _ABSENT)
    if isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
        return value[part]
    return _ABSENT


def known_keys(model: type[BaseModel], location: Iterable[str | int]) -> list[str]:
    """The keys that ``model`` allows at ``location`` (keys, list positions and union tags, as pydantic
    reports them)."""
    return sorted({key for found in models_at(model, location) for key in _fields_by_key(found)})


def models_at(model: type[BaseModel], location: Iterable[str | int]) -> list[type[BaseModel]]:
    """The models that a value at ``location`` below ``model`` may be; several where a union is not
    decided."""
    candidates: list[Any] = [model]
    for part in location:
        stepped = [found for candidate in candidates for found in _step(candidate, part)]
        candidates = stepped or [c for c in candidates if _is_tagged(c, part)] or candidates
    return [c for c in candidates if _is_model(c)]


def _step(annotation: Any, part: str | int) -> list[Any]:
    if _is_model(annotation):
        below = _fields_by_key(annotation).get(str(part))
        return _alternatives(below) if below is not None else []
    origin, arguments = get_origin(annotation), get_args(annotation)
    if not isinstance(origin, type) or not arguments:
        return []
    if issubclass(origin, Mapping):
        return _alternatives(arguments[1])
    if isinstance(part, int) and issubclass(origin, tuple) and Ellipsis not in arguments:
        return _alternatives(arguments[part]) if part < len(arguments) else []
    if isinstance(part, int) and issubclass(origin, Sequence):
        return _alternatives(arguments[0])
    return []


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, without Annotated and None."""
    if hasattr(annotation, "__value__"):  # `type X = ...`
        return _alternatives(annotation.__value__)
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin is Union or origin is types.UnionType:
        return [found for member in get_args(annotation) for found in _alternatives(member)]
    return [] if annotation is type(None) else [annotation]


def _is_tagged(annotation: Any, tag: str | int) -> bool:
    if not _is_model(annotation):
        return False
    literals = [
        value
        for field in annotation.model_fields.values()
        if get_origin(field.annotation) is Literal
        for value in get_args(field.annotation)
    ]
    return tag == annotation.__name__ or tag in literals


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _fields_by_key(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}
