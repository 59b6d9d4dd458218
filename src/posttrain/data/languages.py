"""Which languages a text is in: by the scripts of its letters, and among Latin languages by a bundled identifier.

Here: the detector of mixing, the share of words in a target language, and what both are blind to. Not here: the reward
(``rewards.language``) and the measure (``evaluation``). To teach it a language: one entry in ``_SCRIPTS``.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

MIXED_SHARE = 0.02
"""Weighted share of letters outside the language's scripts from which a text counts as mixed."""
_SCRIPTS: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("en", "fr", "de", "es", "it", "pt", "nl"), frozenset({"LATIN"})),
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
_WORD_WEIGHT = 1 / 1.5
"""A Han, kana or Hangul letter as a share of a word."""
_IDENTIFIED = ("en", "fr", "de", "es", "it", "pt", "nl")
"""Latin languages that the identifier tells apart."""
_MIN_IDENTIFIED_WORDS = 3
"""Shorter pieces of text say too little."""
_MIN_CONFIDENCE = 0.9
"""Probability from which a piece is called foreign; short sums such as ``Take 12-3=9.`` stay below."""
_CODE = re.compile(
    r"```.*?(?:```|$)|`[^`\n]*`|https?://\S+|\b\w+(?:_\w+)+\b|\b[a-z]+(?:[A-Z]\w*)+\b|\b[\w.]+\(\w*\)",
    re.DOTALL,
)
"""Code blocks and spans, addresses, snake_case, camelCase, calls."""
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


def target_language_share(text: str, language: str, *, question: str = "") -> float | None:
    """Share of the words of ``text`` that are in ``language``, from 0 to 1; None where it has no words.

    Scripts decide first: a run of letters of another script is foreign (a Han, kana or Hangul letter counts as 1/1.5
    words). Where the target and the text are both in Latin letters, py3langid decides piece by piece, a piece being a
    sentence or a line of three words or more; it needs a confidence of 0.9 to call one foreign. Numbers, signs, tags,
    LaTeX, code and words that stand in ``question`` (names) are neutral.

    *Covered*: another script in the middle; whole foreign sentences in ``en fr de es it pt nl``. *Not covered*: single
    foreign words of the same script; Latin languages beyond these, and all of them where py3langid is not installed
    (it comes with ``posttrain[train]``).
    """
    tag = language.lower().split("-")[0]
    own = foreign = 0.0
    text = _CODE.sub(" ", text)
    for piece in re.split(r"(?<=[.!?;:。！？；])\s*|\n+", text):
        runs = _words(piece, question)
        if not runs:
            continue
        scripts = _SCRIPTS.get(tag, frozenset({runs[0][0]}))
        latin = [word for script, word in runs if script == "LATIN"]
        strange = "LATIN" in scripts and _is_foreign(latin, tag)
        for script, word in runs:
            weight = len(word) * _WORD_WEIGHT if script in _DENSE else 1.0
            if script not in scripts or (script == "LATIN" and strange):
                foreign += weight
            else:
                own += weight
    return own / (own + foreign) if own + foreign else None


def _words(text: str, question: str) -> list[tuple[str, str]]:
    """The runs that count: no variables or units, no function names, nothing that stands in the question."""
    allowed = {run for _, run in _runs(question)}
    return [
        (script, run)
        for script, run in _runs(text)
        if run not in allowed and (script in _DENSE or (len(run) > 2 and run not in _SYMBOLIC))
    ]


def _is_foreign(words: list[str], language: str) -> bool:
    identifier = _identifier()
    if identifier is None or language not in _IDENTIFIED or len(words) < _MIN_IDENTIFIED_WORDS:
        return False
    best, confidence = identifier.rank(" ".join(words))[0]
    return bool(best != language and confidence >= _MIN_CONFIDENCE)


@cache
def _identifier() -> Any:
    """py3langid's bundled model (BSD), held to the languages it is asked about; None where it is not installed."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        return None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(_IDENTIFIED))
    return identifier


def warm_up() -> None:
    """Load the identifier, which takes a second, before any clock runs."""
    _identifier()


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
