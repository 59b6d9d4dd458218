"""Small types that the records of a release share: names, sampling settings.

Here: checked text and mappings. Not here: any record.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator

from posttrain.core.canonical import canonical_json
from posttrain.core.suggest import did_you_mean

SAMPLING_KEYS = frozenset(
    {
        "frequency_penalty",
        "ignore_eos",
        "logit_bias",
        "max_completion_tokens",
        "max_tokens",
        "min_p",
        "min_tokens",
        "presence_penalty",
        "repetition_penalty",
        "seed",
        "stop",
        "temperature",
        "top_k",
        "top_p",
    }
)
"""What a release may set; engines ignore keys they do not know, so a mistyped one would change every answer."""

RESERVED_NAMES = frozenset({"dev", "staging", "production", "nothing", "previous"})
"""What commands and policies understand as something else than a release's name."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


def _named(value: str) -> str:
    if not value or value != value.strip() or not value.isprintable():
        raise ValueError(f"{value!r} is no name: write one line of printable text without spaces around it")
    return value


def _release_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(f"{value!r} is no release name: letters, digits and . _ + -, at most 64")
    if value in RESERVED_NAMES:
        raise ValueError(f"{value!r} cannot name a release: commands understand it as something else")
    return value


def _sampling(value: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in value:
        if key not in SAMPLING_KEYS:
            raise ValueError(f"{key!r} is no sampling setting; {did_you_mean(key, SAMPLING_KEYS)}")
    canonical_json(dict(value))
    _at_least("temperature", value, 0)
    _at_least("top_k", value, -1)
    for key in ("top_p", "min_p"):
        _at_least(key, value, 0)
        if value.get(key, 0) > 1:
            raise ValueError(f"{key} is {value[key]}, a share of at most 1")
    for key in ("max_tokens", "max_completion_tokens"):
        _at_least(key, value, 1)
    return value


def _at_least(key: str, value: Mapping[str, Any], least: float) -> None:
    given = value.get(key, least)
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise ValueError(f"{key} is {given!r}, not a number")
    if given < least:
        raise ValueError(f"{key} is {given}, at least {least} is meant")


Name: TypeAlias = Annotated[str, AfterValidator(_named)]
"""One line of printable text."""
ReleaseName: TypeAlias = Annotated[str, AfterValidator(_release_name)]
"""A name that a ref can hold and no command takes for something else."""
Sampling: TypeAlias = Annotated[Mapping[str, Any], AfterValidator(_sampling)]
"""Sampling settings, by the names that OpenAI-compatible servers know."""


def unique(what: str, names: Iterable[str]) -> None:
    """Raise ValueError where a name is there twice."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{what}: {twice[0]!r} is there twice")
