"""What a suite is, as one digest: a Merkle tree over every byte of it.

Here: the tree and how two of them differ. Not here: what the files hold (``suite_files``). A leaf is the ``sha256:`` of
a file's bytes; a part is the digest of the canonical JSON that names its files and their leaves; the root is the digest
of the canonical JSON that names the parts and their digests. Each node says which scheme made it, so a root of one
scheme is never equal to one of another. A new scheme is a new number here and a reader for the old one.

*Covered*: any byte of any file, its name, files added and files removed. *Not covered*: the order in which files were
written, their times and their modes, on purpose: a copy is the same suite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from posttrain.core.canonical import digest_json, is_digest
from posttrain.core.errors import DataError

IDENTITY_SCHEME = 1
SLICES = "slices"
"""The folder whose sub-folders have parts of their own: ``math_basic/cases``."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which suite it is."""

    scheme: int
    """How the digests were made."""
    root: str
    """``sha256:`` over all parts: two suites are the same exactly where this is."""
    parts: Mapping[str, str]
    """Part name to its digest, so that a difference can be placed."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object; :meth:`from_json` is the inverse."""
        return {"scheme": self.scheme, "root": self.root, "parts": dict(self.parts)}

    @classmethod
    def from_json(cls, data: Any) -> Identity:
        """Raises DataError for what is no identity, or is of a scheme that this posttrain does not know."""
        try:
            found = cls(data["scheme"], data["root"], dict(data["parts"]))
            valid = all(map(is_digest, (found.root, *found.parts.values())))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not the identity of a suite: {error!r}") from error
        if found.scheme != IDENTITY_SCHEME:
            raise DataError(
                f"the suite's identity has scheme {found.scheme!r}; this posttrain knows {IDENTITY_SCHEME}",
                hint="use the posttrain that built it, or build the suite again",
            )
        if not valid:
            raise DataError("not the identity of a suite: its digests are not sha256: digests")
        return found


def part_of(path: str) -> str:
    """The part that a file belongs to: ``settings``, ``prompts``, ``math_basic/cases``."""
    names = PurePosixPath(path).parts
    if names[0] == SLICES and len(names) >= 3:
        return f"{names[1]}/{names[2].partition('.')[0]}"
    return names[0].partition(".")[0]


def identify(leaves: Mapping[str, str]) -> Identity:
    """The identity of the files whose digests are ``leaves``, by relative path."""
    parts: dict[str, dict[str, str]] = {}
    for path in sorted(leaves):
        parts.setdefault(part_of(path), {})[path] = leaves[path]
    digests = {
        name: digest_json({"scheme": IDENTITY_SCHEME, "part": name, "files": files})
        for name, files in sorted(parts.items())
    }
    root = digest_json({"scheme": IDENTITY_SCHEME, "suite": digests})
    return Identity(IDENTITY_SCHEME, root, digests)


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """Name to ``added``, ``removed`` or ``changed``, of what differs between two tables of digests."""
    found = {}
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            found[name] = "added" if name not in before else "removed" if name not in after else "changed"
    return found
