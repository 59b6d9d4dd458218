"""The choice: rules in their order, then the learned router, then the fallback.

Here: pure functions of what was asked. Not here: what a choice leads to (``gateway``). A choice never fails: where a
part breaks, the fallback answers and the choice says why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from posttrain.guardrails.fold import fold
from posttrain.guardrails.phrases import PhraseFinder
from posttrain.routing.config import (
    HeaderMatch,
    KeywordsMatch,
    LengthMatch,
    Match,
    RegexMatch,
    RouterConfig,
    SliceMatch,
)
from posttrain.routing.model import LearnedRouter, RouterModel


class Asked(NamedTuple):
    """What a choice may look at."""

    text: str
    """The last thing that the user said."""
    headers: Mapping[str, str] = {}
    """Names in lower case."""
    slices: tuple[str, ...] = ()


class Choice(NamedTuple):
    """Who answers, and why."""

    target: str
    by: str
    """``rule:NAME``, ``learned``, ``unsure``, ``failed`` or ``fallback``."""
    probability: float | None = None
    """That the big one is needed, where the learned router was asked."""


_Matcher: TypeAlias = Callable[[Asked], bool]


def matcher(match: Match) -> _Matcher:
    """A match made ready."""
    match match:
        case RegexMatch():
            pattern, most = re.compile(match.pattern), match.max_characters
            return lambda asked: pattern.search(asked.text[:most]) is not None
        case KeywordsMatch():
            finder = PhraseFinder("keywords", match.words)
            return lambda asked: finder.search(text := fold(asked.text), 0, len(text)) is not None
        case LengthMatch():
            low, high = match.min_characters, match.max_characters
            return lambda asked: low <= len(asked.text) and (high is None or len(asked.text) <= high)
        case HeaderMatch():
            name, value = match.name.lower(), match.value
            return lambda asked: asked.headers.get(name) == value
        case SliceMatch():
            wanted = match.slice
            return lambda asked: wanted in asked.slices


class Router:
    """A router made ready; shared by all requests."""

    def __init__(self, config: RouterConfig, model: RouterModel | None = None) -> None:
        self._rules = [
            (f"rule:{rule.name}", [matcher(match) for match in rule.match], rule.target)
            for rule in config.rules
        ]
        self._learned = LearnedRouter(model) if model is not None else None
        self._fallback = config.fallback

    def choose(self, asked: Asked) -> Choice:
        """Who answers."""
        for by, matchers, target in self._rules:
            if all(matches(asked) for matches in matchers):
                return Choice(target, by)
        if self._learned is None:
            return Choice(self._fallback, "fallback")
        try:
            score = self._learned.score(asked.text)
        except Exception:  # a boundary: a request is answered, whatever is wrong with the router
            return Choice(self._fallback, "failed")
        if score.target is None:
            return Choice(self._fallback, "unsure", score.probability)
        return Choice(score.target, "learned", score.probability)
