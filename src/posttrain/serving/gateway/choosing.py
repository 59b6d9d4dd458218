"""Who answers for production: a route's router at work in a worker.

Here: a router made ready once, and what it is shown of a request. Not here: choosing (``router.choose``), seats
(``plan``). Whatever is wrong with a router, the fallback answers: no request fails for it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.core.errors import PosttrainError
from posttrain.routing.aggregate import question_of
from posttrain.routing.choose import Asked, Choice, Router
from posttrain.routing.config import PRODUCTION, RouterConfig
from posttrain.routing.files import read_model
from posttrain.routing.model import RouterModel
from posttrain.serving.gateway.events import Endpoint
from posttrain.serving.gateway.identity import SLICES_HEADER, read_slices

_log = logging.getLogger(__name__)


class Chooser:
    """A route's router, shared by all requests, and by snapshots that have the same one."""

    def __init__(self, config: RouterConfig, choices: Collection[str]) -> None:
        self.config = config
        self.choices = frozenset(choices)
        self.failing: str | None = None
        """Why its learned router, or all of it, is not used."""
        self._router: Router | None = None
        model = None
        try:
            if config.model is not None:
                model = self._read(Path(config.model))
            self._router = Router(config, model)
        except Exception as error:  # a boundary: a snapshot is served, whatever is wrong with its router
            _log.exception("gateway: a router cannot be used")
            self.failing = f"the router cannot be used: {type(error).__name__}"

    def _read(self, path: Path) -> RouterModel | None:
        try:
            model = read_model(path)
        except PosttrainError as error:
            self.failing = error.message
            return None
        names = {PRODUCTION, *self.choices}
        if missing := [name for name in (model.small, model.big) if name not in names]:
            self.failing = f"the router chooses {missing[0]!r}, which the route does not have"
            return None
        return model

    def choose(self, endpoint: Endpoint, body: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> Choice:
        """Who answers, by what was asked."""
        if self._router is None:
            return Choice(self.config.fallback, "failed")
        try:
            text = question_of(body if endpoint == "chat" else {"prompt": body["prompt"]})
            slices = tuple(read_slices(headers.get(SLICES_HEADER)))
            choice = self._router.choose(Asked(text, _Headers(headers), slices))
        except Exception:  # a boundary, as above; it is counted, and the row says so
            return Choice(self.config.fallback, "failed")
        if choice.by == "fallback" and self.failing is not None:
            return choice._replace(by="failed")
        return choice


class _Headers(Mapping[str, str]):
    """Headers as text, made only of those that are looked at."""

    def __init__(self, headers: Mapping[bytes, bytes]) -> None:
        self._headers = headers

    def __getitem__(self, name: str) -> str:
        return self._headers[name.encode("latin-1")].decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._headers)

    def __len__(self) -> int:
        return len(self._headers)
