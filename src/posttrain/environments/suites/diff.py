"""In what two suites differ: the parts, the files, and the cases, replies and settings by name.

Here: comparing. Not here: whether a report of one may be a baseline for the other; it may not (``evaluation``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from posttrain.core.canonical import canonical_json, digest_bytes, digest_json
from posttrain.environments.suites.files import SUITE_FILE, check_files
from posttrain.environments.suites.identity import changed
from posttrain.environments.suites.suite import DiffEntry, SuiteDiff

_SHOWN_CHARACTERS = 80
_NAMES: Mapping[str, Callable[[Any], str]] = {
    "cases.jsonl": lambda value: str(value["id"]),
    "documents.jsonl": lambda value: str(value["id"]),
}


def diff_suites(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> SuiteDiff:
    """Compare two suites, each given as its files (``suite_files.read_files``); both are checked first."""
    first, second = check_files(before), check_files(after)
    leaves = [
        {path: digest_bytes(data) for path, data in files.items() if path != SUITE_FILE}
        for files in (before, after)
    ]
    files = changed(leaves[0], leaves[1])
    entries = [
        entry
        for path, what in files.items()
        if what == "changed"
        for entry in _entries(path, before[path], after[path])
    ]
    return SuiteDiff(
        before=first.root,
        after=second.root,
        parts=tuple(_listed(changed(first.parts, second.parts))),
        files=tuple(_listed(files)),
        entries=tuple(entries),
    )


def _listed(table: Mapping[str, str]) -> Iterator[DiffEntry]:
    for where, what in table.items():
        yield DiffEntry.model_validate({"where": where, "what": what})


def _entries(path: str, before: bytes, after: bytes) -> Iterator[DiffEntry]:
    """What differs inside one file, by the name of the line or the key; nothing for files without names."""
    if path.endswith(".jsonl"):
        sides = [_by_name(path, data) for data in (before, after)]
    elif path.endswith(".json"):
        sides = [_flat(json.loads(data)) for data in (before, after)]
    else:
        return
    for name, what in changed(*({k: digest_json(v) for k, v in side.items()} for side in sides)).items():
        detail = " → ".join(_short(side[name]) for side in sides) if what == "changed" else ""
        yield DiffEntry.model_validate({"where": f"{path}#{name}", "what": what, "detail": detail})


def _by_name(path: str, data: bytes) -> dict[str, Any]:
    name = _NAMES.get(path.rpartition("/")[2], lambda value: canonical_json(value["arguments"]).decode())
    return {name(value): value for value in map(json.loads, data.splitlines())}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        name: inner
        for key, below in value.items()
        for name, inner in _flat(below, f"{prefix}.{key}" if prefix else key).items()
    }


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
