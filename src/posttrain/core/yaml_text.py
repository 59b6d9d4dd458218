"""Reading YAML, strictly: plain data with the line of every key.

Here: a reader of the YAML 1.2 core types (so ``1e-5`` is a number and ``no`` is text). Duplicate keys, keys
that are not text, anchors and tags are refused with their line. Not here: what the keys mean (``explain``, and
whoever reads them).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from posttrain.core.errors import ConfigError

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and list positions from the top of a document to one value."""

_NULL = re.compile(r"(?:~|null|Null|NULL|)")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)")
_INT = re.compile(r"[-+]?[0-9]{1,400}")
_HEX_OR_OCTAL = re.compile(r"0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)")


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed document."""

    value: Any
    """Dicts, lists, text, numbers, booleans and None."""
    lines: dict[KeyPath, int] = field(default_factory=dict)
    """Line (from 1) of each key and list item."""


def parse_document(text: str, origin: str) -> Document:
    """Parse one YAML document. Raises ConfigError with ``origin`` and the line for whatever is wrong with
    it."""
    lines: dict[KeyPath, int] = {}
    try:
        _refuse_anchors_and_tags(text, origin)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{origin}:{mark.line + 1}" if mark else origin
        problem = error.problem or error.context or "unreadable"
        raise ConfigError(
            f"{where}: not valid YAML: {problem}", hint="check the indentation and quotes near it"
        ) from error
    except RecursionError:
        raise ConfigError(f"{origin}: nested too deeply") from None
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{origin}: not valid YAML: {str(error).splitlines()[0]}",
            hint="write it as plain UTF-8 text",
        ) from error
    if node is None:
        return Document(None)
    return Document(_build(node, (), lines, origin), lines)


def parse_value(text: str) -> Any:
    """The value of ``--set key=TEXT``: ``[…]``, ``{…}`` and quoted text as YAML, anything else as one plain
    scalar."""
    stripped = text.strip()
    if stripped[:1] in ("[", "{", '"', "'"):
        return parse_document(stripped, f"value {stripped!r}").value
    return _scalar(stripped)


def _refuse_anchors_and_tags(text: str, origin: str) -> None:
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        here = f"{origin}:{event.start_mark.line + 1}" if event.start_mark else origin
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ConfigError(
                f"{here}: anchors and aliases (& and *) are not used here", hint="write the value out"
            )
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise ConfigError(f"{here}: the tag {tag!r} is not used here", hint="remove the tag")


def _build(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], origin: str) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, index), lines, origin) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            at = f"{origin}:{key_node.start_mark.line + 1}"
            key = key_node.value
            merges = key == "<<" and getattr(key_node, "style", None) is None
            if not isinstance(key_node, yaml.ScalarNode) or merges:
                raise ConfigError(f"{at}: a key must be plain text", hint="write the keys out one by one")
            if key in built:
                raise ConfigError(f"{at}: duplicate key {key!r}", hint="keep one of the two")
            lines[(*path, key)] = key_node.start_mark.line + 1
            built[key] = _build(value_node, (*path, key), lines, origin)
        return built
    if getattr(node, "style", None) is not None:  # quoted or block text
        return str(node.value)
    return _scalar(node.value)


_SCALARS: tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...] = (
    (_NULL, lambda _: None),
    (_BOOL, lambda text: text.lower() == "true"),
    (_INT, int),
    (_HEX_OR_OCTAL, lambda text: int(text, 0)),
    (_FLOAT, float),
)


def _scalar(text: str) -> Any:
    for pattern, convert in _SCALARS:
        if pattern.fullmatch(text):
            return convert(text)
    return text
