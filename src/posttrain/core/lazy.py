"""Public names of a room that load when they are first used.

A room's ``__init__`` lists its names in ``__all__`` and says in one table which module holds each; importing the room
loads none of them, so that ``posttrain --help`` stays quick. To add a public name: one entry in the room's table and in
its ``__all__``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(room: str, homes: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """The ``__getattr__`` of the package ``room``.

    ``homes`` maps a module below it to the names that live there; under ``""`` stand modules that are public
    themselves.
    """
    module_of = {name: module for module, names in homes.items() for name in names}

    def resolve(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        home = module_of[name]
        if not home:
            return import_module(f"{room}.{name}")
        return getattr(import_module(f"{room}.{home}"), name)

    return resolve
