"""What is asked of the door, by path.

Here: reading requests and handing each to who answers it. Not here: the bytes of HTTP (``server``), the life of a chat
request (``exchange``). To add a route: a method and a line in ``_routes``, and its page in ``openapi.json``; whatever
gives a model's answer goes through ``Exchange``, so that its row and its scan cannot be forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import orjson

from posttrain.serving.access.records import Principal, Refusal
from posttrain.serving.gateway import replies
from posttrain.serving.gateway.compiled import is_compiled
from posttrain.serving.gateway.context import Context
from posttrain.serving.gateway.ensemble import Ensemble
from posttrain.serving.gateway.events import Endpoint
from posttrain.serving.gateway.exchange import Exchange
from posttrain.serving.gateway.feedback import BadFeedback, feedback_row
from posttrain.serving.gateway.identity import REQUEST_ID_HEADER, read_asker
from posttrain.serving.gateway.metrics import Gauge, exposition, labels, rss_bytes
from posttrain.serving.gateway.metrics_page import MetricsShelf
from posttrain.serving.gateway.replies import ApiError
from posttrain.serving.gateway.server import Request, ServerConnection

_dumps: Final = orjson.dumps
_loads: Final = orjson.loads

_BREAKER_STATES = {"closed": 0.0, "half-open": 1.0, "open": 2.0}
Handler = Callable[[ServerConnection, Request], None]


class _Route(NamedTuple):
    methods: tuple[bytes, ...]
    scope: Literal["chat", "completions", "models", "feedback", "metrics", ""]
    """What a key must be good for; empty: no key is asked for."""
    handle: Handler


class Routes:
    """The application behind the connections of one worker."""

    def __init__(self, context: Context) -> None:
        self._context = context
        folder = context.config.metrics_folder
        self.shelf = None if folder is None else MetricsShelf(Path(folder), context.config.name)
        """Where the other workers' metrics are."""
        self.draining = False
        """No new connection comes; what comes on the old ones is answered."""
        read = (b"GET", b"HEAD")
        self._routes: dict[bytes, _Route] = {
            b"/v1/chat/completions": _Route((b"POST",), "chat", partial(self._generate, "chat")),
            b"/v1/completions": _Route((b"POST",), "completions", partial(self._generate, "completions")),
            b"/v1/models": _Route(read, "models", self._models),
            b"/v1/feedback": _Route((b"POST",), "feedback", self._feedback),
            b"/healthz": _Route(read, "", self._health),
            b"/metrics": _Route(read, "metrics", self._metrics),
            b"/openapi.json": _Route(read, "", self._openapi),
        }
        self._one_model = _Route(read, "models", self._model)

    # -- for the server ---------------------------------------------------------------------------

    def identify(self, request: Request) -> None:
        """See :class:`~posttrain.serving.gateway.server.Application`."""
        context = self._context
        # Where there are keys, ids of one's own are for who has one: ``examine`` sees to it.
        given = request.headers.get(REQUEST_ID_HEADER) if context.access is None else None
        request.id = context.ids.choose(given)

    def examine(self, request: Request) -> ApiError | None:
        """See :class:`~posttrain.serving.gateway.server.Application`."""
        route = self._routes.get(request.path)
        if route is None:
            if not request.path.startswith(b"/v1/models/"):
                return self._refused(
                    replies.unknown_path(request.method.decode(), request.path.decode("latin-1"))
                )
            route = self._one_model
        if request.method not in route.methods:
            return self._refused(replies.wrong_method(*(item.decode() for item in route.methods)))
        context = self._context
        access, headers = context.access, request.headers
        if access is not None and route.scope:
            found = access.check(headers.get(b"authorization"), route.scope, None)
            if isinstance(found, Refusal):
                return self._refused(replies.refused(*found))
            request.principal = found
            if REQUEST_ID_HEADER in headers:
                tenant = context.pseudonyms.of("tenant", found.tenant)
                request.id = context.ids.choose(headers[REQUEST_ID_HEADER], tenant)
        return None

    def handle(self, connection: ServerConnection, request: Request) -> None:
        """See :class:`~posttrain.serving.gateway.server.Application`."""
        self._routes.get(request.path, self._one_model).handle(connection, request)

    def _refused(self, error: ApiError) -> ApiError:
        self._context.metrics.refused[error.status, error.code or ""] += 1
        return error

    def _refuse(self, connection: ServerConnection, request: Request, error: ApiError) -> None:
        connection.refuse(request, self._refused(error))

    # -- answers of models ------------------------------------------------------------------------

    def _generate(self, endpoint: Endpoint, connection: ServerConnection, request: Request) -> None:
        context, headers = self._context, request.headers
        try:
            body = _loads(request.body)
        except ValueError:
            self._refuse(connection, request, _bad_json(request))
            return
        error = _check(body, endpoint)
        if error is not None:
            self._refuse(connection, request, error)
            return
        model, principal = body["model"], request.principal
        route = context.plan.routes.get(model)
        if route is None or not self._allows(principal, model):
            self._refuse(connection, request, replies.unknown_model(model))
            return
        tenant = None if principal is None else principal.tenant
        asker = read_asker(headers, body, tenant, context.pseudonyms)
        seating = route.seat(asker.unit(route.unit, request.id.decode()))
        if route.is_routed:
            seating = route.choose(seating, endpoint, body, headers)
        if seating.team is None:
            Exchange(context, connection, request, endpoint).start(body, asker, seating)
        else:
            Ensemble(context, connection, request, endpoint).start(body, asker, seating)

    def _allows(self, principal: Principal | None, model: str) -> bool:
        access = self._context.access
        return access is None or principal is None or access.allows(principal, model)

    # -- everything else --------------------------------------------------------------------------

    def _feedback(self, connection: ServerConnection, request: Request) -> None:
        context, principal = self._context, request.principal
        tenant = None if principal is None else context.pseudonyms.of("tenant", principal.tenant)
        try:
            row = feedback_row(_loads(request.body), tenant, context.clock.now_ms())
        except ValueError:
            self._refuse(connection, request, _bad_json(request))
            return
        except BadFeedback as bad:
            self._refuse(connection, request, bad.error)
            return
        answer = _dumps({"id": row["id"], "object": "feedback", "request_id": row["of"]})
        context.log.put(_dumps(row), partial(self._thank, connection, request, answer))

    def _thank(self, connection: ServerConnection, request: Request, answer: bytes, kept: bool) -> None:
        self._context.metrics.feedback += kept
        if connection.is_answering(request):
            if kept:
                connection.reply(request, 200, answer)
            else:
                self._refuse(connection, request, replies.log_full())

    def _models(self, connection: ServerConnection, request: Request) -> None:
        plan, principal = self._context.plan, request.principal
        data = [_model(name, plan.created) for name in plan.routes if self._allows(principal, name)]
        connection.reply(request, 200, _dumps({"object": "list", "data": data}))

    def _model(self, connection: ServerConnection, request: Request) -> None:
        plan, principal = self._context.plan, request.principal
        name = request.path.removeprefix(b"/v1/models/").decode("utf-8", "replace")
        if name not in plan.routes or not self._allows(principal, name):
            self._refuse(connection, request, replies.unknown_model(name))
        else:
            connection.reply(request, 200, _dumps(_model(name, plan.created)))

    def _health(self, connection: ServerConnection, request: Request) -> None:
        context = self._context
        log = context.log
        says: dict[str, Any] = {
            "status": "draining" if self.draining else "serving",
            "worker": context.config.name,
            "epoch": context.plan.epoch,
            "in_flight": context.admission.in_flight,
            "log": "ok" if log.failing is None else log.failing,
            "lost_rows": context.metrics.lost_rows,
        }
        if failing := _failing(context):
            says["routers"] = failing
        refuses = log.failing is not None and log.refuses
        if refuses:
            says["status"] = "refusing"
        connection.reply(request, 503 if self.draining or refuses else 200, _dumps(says))

    def _metrics(self, connection: ServerConnection, request: Request) -> None:
        page = self.metrics_page()
        if self.shelf is not None:
            page = self.shelf.page(page)
        connection.reply(request, 200, page, content_type=replies.TEXT)

    def metrics_page(self) -> bytes:
        """This worker's metrics, as Prometheus reads them."""
        context = self._context
        plan = context.plan
        breakers, errors, connections = {}, {}, {}
        for lane, handles in (("user", plan.handles), ("shadow", plan.shadow_handles)):
            for name, handle in handles.items():
                key = labels(upstream=name, lane=lane)
                breakers[key] = _BREAKER_STATES[handle.breaker.state]
                errors[key] = float(handle.errors)
                connections[key] = float(handle.pool.count)
        gauges = (
            Gauge("epoch", "Of the snapshot in use.", {"": plan.epoch}),
            Gauge("in_flight", "Requests being answered.", {"": context.admission.in_flight}),
            Gauge("queue_depth", "Requests that wait for a place.", {"": context.admission.waiting}),
            Gauge("shadow_queue", "Shadow copies that wait.", {"": context.shadow.waiting}),
            Gauge("shadow_active", "Shadow copies under way.", {"": context.shadow.active}),
            Gauge("log_backlog_bytes", "Rows not yet on the disk.", {"": context.log.backlog_bytes}),
            Gauge(
                "log_failing", "1 while rows cannot be written.", {"": float(context.log.failing is not None)}
            ),
            Gauge(
                "router_failing",
                "1 where a route's learned router is not used.",
                {labels(route=model): 1.0 for model in _failing(context)},
            ),
            Gauge("breaker_state", "0 closed, 1 half open, 2 open.", breakers),
            Gauge("upstream_connections", "Connections to upstreams.", connections),
            Gauge("upstream_errors_total", "Calls that failed.", errors, "counter"),
            Gauge("rss_bytes", "Memory of this worker.", {"": rss_bytes()}),
            Gauge("compiled", "1 where this worker runs the compiled hot path.", {"": float(is_compiled())}),
        )
        return exposition(context.metrics, gauges)

    def _openapi(self, connection: ServerConnection, request: Request) -> None:
        text = resources.files("posttrain.serving.gateway").joinpath("openapi.json").read_bytes()
        connection.reply(request, 200, text)


def _check(body: Any, endpoint: Endpoint) -> ApiError | None:
    """What the gateway itself must be able to rely on; everything else is the upstream's to judge."""
    if type(body) is not dict:
        return replies.invalid("The request body must be a JSON object.", code="invalid_json")
    model = body.get("model")
    if type(model) is not str or not model:
        return replies.invalid("You must provide a model parameter.", param="model")
    if type(body.get("stream", False)) not in (bool, type(None)):
        return replies.invalid("stream must be true or false.", param="stream")
    if endpoint == "chat":
        if type(body.get("messages")) is not list:
            return replies.invalid("messages must be a list of messages.", param="messages")
    elif "prompt" not in body:
        return replies.invalid("You must provide a prompt parameter.", param="prompt")
    return None


def _failing(context: Context) -> dict[str, str]:
    """Routes whose router does not do all that it should, and why."""
    return {
        model: chooser.failing
        for model, chooser in context.plan.choosers.items()
        if chooser.failing is not None
    }


def _bad_json(request: Request) -> ApiError:
    if b"content-encoding" in request.headers:
        return replies.invalid(
            "A compressed request body is not read.", code="unsupported_encoding", status=415
        )
    return replies.invalid("The request body is not valid JSON in UTF-8.", code="invalid_json")


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "posttrain"}
