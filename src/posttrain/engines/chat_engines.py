"""Engines for chats with tools: a model on this machine, and any OpenAI-compatible server.

Here: one turn at a time, each with a seed of its own. Not here: the loop of turns (``evaluation``), plain completions
(``transformers_engine``, ``endpoint``).

*Covered*: with transformers, the same requests in the same batches on one machine give the same text; a server is
sent temperature, top-p and the seed. *Not covered*: a server that does not honour the seed, or whose kernels depend on
what else is in its batch; other batches here, whose matrix products differ in their last bits. Set ``batch_size`` to 1
where an answer must not depend on its neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.engines.chat import ChatFailure, ChatReply, ChatRequest, Turn, WrittenCall, split_calls
from posttrain.engines.endpoint import EndpointConfig, EndpointFailure, EndpointServer
from posttrain.engines.records import Sampling


class TransformersChat:
    """A loaded model that writes tool calls in the Hermes form, as the tiny model, SmolLM2 and Qwen do."""

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int = 16) -> None:
        from posttrain.engines.transformers_engine import TransformersEngine

        self._engine = TransformersEngine(model, tokenizer, batch_size=batch_size)
        self._batch_size = batch_size

    @property
    def batch_size(self) -> int:
        """See :class:`~posttrain.engines.chat.ChatEngine`."""
        return self._batch_size

    def chat(self, requests: Sequence[ChatRequest], sampling: Sampling) -> list[Turn]:
        """See :class:`~posttrain.engines.chat.ChatEngine`. Requests are one batch: the first one's seed is the draw's.

        A whole batch took as long as its slowest turn, and each of its turns is said to have taken that.
        """
        started = time.monotonic()
        prompts = [self._encode(request) for request in requests]
        completions = self._engine.complete_ids(prompts, sampling, requests[0].seed)
        seconds = time.monotonic() - started
        turns: list[Turn] = []
        for prompt, completion in zip(prompts, completions, strict=True):
            text, calls = split_calls(completion.text)
            turns.append(ChatReply(text, calls, len(prompt), completion.tokens, completion.finish, seconds))
        return turns

    def _encode(self, request: ChatRequest) -> list[int]:
        messages = [_with_objects(message) for message in request.messages]
        return self._engine.encode(messages, [dict(tool) for tool in request.tools] or None)


class EndpointChat:
    """A server, asked for one turn at a time; as many at once as ``concurrency`` says are the caller's threads."""

    batch_size = 1

    def __init__(self, config: EndpointConfig) -> None:
        self._server = EndpointServer(config)
        self._client = self._server.client()
        self.concurrency = config.concurrency

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def chat(self, requests: Sequence[ChatRequest], sampling: Sampling) -> list[Turn]:
        """See :class:`~posttrain.engines.chat.ChatEngine`."""
        return [self._turn(request, sampling) for request in requests]

    def _turn(self, request: ChatRequest, sampling: Sampling) -> Turn:
        body: dict[str, Any] = {
            "model": self._server.config.model,
            "messages": [dict(message) for message in request.messages],
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed,
        }
        if request.tools:
            body["tools"] = [dict(tool) for tool in request.tools]
        started = time.monotonic()
        reply = self._server.ask(self._client, body, _read_reply)
        if isinstance(reply, EndpointFailure):
            return ChatFailure(reply.reason)
        text, calls, usage, finish = reply
        return ChatReply(
            text,
            calls,
            usage.get("prompt_tokens"),
            usage.get("completion_tokens"),
            "length" if finish == "length" else "stop",
            time.monotonic() - started,
        )


def _read_reply(answer: Any) -> tuple[str, tuple[WrittenCall, ...], Mapping[str, Any], str | None]:
    choice = answer["choices"][0]
    message = choice["message"]
    calls = tuple(
        WrittenCall(str(call["function"]["name"]), str(call["function"].get("arguments") or "{}"))
        for call in message.get("tool_calls") or ()
    )
    return str(message.get("content") or ""), calls, answer.get("usage") or {}, choice.get("finish_reason")


def _with_objects(message: Mapping[str, Any]) -> dict[str, Any]:
    """Chat templates want arguments as objects, OpenAI's form has them as text."""
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    written = [WrittenCall(call["function"]["name"], call["function"]["arguments"]) for call in calls]
    functions = [{"name": w.name, "arguments": w.parsed() or {}} for w in written]
    return {**message, "tool_calls": [{"type": "function", "function": function} for function in functions]}
