"""slices: the shipped slices of behaviour, generated from a seed.

``build_slice(name)`` makes one. Each module holds its cases, its graders' configs and its scripted answers. To add a
slice: a module with ``NAME`` and ``SOURCE``, and its line in ``SOURCES``.
"""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.core.errors import UnknownReferenceError
from posttrain.core.suggest import did_you_mean
from posttrain.environments.suites.slice_records import SliceSpec
from posttrain.environments.suites.slices import (
    debug_search_api,
    division_hard,
    headache_redflags,
    math_basic,
)
from posttrain.environments.suites.slices._parts import Ask, SliceSource

SOURCES: Mapping[str, SliceSource] = {
    module.NAME: module.SOURCE for module in (headache_redflags, math_basic, division_hard, debug_search_api)
}
"""The shipped slices, in the order of the specification."""
DEFAULT_CASES = 200


def build_slice(name: str, *, seed: int = 0, cases: int = DEFAULT_CASES) -> SliceSpec:
    """A shipped slice. Raises UnknownReferenceError for a name that is none, ValueError for more cases than differ."""
    if name not in SOURCES:
        raise UnknownReferenceError(f"there is no slice {name!r}", hint=did_you_mean(name, SOURCES))
    return SOURCES[name].build(seed, cases)


__all__ = ["DEFAULT_CASES", "SOURCES", "Ask", "SliceSource", "build_slice"]
