"""What a finder is: something that finds places in folded text, and knows how much of a stream it has understood.

Here: the contract and the two general finders. Not here: personal data (``personal``), phrases (``phrases``).
A stream is scanned exactly as the whole text would be, whatever its chunks, because every finder keeps three promises:

1. Whether something is found at a place depends on the ``CONTEXT`` characters before it and the ``reach`` characters
   from it on, and on nothing else.
2. ``search`` returns the leftmost, and the search after a found place starts at its end.
3. ``settled`` is never beyond the first place at which more text could still change what is found.

``reach`` is the most that a finder ever holds back; ``settled`` mostly allows far less, such as the last word.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

CONTEXT = 64
"""Characters before a place that a finder may look at."""

ALLOWED = ""
"""The kind of a hit that is fine."""


class Hit(NamedTuple):
    """A place in folded text."""

    start: int
    end: int
    kind: str


class Finder(Protocol):
    """Finds one family of things."""

    reach: int
    """From the first character of a hit to the last one that was looked at."""

    def search(self, text: str, start: int, limit: int) -> Hit | None:
        """The leftmost hit that starts in ``[start, limit)``."""
        ...

    def settled(self, text: str) -> int:
        """Up to where hits cannot change when more text comes."""
        ...


def settled_by_alphabet(text: str, alphabet: str, reach: int) -> int:
    """Where a hit has only characters of ``alphabet``: after the last other character, or ``reach`` from the end."""
    if text[-1:] not in alphabet:
        return len(text)
    tail = text[-reach:]
    return len(text) - len(tail) + len(tail.rstrip(alphabet))
