"""The snapshot that a rollout's state asks for.

Here: a pure function from the snapshot before. Not here: sending it (``control``). A rollback is not computed from what
was changed since: production is the target that the rollout wrote down before it began, whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from posttrain.rollouts.errors import RolloutError
from posttrain.rollouts.fold import RolloutState
from posttrain.rollouts.records import RolloutSpec
from posttrain.routing.records import Canary, Route, Shadow, Snapshot, Upstream


def snapshot_for(
    previous: Snapshot, spec: RolloutSpec, state: RolloutState, *, at: str, upstreams: Iterable[Upstream] = ()
) -> Snapshot:
    """The next snapshot, one epoch on. ``upstreams`` that it does not know yet are added; none is taken out, since
    requests of an older epoch may still use it.

    Other routes, and what this route has beside the rollout, stay. Raises RolloutError where another rollout has it.
    """
    before = previous.route(spec.route)
    if before is not None and before.rollout not in (None, spec.id):
        raise RolloutError(
            f"the route {spec.route!r} is in the rollout {before.rollout!r}",
            hint=f"`posttrain rollout abort {before.rollout}` ends it",
        )
    if before is not None and before.experiment is not None and before.unit != spec.unit:
        raise RolloutError(
            f"the route {spec.route!r} splits the experiment {before.experiment.name!r} by {before.unit}",
            hint=f"a rollout by {spec.unit} would deal its users anew; give the rollout the unit {before.unit}",
        )
    if before is None and state.stage is None:
        raise RolloutError(f"there is no route {spec.route!r} yet", hint="`posttrain rollout start` makes it")
    route = _route(before, spec, state)
    routes = [route if found.model == spec.route else found for found in previous.routes]
    if before is None:
        routes.append(route)
    known = {upstream.name for upstream in previous.upstreams}
    added = [upstream for upstream in upstreams if upstream.name not in known]
    return Snapshot(
        epoch=previous.epoch + 1,
        at=at,
        reason=f"rollout {spec.id}: {state.label(spec)}",
        upstreams=(*previous.upstreams, *added),
        routes=tuple(found for found in routes if found is not None),
    )


def _route(before: Route | None, spec: RolloutSpec, state: RolloutState) -> Route | None:
    """None where nothing answers: a rollout without a production, before its last stage and after its end."""
    production = state.serving(spec)
    if production is None:
        return None
    stage = state.current(spec)
    canary = shadow = None
    if stage is not None and stage.kind == "canary":
        canary = Canary(target=spec.candidate, share=stage.share, salt=spec.salt)
    if stage is not None and stage.kind == "shadow":
        shadow = Shadow(target=spec.candidate, share=stage.share, salt=spec.shadow_salt)
    changes: dict[str, Any] = {
        "production": production,
        "canary": canary,
        "shadow": shadow,
        # An experiment goes on among the users that remain, and is over when its production is replaced.
        "experiment": before.experiment if before is not None and production == before.production else None,
        "unit": spec.unit,
        "rollout": spec.id if state.active else None,
    }
    return Route(model=spec.route, **changes) if before is None else before.model_copy(update=changes)
