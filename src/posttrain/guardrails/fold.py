"""Text as the rules see it: one spelling for what looks the same.

Here: folding character by character, so that where a text is cut changes nothing, with the way back to the original
places. Not here: what is searched for. Folded: case, width and compatibility forms (NFKD), accents, digits of all
scripts, dashes, spaces, invisible characters, and Cyrillic and Greek letters that look Latin. Terms are folded the
same way, so a term in Cyrillic is found, too; a Cyrillic word that looks like a Latin term is found as that term.
"""

from __future__ import annotations

import unicodedata

_LOOKALIKES = dict(
    zip(
        "авеіјкмнорсԁтухѕһӏԛԝαεικνορτυχıłøđħ",
        "abeijkmhopcdtyxshlqwaeikvoptuxilodh",
        strict=True,
    )
)
_DROPPED = ("Mn", "Me", "Cf")  # accents and enclosing marks; zero-width, direction and soft-hyphen characters
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\u2800")


def _fold_one(character: str) -> str:
    if character in _INVISIBLE:
        return ""
    folded = []
    for part in unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold()):
        category = unicodedata.category(part)
        if category in _DROPPED or part in _INVISIBLE:
            continue
        if category == "Nd":
            folded.append(str(unicodedata.decimal(part)))
        elif category == "Pd" or part == "\u2212":
            folded.append("-")
        elif category == "Zs":
            folded.append(" ")
        else:
            folded.append(_LOOKALIKES.get(part, part))
    return "".join(folded)


class _Table(dict[str, str]):
    """Foldings, worked out when first met; at most one for every character there is."""

    def __missing__(self, character: str) -> str:
        folded = self[character] = _fold_one(character)
        return folded


_TABLE = _Table()


def fold(text: str) -> str:
    """``text`` as the rules see it."""
    if text.isascii():
        return text.lower()
    return "".join([_TABLE[character] for character in text])


def fold_with_origins(text: str, first: int) -> tuple[str, list[int]]:
    """:func:`fold`, and for each of its characters where it comes from; ``text`` starts at ``first``."""
    parts: list[str] = []
    origins: list[int] = []
    for place, character in enumerate(text, first):
        folded = _TABLE[character]
        parts.append(folded)
        if len(folded) == 1:
            origins.append(place)
        else:
            origins.extend([place] * len(folded))
    return "".join(parts), origins
