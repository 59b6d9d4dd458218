"""router: which of several models or adapters answers, and one answer made of several.

``config`` rules as data, ``choose`` the choice (rules, then a learned router, then the fallback), ``model`` the learned
router as a file and at work, ``train`` and ``evaluate`` its making and its judgement on held-out pairs, ``aggregate``
several answers made one. Serving imports neither numpy nor torch.

    router = Router(config, RouterModel.read(path))
    choice = router.choose(Asked(text, headers, slices))      # .target, .by, .probability
"""

from __future__ import annotations

from posttrain.core.lazy import lazy_names
from posttrain.routing.aggregate import Aggregated, aggregate
from posttrain.routing.choose import Asked, Choice, Router
from posttrain.routing.config import RouterConfig, read_router
from posttrain.routing.model import LearnedRouter, RouterModel

__all__ = [
    "PRODUCTION",
    "ROUTED_TAGS",
    "Aggregated",
    "Aggregation",
    "Arm",
    "Asked",
    "Canary",
    "Choice",
    "CostWeight",
    "EngineKind",
    "Experiment",
    "LearnedRouter",
    "QualityFloor",
    "Route",
    "Router",
    "RouterConfig",
    "RouterModel",
    "RouterReport",
    "Shadow",
    "Snapshot",
    "Target",
    "TrainConfig",
    "Unit",
    "Upstream",
    "aggregate",
    "assign",
    "check_routing",
    "evaluate_router",
    "keep_model",
    "part_of",
    "question_of",
    "read_model",
    "read_router",
    "read_rows",
    "train_router",
]

_HOMES = {
    "aggregate": ("question_of",),
    "assignment": ("assign",),
    "config": ("Aggregation", "PRODUCTION", "ROUTED_TAGS"),
    "evaluate": ("RouterReport", "evaluate_router"),
    "files": ("keep_model", "read_model"),
    "records": (
        "Arm",
        "Canary",
        "EngineKind",
        "Experiment",
        "Route",
        "Shadow",
        "Snapshot",
        "Target",
        "Unit",
        "Upstream",
        "check_routing",
    ),
    "rows": ("part_of", "read_rows"),
    "train": ("CostWeight", "QualityFloor", "TrainConfig", "train_router"),
}


__getattr__ = lazy_names(__name__, _HOMES)
