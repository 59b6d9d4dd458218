"""``python -m posttrain.engines.drivers.recorded_server SPEC``: answers that were recorded, over OpenAI's protocol.

Here: looking a question up and handing out its answer. Not here: how it is launched (``recorded``). A question without
a recorded answer is a 404 with the code ``no_recorded_answer``: nobody made one up.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.core.errors import DataError
from posttrain.data.prompts import normal_question
from posttrain.engines.drivers.http_server import Reply, Request, RequestError, run, serve
from posttrain.engines.drivers.openai_bodies import Asked, Endpoint, Shapes, read_request, usage_of

_PATHS: Mapping[str, Endpoint] = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}


def read_answers(path: Path) -> dict[str, str]:
    """Normal form of each question to its answer, from JSON lines with ``question`` and ``answer``.

    Raises DataError that names the line.
    """
    answers: dict[str, str] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, answer = row["question"], row["answer"]
            answers[normal_question(question)] = str(answer)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path.name}, line {number}: expected an object with `question` and `answer`: {error!r}"
            ) from error
    if not answers:
        raise DataError(f"{path.name} has no answers")
    return answers


class RecordedServer:
    """One set of answers, under one model name."""

    def __init__(self, name: str, answers: Mapping[str, str]) -> None:
        self._name = name
        self._answers = answers
        self._given = 0
        self._missing = 0

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request."""
        if request.path == "/health":
            reply.json(200, {"status": "ok"})
        elif request.path == "/v1/models":
            reply.json(200, {"object": "list", "data": [{"id": self._name, "object": "model"}]})
        elif request.path == "/metrics":
            text = f"posttrain_recorded_given {self._given}\nposttrain_recorded_missing {self._missing}\n"
            reply.whole(200, text.encode(), "text/plain; version=0.0.4")
        elif (endpoint := _PATHS.get(request.path)) is not None and request.method == "POST":
            await self._complete(read_request(request.json(), endpoint), endpoint, reply)
        else:
            raise RequestError(404, f"there is no {request.method} {request.path}")

    async def _complete(self, asked: Asked, endpoint: Endpoint, reply: Reply) -> None:
        question = _question(asked)
        answer = self._answers.get(normal_question(question))
        if answer is None:
            self._missing += 1
            raise RequestError(404, "nobody has answered this question", code="no_recorded_answer")
        self._given += 1
        # Words stand for tokens: nothing tokenized these texts.
        usage, shapes = usage_of(len(question.split()), len(answer.split())), Shapes(endpoint, asked.model)
        if not asked.stream:
            reply.json(200, shapes.whole(answer, "stop", usage))
            return
        reply.begin_events()
        await reply.event(json.dumps(shapes.chunk(answer, first=True)))
        await reply.event(json.dumps(shapes.chunk(None, "stop")))
        if asked.stream_options is not None and asked.stream_options.include_usage:
            await reply.event(json.dumps(shapes.usage_chunk(usage)))
        await reply.event("[DONE]")
        reply.end_events()


def _question(asked: Asked) -> str:
    if isinstance(asked.prompt, str):
        return asked.prompt
    for turn in reversed(asked.messages or []):
        if turn.get("role") == "user" and isinstance(turn.get("content"), str):
            return str(turn["content"])
    return ""


async def _main(spec: Mapping[str, Any], answers: Mapping[str, str]) -> None:
    listener = socket.socket(fileno=spec["descriptor"])
    await serve(RecordedServer(spec["name"], answers).handle, listener, asyncio.Event())


def main() -> int:
    """Read the answers, then serve."""
    spec: dict[str, Any] = json.loads(Path(sys.argv[1]).read_bytes())
    try:
        answers = read_answers(Path(spec["answers"]))
    except (DataError, OSError) as error:
        print(f"the answers cannot be served: {error}", file=sys.stderr)  # noqa: T201 - the log
        return 1
    run(_main(spec, answers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
