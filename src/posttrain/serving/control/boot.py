"""What is served when control starts.

Here: the first snapshot from the configuration, and the next one after a restart. Not here: later changes. After a
restart the chain of snapshots says who serves, not the configuration: a candidate that was promoted or rolled back
since stays so. The configuration still says which routes there are and where upstreams are; engines that ended with
the last control are started again, which changes their ports and nothing else.
"""

from __future__ import annotations

import asyncio

from posttrain.serving.config import RouteConfig, ServeConfig
from posttrain.serving.control.deploy import Deployer
from posttrain.serving.errors import ServingError
from posttrain.serving.records import Route, Snapshot, Target, Upstream


async def first_snapshot(
    config: ServeConfig, deployer: Deployer, before: Snapshot | None, *, at: str
) -> Snapshot | None:
    """The snapshot to serve now; None where the last one still says it all.

    Raises ReleaseRefused or EngineError where something that should serve may not or cannot.
    """
    upstreams = {upstream.name: upstream for upstream in before.upstreams} if before is not None else {}
    upstreams |= {upstream.name: upstream for upstream in config.upstreams}
    upstreams |= {upstream.name: upstream for upstream in await asyncio.to_thread(deployer.start_recorded)}
    routes = []
    configured = {wanted.model for wanted in config.routes}
    for route in before.routes if before is not None else ():
        if route.model in configured:
            kept, held = await _loaded_again(route, deployer)
            upstreams |= {upstream.name: upstream for upstream in held}
            routes.append(kept)
    known = {route.model for route in routes}
    for wanted in config.routes:
        if wanted.model not in known:
            route, started = await _new_route(config, wanted, deployer)
            upstreams |= {upstream.name: upstream for upstream in started}
            routes.append(route)
    snapshot = Snapshot(
        epoch=1 if before is None else before.epoch + 1,
        at=at,
        reason="start" if before is None else "start again",
        upstreams=tuple(upstreams.values()),
        routes=tuple(routes),
    )
    if before is not None and (before.upstreams, before.routes) == (snapshot.upstreams, snapshot.routes):
        return None
    return snapshot


async def _loaded_again(route: Route, deployer: Deployer) -> tuple[Route, list[Upstream]]:
    """The route with what can be served of it. Production must; a candidate that cannot be loaded is left out, and its
    rollout, which finds the same, rolls it back."""
    held: list[Upstream] = []
    for target in route.targets():
        beside = {"canary": route.canary, "shadow": route.shadow}
        lanes = [lane for lane, found in beside.items() if found is not None and found.target == target]
        if target.release is None:
            continue
        try:
            _, found = await deployer.ready(route.model, target, ())
        except ServingError:
            if not lanes or target == route.production:
                raise
            route = route.model_copy(update=dict.fromkeys(lanes))
        else:
            held += found
    return route, held


async def _new_route(
    config: ServeConfig, wanted: RouteConfig, deployer: Deployer
) -> tuple[Route, list[Upstream]]:
    production, found = await deployer.deploy(wanted.model, wanted.production)
    held = list(found)
    arms: dict[str, Target] = {}
    for arm in wanted.experiment.arms if wanted.experiment is not None else ():
        arms[arm.name], found = await deployer.deploy(wanted.model, arm.target)
        held += found
    experiment = config.experiment_of(wanted, arms)
    return Route(model=wanted.model, production=production, experiment=experiment, unit=wanted.unit), held
