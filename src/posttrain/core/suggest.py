"""Naming the nearest known name in an error message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to ``name``, or None where nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint: the nearest known name, or the list of all of them."""
    names = sorted(known)
    best = nearest(name, names)
    return f"did you mean {best!r}?" if best else "known: " + (", ".join(names) or "none")
