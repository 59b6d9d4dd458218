"""What differs between two releases, field by field, down to a sampling value.

Here: comparing two manifests, and the lines for people. Not here: comparing files' contents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import TypeAdapter

from posttrain.core.canonical import is_digest, short
from posttrain.core.documents import Record
from posttrain.releases.records import ArtifactPiece, ExternalPiece, Piece, ReleaseManifest

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_MAX_CHARACTERS = 90


class Change(Record):
    """One value that differs."""

    field: str
    """``sampling.temperature``, ``tokenizer.files["tokenizer.json"]``, ``adapters[0].piece.digest``."""
    what: Literal["added", "removed", "changed"]
    before: Any = None
    after: Any = None


class ReleaseDiff(Record):
    """The differences between two releases, in the order of the fields."""

    before: str
    """Digest of the first manifest."""
    after: str
    changes: tuple[Change, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.changes


def diff_releases(before: ReleaseManifest, after: ReleaseManifest) -> ReleaseDiff:
    """Every value that is in one release and not, or differently, in the other. The name is one of them."""
    changes = tuple(_changes(_plain(before), _plain(after), ""))
    return ReleaseDiff(before=before.digest, after=after.digest, changes=changes)


def render_diff(diff: ReleaseDiff) -> str:
    """The differences as text, a line each: ``~`` changed, ``+`` added, ``-`` removed."""
    if diff.same:
        return "the same release\n"
    lines = []
    for change in diff.changes:
        if change.what == "changed":
            lines.append(f"~ {change.field}: {_shown(change.before)} -> {_shown(change.after)}")
        elif change.what == "added":
            lines.append(f"+ {change.field}: {_shown(change.after)}")
        else:
            lines.append(f"- {change.field}: {_shown(change.before)}")
    return "\n".join(lines) + "\n"


def _plain(manifest: ReleaseManifest) -> dict[str, Any]:
    """A manifest as JSON without what is not set: None and a missing key mean the same."""
    found: dict[str, Any] = manifest.model_dump(mode="json", exclude_none=True)
    return found


def _changes(before: Any, after: Any, path: str) -> Iterator[Change]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in (*before, *(key for key in after if key not in before)):
            yield from _pair(before, after, key, _joined(path, key))
    elif isinstance(before, list) and isinstance(after, list):
        ours, theirs = dict(enumerate(before)), dict(enumerate(after))
        for index in range(max(len(before), len(after))):
            yield from _pair(ours, theirs, index, f"{path}[{index}]")
    elif before != after or isinstance(before, bool) != isinstance(after, bool):
        yield Change(field=path, what="changed", before=before, after=after)


def _pair(before: Mapping[Any, Any], after: Mapping[Any, Any], key: Any, path: str) -> Iterator[Change]:
    if key not in after:
        yield from (
            Change(field=leaf, what="removed", before=value) for leaf, value in _leaves(before[key], path)
        )
    elif key not in before:
        yield from (
            Change(field=leaf, what="added", after=value) for leaf, value in _leaves(after[key], path)
        )
    else:
        yield from _changes(before[key], after[key], path)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The values below ``value``; a whole piece is one."""
    if isinstance(value, Mapping) and value and "by" not in value:
        for key, below in value.items():
            yield from _leaves(below, _joined(path, key))
    elif isinstance(value, list) and value:
        for index, below in enumerate(value):
            yield from _leaves(below, f"{path}[{index}]")
    else:
        yield path, value


def _joined(path: str, key: str) -> str:
    if not _PLAIN.fullmatch(key):
        return f"{path}[{json.dumps(key, ensure_ascii=False)}]"
    return f"{path}.{key}" if path else key


def _shown(value: Any) -> str:
    if isinstance(value, str) and is_digest(value):
        return short(value)
    if isinstance(value, Mapping) and "by" in value:
        piece = TypeAdapter(Piece).validate_python(value)
        kind = f"{piece.kind} " if isinstance(piece, ArtifactPiece) else ""
        return kind + (piece.identity if isinstance(piece, ExternalPiece) else short(piece.identity))
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 1] + "…"
