"""Bodies of OpenAI's API as the transformers server reads and writes them.

Here: what a request may say, the text as it becomes certain, the shapes of answers. Not here: HTTP, the model. What is
asked for and cannot be given (several answers, log-probabilities, a grammar) is refused, never ignored. *Not covered*:
tool calls in answers; tools are rendered into the prompt, and what the model writes comes back as text.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from posttrain.engines.drivers.http_server import RequestError
from posttrain.engines.records import Sampling

Endpoint: TypeAlias = Literal["chat", "completions"]
_UNSURE = "\ufffd"
"""What a tokenizer makes of a character whose bytes are not all there yet."""


class StreamOptions(BaseModel):
    """``stream_options`` of a request."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class Asked(BaseModel):
    """One request, the fields that are understood."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str
    messages: list[dict[str, Any]] | None = None
    prompt: str | list[int] | None = None
    tools: list[dict[str, Any]] | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int | None = None
    logprobs: bool | int | None = None
    echo: bool | None = None
    response_format: dict[str, Any] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer, and are no part of it."""
        found = [self.stop] if isinstance(self.stop, str) else (self.stop or [])
        return tuple(text for text in found if text)

    def sampling(self, room: int) -> Sampling:
        """How it is drawn, with at most ``room`` tokens."""
        most = self.max_completion_tokens or self.max_tokens or room
        seed = secrets.randbits(62) if self.seed is None else self.seed % 2**62
        return Sampling(
            max_new_tokens=min(most, room),
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(0, self.top_k or 0),
            seed=seed,
        )


def read_request(body: Mapping[str, Any], endpoint: Endpoint) -> Asked:
    """The request. Raises RequestError where it is none, or asks for what this engine has not."""
    try:
        asked = Asked.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RequestError(400, f"{place}: {first['msg']}") from error
    wanted = asked.messages if endpoint == "chat" else asked.prompt
    if not wanted:
        raise RequestError(400, f"{'messages' if endpoint == 'chat' else 'prompt'}: needed, and not empty")
    kind = (asked.response_format or {}).get("type", "text")
    for name, given in {
        "n": asked.n not in {None, 1},
        # 0 is "no alternatives" in the older endpoint: still log-probabilities.
        "logprobs": asked.logprobs is not None and asked.logprobs is not False,
        "echo": bool(asked.echo),
        "response_format": kind != "text",
    }.items():
        if given:
            raise RequestError(400, f"{name}: the transformers engine does not have this", code="unsupported")
    return asked


class TextStream:
    """Tokens in, text out as soon as it is certain: whole characters, and nothing that may begin a stop text."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        self._decode = decode
        self._stops = stops
        self._ids: list[int] = []
        self._sent = 0
        self.stopped = False
        """Whether a stop text came."""

    def add(self, token: int) -> str:
        """The text that ``token`` made certain."""
        self._ids.append(token)
        text = self._decode(self._ids).rstrip(_UNSURE)
        return self._give(text, len(text) - self._held(text))

    def rest(self) -> str:
        """What was held back, at the end."""
        text = self._decode(self._ids)
        return self._give(text, len(text))

    def _give(self, text: str, until: int) -> str:
        if self.stopped:
            return ""
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            until = min(found)
        piece = text[self._sent : until]
        self._sent = max(self._sent, until)
        return piece

    def _held(self, text: str) -> int:
        """How many of the last characters may be the beginning of a stop text."""
        most = 0
        for stop in self._stops:
            sizes = range(min(len(stop) - 1, len(text)), 0, -1)
            most = max(most, next((size for size in sizes if text.endswith(stop[:size])), 0))
        return most


class Shapes:
    """The answers to one request."""

    def __init__(self, endpoint: Endpoint, model: str) -> None:
        self._chat = endpoint == "chat"
        self._model = model
        self._id = ("chatcmpl-" if self._chat else "cmpl-") + secrets.token_hex(12)
        self._created = int(time.time())

    def whole(self, text: str, finish: str, usage: Mapping[str, int]) -> dict[str, Any]:
        """An answer in one piece."""
        said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._body(kind, {**said, "finish_reason": finish}), "usage": dict(usage)}

    def chunk(self, text: str | None, finish: str | None = None, *, first: bool = False) -> dict[str, Any]:
        """A piece of a streamed answer."""
        if not self._chat:
            return self._body("text_completion", {"text": text or "", "finish_reason": finish})
        delta = {} if text is None else {"content": text}
        if first:
            delta["role"] = "assistant"
        return self._body("chat.completion.chunk", {"delta": delta, "finish_reason": finish})

    def usage_chunk(self, usage: Mapping[str, int]) -> dict[str, Any]:
        """The last piece, where the request wants to know."""
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._body(kind, None), "usage": dict(usage)}

    def _body(self, kind: str, choice: Mapping[str, Any] | None) -> dict[str, Any]:
        choices = [] if choice is None else [{"index": 0, "logprobs": None, **choice}]
        return {
            "id": self._id, "object": kind, "created": self._created, "model": self._model, "choices": choices
        }  # fmt: skip


def usage_of(prompt: int, completion: int) -> dict[str, int]:
    """Token counts in OpenAI's form."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
