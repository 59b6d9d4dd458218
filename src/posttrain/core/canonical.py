"""Identity: canonical JSON (RFC 8785) and ``sha256:`` digests.

Here: the one way to turn a value into bytes that are hashed. Not here: where the bytes are kept (``artifacts``).
A digest is always written with its algorithm, ``sha256:<64 hex digits>``.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 20


def canonical_json(value: Any) -> bytes:
    """``value`` as RFC 8785 canonical JSON (UTF-8, keys sorted by UTF-16, ECMAScript numbers).

    Raises ValueError for what JSON cannot carry exactly: NaN, infinities, integers beyond 2**53, keys that are not
    text.
    """
    import rfc8785

    try:
        return rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as error:
        raise ValueError(f"cannot be written as canonical JSON: {error}") from error


def digest_bytes(data: bytes) -> str:
    """``sha256:`` digest of ``data``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """``sha256:`` digest of the canonical JSON of ``value``."""
    return digest_bytes(canonical_json(value))


def digest_file(path: Path) -> str:
    """``sha256:`` digest of a file's bytes, read in pieces."""
    hasher = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return "sha256:" + hasher.hexdigest()


def is_digest(text: str) -> bool:
    """Whether ``text`` is a complete ``sha256:`` digest."""
    return _DIGEST.fullmatch(text) is not None


def short(digest: str) -> str:
    """The first 12 hex digits, for people."""
    return digest.removeprefix("sha256:")[:12]
