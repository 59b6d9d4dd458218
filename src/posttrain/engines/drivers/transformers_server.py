"""The process that serves a transformers model: OpenAI's API over ``transformers_model``.

Run as ``python -m posttrain.engines.drivers.transformers_server SPEC`` with a listening socket. Chat completions and
completions, whole and streamed; base and adapters by ``model``; adapters loaded and unloaded while it runs, by whoever
has the engine's key. Not here: the bodies (``openai_bodies``), the decoding. A client that goes away ends its request.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.core.errors import ModelError
from posttrain.core.quiet import quiet_libraries
from posttrain.engines.drivers.http_server import Reply, Request, RequestError, run, serve
from posttrain.engines.drivers.openai_bodies import (
    Asked,
    Endpoint,
    Shapes,
    TextStream,
    read_request,
    usage_of,
)
from posttrain.engines.drivers.transformers_model import AdapterMissing, Job, TransformersModel

_ENDPOINTS: Mapping[str, Endpoint] = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}


@dataclass(slots=True)
class _End:
    """The end of a job."""

    error: BaseException | None


class Server:
    """OpenAI's API over one model."""

    def __init__(self, model: TransformersModel, *, context_tokens: int, max_adapters: int, key: str) -> None:
        self._model = model
        self._context_tokens = min(context_tokens, model.context_tokens)
        self._max_adapters = max_adapters
        self._key = key

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request."""
        if request.path == "/health":
            well = self._model.is_alive()
            reply.json(200 if well else 503, {"status": "ok" if well else "the model's thread has ended"})
        elif request.path == "/v1/models":
            reply.json(200, self._models())
        elif request.path == "/metrics":
            reply.whole(200, self._metrics().encode(), "text/plain; version=0.0.4")
        elif request.method != "POST":
            raise RequestError(405, f"{request.path} takes POST")
        elif (endpoint := _ENDPOINTS.get(request.path)) is not None:
            await self._complete(read_request(request.json(), endpoint), endpoint, reply)
        elif request.path == "/v1/load_lora_adapter":
            request.require_key(self._key)
            await self._load(request.json())
            reply.json(200, {"status": "ok"})
        elif request.path == "/v1/unload_lora_adapter":
            request.require_key(self._key)
            await asyncio.wrap_future(self._model.unload(str(request.json().get("lora_name"))))
            reply.json(200, {"status": "ok"})
        else:
            raise RequestError(404, f"there is no {request.path} here")

    async def _load(self, body: Mapping[str, Any]) -> None:
        name = str(body.get("lora_name"))
        if len(self._model.adapters) >= self._max_adapters:
            raise RequestError(409, f"{len(self._model.adapters)} adapters are loaded, the most there may be")
        try:
            await asyncio.wrap_future(self._model.load(name, Path(str(body.get("lora_path")))))
        except ModelError as error:
            raise RequestError(400, str(error)) from error
        except ValueError as error:
            raise RequestError(409, str(error)) from error

    async def _complete(self, asked: Asked, endpoint: Endpoint, reply: Reply) -> None:
        if asked.model not in {self._model.base, *self._model.adapters}:
            raise _missing(asked.model)
        prompt = self._encode(asked, endpoint)
        room = self._context_tokens - len(prompt)
        if room < 1:
            raise RequestError(
                400,
                f"the prompt has {len(prompt)} tokens, the engine's context is {self._context_tokens}",
                code="context_length_exceeded",
            )
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[int | _End] = asyncio.Queue()

        def tell(found: int | _End) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, found)

        job = Job(
            asked.model,
            prompt,
            asked.sampling(room),
            on_token=tell,
            on_end=lambda error: tell(_End(error)),
        )
        self._model.submit(job)
        try:
            answer = _Answer(asked, endpoint, reply, TextStream(self._decode, asked.stops))
            await answer.write(queue, prompt_tokens=len(prompt), ends=self._model.ends)
        finally:
            job.cancelled.set()

    def _encode(self, asked: Asked, endpoint: Endpoint) -> Sequence[int]:
        tokenizer = self._model.tokenizer
        if endpoint == "chat":
            try:
                ids: list[int] = tokenizer.apply_chat_template(
                    asked.messages,
                    tools=asked.tools,
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=False,
                )
            except Exception as error:  # a boundary: templates are programs, and fail as they like
                raise RequestError(400, f"messages: the chat template cannot render them: {error}") from error
            return ids
        if isinstance(asked.prompt, list):
            if any(not 0 <= token < len(tokenizer) for token in asked.prompt):
                raise RequestError(400, "prompt: a token is not the model's")
            return asked.prompt
        found: list[int] = tokenizer(asked.prompt)["input_ids"]
        if not found:
            raise RequestError(400, "prompt: it has no tokens")
        return found

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._model.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _models(self) -> dict[str, Any]:
        base = self._model.base
        rows = [{"id": base, "object": "model", "owned_by": "posttrain", "parent": None}]
        rows += [
            {"id": n, "object": "model", "owned_by": "posttrain", "parent": base}
            for n in self._model.adapters
        ]
        return {"object": "list", "data": rows}

    def _metrics(self) -> str:
        flights = self._model.in_flight()
        names = {self._model.base, *self._model.adapters, *flights}
        lines = [f'posttrain_engine_in_flight{{model="{name}"}} {flights[name]}' for name in sorted(names)]
        return "\n".join([*lines, f"posttrain_engine_tokens_total {self._model.tokens_made}", ""])


class _Answer:
    """One answer under way, from tokens to bytes."""

    def __init__(self, asked: Asked, endpoint: Endpoint, reply: Reply, text: TextStream) -> None:
        self._asked = asked
        self._shapes = Shapes(endpoint, asked.model)
        self._reply = reply
        self._text = text
        self.tokens = 0

    async def write(
        self, queue: asyncio.Queue[int | _End], *, prompt_tokens: int, ends: frozenset[int]
    ) -> None:
        """Read tokens until the end, and write what they say."""
        pieces: list[str] = []
        finish = "length"
        first = True
        while not isinstance(found := await queue.get(), _End):
            self.tokens += 1
            if found in ends:
                finish = "stop"
                continue  # the job ends now
            pieces.append(self._text.add(found))
            if self._asked.stream and (pieces[-1] or first):
                await self._send(pieces[-1], first=first)
                first = False
            if self._text.stopped:
                finish = "stop"
                break
        else:
            if found.error is not None:
                raise _told(found.error, self._asked.model) from found.error
        pieces.append(self._text.rest())
        if self._text.stopped:
            finish = "stop"
        usage = usage_of(prompt_tokens, self.tokens)
        if not self._asked.stream:
            self._reply.json(200, self._shapes.whole("".join(pieces), finish, usage))
            return
        if pieces[-1] or first:
            await self._send(pieces[-1], first=first)
        await self._reply.event(json.dumps(self._shapes.chunk(None, finish)))
        if self._asked.stream_options is not None and self._asked.stream_options.include_usage:
            await self._reply.event(json.dumps(self._shapes.usage_chunk(usage)))
        await self._reply.event("[DONE]")
        self._reply.end_events()

    async def _send(self, text: str, *, first: bool) -> None:
        if first:
            self._reply.begin_events()
        await self._reply.event(json.dumps(self._shapes.chunk(text, first=first), ensure_ascii=False))


def _missing(model: str) -> RequestError:
    return RequestError(404, f"the model {model!r} is not here", code="model_not_found")


def _told(error: BaseException, model: str) -> BaseException:
    return _missing(model) if isinstance(error, AdapterMissing) else error


async def _main(spec: Mapping[str, Any], model: TransformersModel) -> None:
    server = Server(
        model,
        context_tokens=spec["context_tokens"],
        max_adapters=spec["max_adapters"],
        key=os.environ.get("POSTTRAIN_ENGINE_KEY", ""),
    )
    await serve(server.handle, socket.socket(fileno=spec["descriptor"]), asyncio.Event())


def main() -> int:
    """Load the model, then serve."""
    quiet_libraries()
    with Path(sys.argv[1]).open() as stream:
        spec: dict[str, Any] = json.load(stream)
    import torch

    torch.set_num_threads(spec["threads"])
    try:
        model = TransformersModel(
            Path(spec["folder"]),
            spec["base"],
            dtype=spec["dtype"],
            device=spec["device"],
            parallel=spec["parallel"],
        )
    except ModelError as error:
        print(f"the model cannot be served: {error}", file=sys.stderr)  # noqa: T201 - the log
        return 1
    run(_main(spec, model))
    sys.stdout.flush()
    os._exit(0)  # the model's thread may be in a forward pass; nobody waits for it


if __name__ == "__main__":
    sys.exit(main())
