"""What is served when control starts.

Here: the first snapshot from the configuration, and the next one after a restart. Not here: later changes. After a
restart the chain of snapshots says who serves, not the configuration: a candidate that was promoted or rolled back
since stays so. The configuration still says which routes there are, where upstreams are, and how a route chooses among
targets (``choices``, ``router``, ``aggregate``), which no rollout changes; engines that ended with the last control are
started again, which changes their ports and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.core.errors import ServingError
from posttrain.routing.config import PRODUCTION
from posttrain.routing.files import keep_model
from posttrain.routing.records import Route, Snapshot, Target, Upstream
from posttrain.serving.config import RouteConfig, ServeConfig
from posttrain.serving.control.deploy import Deployer


async def first_snapshot(
    config: ServeConfig,
    deployer: Deployer,
    before: Snapshot | None,
    *,
    at: str,
    routers: Path,
    productions: Mapping[str, Target],
) -> Snapshot | None:
    """The snapshot to serve now; None where the last one still says it all.

    ``routers`` takes copies of learned routers. ``productions`` is, by route, what served before a rollout that is
    under way: what to go back to where its candidate is production and cannot be loaded.
    Raises ReleaseRefused or EngineError where something that should serve may not or cannot.
    """
    upstreams = {upstream.name: upstream for upstream in before.upstreams} if before is not None else {}
    upstreams |= {upstream.name: upstream for upstream in config.upstreams}
    upstreams |= {upstream.name: upstream for upstream in await asyncio.to_thread(deployer.start_recorded)}
    wanted_routes = {wanted.model: wanted for wanted in config.routes}
    routes = []
    for route in before.routes if before is not None else ():
        if route.model in wanted_routes:
            wanted, earlier = wanted_routes[route.model], productions.get(route.model)
            try:
                kept, held = await _loaded_again(route, wanted, deployer, routers)
            except ServingError:
                if earlier is None or earlier == route.production:
                    raise
                back = route.model_copy(update={"production": earlier, "canary": None, "shadow": None})
                kept, held = await _loaded_again(back, wanted, deployer, routers)
            upstreams |= {upstream.name: upstream for upstream in held}
            routes.append(kept)
    known = {route.model for route in routes}
    for wanted in config.routes:
        if wanted.model not in known:
            route, started = await _new_route(config, wanted, deployer, routers)
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


async def _loaded_again(
    route: Route, wanted: RouteConfig, deployer: Deployer, routers: Path
) -> tuple[Route, list[Upstream]]:
    """The route with what can be served of it; how it chooses among targets is the configuration's.

    Production must be served; a candidate that cannot be loaded is left out, and its rollout, which finds the same,
    rolls it back.
    """
    routing, found = await _routing(wanted, deployer, routers)
    held = list(found)
    for target in route.targets():
        beside = {"canary": route.canary, "shadow": route.shadow}
        lanes = [lane for lane, found in beside.items() if found is not None and found.target == target]
        if target.release is None or target in route.choices:
            continue
        try:
            _, found = await deployer.ready(route.model, target, ())
        except ServingError:
            if not lanes or target == route.production:
                raise
            routing |= dict.fromkeys(lanes)
        else:
            held += found
    return route.model_copy(update=routing), held


async def _new_route(
    config: ServeConfig, wanted: RouteConfig, deployer: Deployer, routers: Path
) -> tuple[Route, list[Upstream]]:
    production, found = await deployer.deploy(wanted.model, wanted.production)
    held = list(found)
    arms: dict[str, Target] = {}
    for arm in wanted.experiment.arms if wanted.experiment is not None else ():
        arms[arm.name], found = await deployer.deploy(wanted.model, arm.target)
        held += found
    experiment = config.experiment_of(wanted, arms)
    routing, found = await _routing(wanted, deployer, routers)
    held += found
    route = Route(
        model=wanted.model, production=production, experiment=experiment, unit=wanted.unit, **routing
    )
    return route, held


async def _routing(
    wanted: RouteConfig, deployer: Deployer, routers: Path
) -> tuple[dict[str, Any], tuple[Upstream, ...]]:
    """How the route chooses among targets, as a route has it, and the upstreams of its choices."""
    choices: list[Target] = []
    held: tuple[Upstream, ...] = ()
    for name, choice in wanted.choices.items():
        target, found = await deployer.deploy(wanted.model, choice)
        choices.append(target.model_copy(update={"name": name}))
        held += found
    router = wanted.router
    if router is not None and router.model is not None:
        kept = keep_model(Path(router.model), routers, {PRODUCTION, *wanted.choices})
        router = router.model_copy(update={"model": str(kept)})
    return {"choices": tuple(choices), "router": router, "aggregate": wanted.aggregate}, held
