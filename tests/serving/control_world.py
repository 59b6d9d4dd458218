"""Small snapshots for the tests of control."""

from __future__ import annotations

from posttrain.routing.records import Canary, Route, Snapshot, Target, Upstream


def target(name: str, upstream: str = "a") -> Target:
    return Target(
        name=name, upstreams=(upstream,), model=name, release="sha256:" + name.encode().hex().zfill(64)[:64]
    )


def snapshot(epoch: int, production: str, canary: str | None = None, *, share: int = 100) -> Snapshot:
    taken = None if canary is None else Canary(target=target(canary), share=share, salt="s")
    return Snapshot(
        epoch=epoch,
        at="2026-01-01T00:00:00Z",
        reason="test",
        upstreams=(Upstream(name="a", url="http://127.0.0.1:1/v1"),),
        routes=(Route(model="m", production=target(production), canary=taken),),
    )
