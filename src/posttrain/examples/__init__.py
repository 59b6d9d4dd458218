"""Whole stories, run on this machine: what the parts do together, seen from outside."""

from __future__ import annotations

from posttrain.core.lazy import lazy_names

__all__ = ["Story", "find_models", "tell"]

_HOMES = {"canary": ("Story", "find_models", "tell")}


__getattr__ = lazy_names(__name__, _HOMES)
