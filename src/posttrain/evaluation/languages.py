"""Whether a text mixes languages, judged by the scripts of its letters.

Here: the detector and what it is blind to. Not here: the share of completions that mix (``measures``). To
teach it a language: one entry in ``_SCRIPTS``.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

MIXED_SHARE = 0.02
"""Weighted share of letters outside the language's scripts from which a text counts as mixed."""
_SCRIPTS: Mapping[str, frozenset[str]] = {
    "en": frozenset({"LATIN"}),
    "zh": frozenset({"CJK"}),
    "ja": frozenset({"CJK", "HIRAGANA", "KATAKANA"}),
    "ko": frozenset({"HANGUL"}),
    "ru": frozenset({"CYRILLIC"}),
    "ar": frozenset({"ARABIC"}),
    "el": frozenset({"GREEK"}),
    "hi": frozenset({"DEVANAGARI"}),
}
_DENSE = frozenset({"CJK", "HIRAGANA", "KATAKANA", "HANGUL"})
_DENSE_WEIGHT = (
    3  # A Han character says about as much as three Latin letters (1.5 of them a word against 4.7).
)
_SYMBOLIC = frozenset({"min", "sin", "cos", "tan", "log", "mod", "gcd", "lcm", "max", "rmb", "usd", "cny"})
_NEUTRAL = re.compile(r"</?[A-Za-z_][^<>\n]{0,40}>|<\|[^|<>\n]{1,40}\|>|\\[A-Za-z]+")  # Tags, LaTeX commands.


def script_shares(text: str, *, neutral: str = "") -> dict[str, float]:
    """Weighted share of each script among the letters of ``text``, largest first; empty where there is no
    letter.

    Digits, signs, tags and LaTeX commands are neutral; so are alphabetic runs of one or two letters beside
    others (variables, units: x, π, km) and runs that stand in ``neutral``. A Han, kana or Hangul letter
    weighs 3.
    """
    weights: Counter[str] = Counter()
    allowed = {run for _, run in _runs(neutral)}
    for script, run in _runs(text):
        if run in allowed or (script not in _DENSE and (len(run) <= 2 or run in _SYMBOLIC)):
            continue
        weights[script] += len(run) * (_DENSE_WEIGHT if script in _DENSE else 1)
    total = sum(weights.values())
    return {
        script: weight / total
        for script, weight in sorted(weights.items(), key=lambda item: (-item[1], item[0]))
    }


def mixes_languages(text: str, language: str, *, question: str = "") -> bool:
    """Whether ``text`` mixes in letters of scripts that ``language`` (``en``, ``zh``, ``zh-CN``…) is not
    written in.

    Mixed from a weighted foreign share of ``MIXED_SHARE``; words that stand in ``question`` in the same
    spelling, such as a name, are neutral. For a language without a known script, the most frequent script of
    the text is its own.

    *Covered*: words or characters of another script in the middle, and a text wholly in the wrong script.
    *Not covered*: two languages of one script (English and French; Chinese in Japanese kanji), foreign words
    of one or two letters; a name or loan word in another script that the question lacks counts as mixing
    although a reader might accept it.
    """
    shares = script_shares(text, neutral=question)
    if not shares:
        return False
    own = _SCRIPTS.get(language.lower().split("-")[0], frozenset({next(iter(shares))}))
    return sum(share for script, share in shares.items() if script not in own) >= MIXED_SHARE


def _runs(text: str) -> list[tuple[str, str]]:
    """Maximal runs of letters of one script, casefolded, in order."""
    runs: list[tuple[str, str]] = []
    current = ""
    for character in unicodedata.normalize("NFKC", _NEUTRAL.sub(" ", text)):
        script = _script(character)
        if script and script == current:
            runs[-1] = (script, runs[-1][1] + character.casefold())
        elif script:
            runs.append((script, character.casefold()))
        current = script
    return runs


@lru_cache(maxsize=8192)
def _script(character: str) -> str:
    """The script of a letter by its Unicode name; empty for what is not a letter of a script."""
    if not character.isalpha():
        return ""
    name = re.split(r"[ -]", unicodedata.name(character, "UNNAMED"), maxsplit=1)[0]
    return {"IDEOGRAPHIC": "CJK", "MODIFIER": "", "UNNAMED": ""}.get(name, name)
