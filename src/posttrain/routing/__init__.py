"""router: which of several models or adapters answers, and one answer made of several.

``config`` rules as data, ``choose`` the choice (rules, then a learned router, then the fallback), ``model`` the learned
router as a file and at work, ``train`` and ``evaluate`` its making and its judgement on held-out pairs, ``aggregate``
several answers made one. Serving imports neither numpy nor torch.

    router = Router(config, RouterModel.read(path))
    choice = router.choose(Asked(text, headers, slices))      # .target, .by, .probability
"""

from __future__ import annotations

from posttrain.routing.aggregate import Aggregated, aggregate
from posttrain.routing.choose import Asked, Choice, Router
from posttrain.routing.config import RouterConfig, read_router
from posttrain.routing.model import LearnedRouter, RouterModel

__all__ = [
    "Aggregated",
    "Asked",
    "Choice",
    "LearnedRouter",
    "Router",
    "RouterConfig",
    "RouterModel",
    "aggregate",
    "read_router",
]
