"""serving: the gateway through which candidates meet real traffic.

``gateway`` is one worker process: HTTP, upstreams, lanes. ``control`` is the process above the workers: snapshots,
rollback, the admin surface. ``access`` holds keys, budgets and certificates; ``shadow`` judges pairs of answers. Other
rooms: the log is ``traffic``, staged rollout ``rollouts``, choosing a model ``routing``, engines ``engines.drivers``.
"""

from __future__ import annotations

from posttrain.core.lazy import lazy_names

__all__ = [
    "MODULES",
    "AdminClient",
    "Budgets",
    "Control",
    "KeyFile",
    "KeyRecord",
    "NewKey",
    "ServeConfig",
    "compile_hot_path",
    "compiled_folder",
    "folder_in_use",
    "forget_compiled",
]

_HOMES = {
    "access.keys": ("KeyFile", "NewKey"),
    "access.records": ("Budgets", "KeyRecord"),
    "config": ("ServeConfig",),
    "control.admin": ("AdminClient",),
    "control.control": ("Control",),
    "gateway.compiled": ("MODULES", "compiled_folder", "folder_in_use"),
    "gateway.compiling": ("compile_hot_path", "forget_compiled"),
}


__getattr__ = lazy_names(__name__, _HOMES)
