"""The one stream that every answer goes through, whatever its route and whether it is streamed.

Here: reading answers as events and pieces of text, collecting what the row says, holding back what a client did not ask
for. A guardrail scan hangs on ``Answer`` and nowhere else, so that a new route cannot go past it. Not here: when bytes
leave (``exchange``), what a scan finds (``guardrails``). To add a route: teach ``_pieces`` where its text stands.

A streamed answer is passed on event by event: an event is sent whole, and as it came unless a scan changed its text.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import orjson

from posttrain.serving.gateway.guard import AnswerGuard

_dumps: Final = orjson.dumps
_loads: Final = orjson.loads

Endpoint: TypeAlias = Literal["chat", "completions"]

UPSTREAM_PATHS: dict[Endpoint, bytes] = {"chat": b"/chat/completions", "completions": b"/completions"}
"""Behind an upstream's URL, which ends in the version."""
DONE: Final = b"data: [DONE]\n\n"
_FINISHES: Final = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "abort": "error",
    "error": "error",
}
_MAX_EVENT: Final = 4_194_304
_RETURN: Final = b"\r"[0]
"""A number, which bytes are searched for at once; what is itself bytes only after an exception."""


class BadAnswer(Exception):
    """What an upstream sent is no answer; the text says why, in a few words and without content."""


class Usage:
    """Token counts, as far as the upstream told them."""

    __slots__ = ("cached", "completion", "prompt")

    def __init__(self) -> None:
        self.prompt: int | None = None
        self.completion: int | None = None
        self.cached: int | None = None

    def take(self, usage: Any) -> None:
        """Read a ``usage`` object."""
        if type(usage) is not dict:
            return
        self.prompt = _count(usage.get("prompt_tokens"))
        self.completion = _count(usage.get("completion_tokens"))
        details = usage.get("prompt_tokens_details")
        if type(details) is dict:
            self.cached = _count(details.get("cached_tokens"))


class Answer:
    """What one answer said."""

    __slots__ = ("_chat", "_size", "choices", "error", "finish", "guard", "limit", "usage")

    def __init__(self, endpoint: Endpoint, limit: int, guard: AnswerGuard | None = None) -> None:
        self._chat = endpoint == "chat"
        self._size = 0
        self.limit = limit
        """Bytes of events that are kept."""
        self.choices: dict[int, Any] = {}
        """By index: a message or a text; of a stream, what it is put together from."""
        self.finish: str | None = None
        """Of the first choice that said one."""
        self.error: str | None = None
        """Where the upstream answered with an error in the middle."""
        self.usage = Usage()
        self.guard = guard
        """What is said here has passed it."""

    def response(self) -> Any:
        """For the row: the message or text, or a list of them."""
        choices = self.choices
        if len(choices) == 1:
            return _joined(*choices.values())
        return [_joined(choices[index]) for index in sorted(choices)] or None

    def take_whole(self, answer: Any) -> bool:
        """Read an answer that was not streamed; whether a guard changed it. Raises BadAnswer."""
        changed = False
        try:
            self.usage.take(answer.get("usage"))
            if self.guard is not None:
                changed = self.guard.whole(answer, self.usage.completion)
            for choice in answer["choices"]:
                self.choices[_index(choice)] = choice["message" if self._chat else "text"]
                self._finished(choice.get("finish_reason"))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise BadAnswer("its answer has no choices") from error
        return changed

    def take_event(self, event: Any, size: int) -> bool:
        """Read one event of a stream; whether it is only about usage. Raises BadAnswer."""
        self._size += size
        if self._size > self.limit:
            raise BadAnswer("its answer is too long")
        try:
            usage = event.get("usage")
            if usage is not None:
                self.usage.take(usage)
            choices = event.get("choices")
            if not choices:
                if "error" in event:
                    self.error = "the model server failed while it answered"
                return usage is not None
            for choice in choices:
                if self._chat:
                    delta = choice.get("delta")
                    if delta:
                        self._take_delta(_index(choice), delta)
                else:
                    text = choice.get("text")
                    if type(text) is str and text:
                        self.choices.setdefault(_index(choice), _Text()).pieces.append(text)
                finish = choice.get("finish_reason")
                if finish is not None:
                    self._finished(finish)
        except (KeyError, TypeError, AttributeError) as error:
            raise BadAnswer("its events are not those of an answer") from error
        return False

    def _take_delta(self, index: int, delta: dict[str, Any]) -> None:
        message = self.choices.get(index)
        if message is None:
            message = self.choices[index] = _Message()
        content = delta.get("content")
        if type(content) is str and content:
            message.content.append(content)
            if len(delta) == 1:
                return
        for name, value in delta.items():
            if name == "tool_calls" and value:
                _merge_calls(message.calls, value)
            elif name not in ("role", "content") and value and isinstance(value, str):
                message.other.setdefault(name, []).append(value)

    def _finished(self, finish: Any) -> None:
        if self.finish is None and isinstance(finish, str):
            self.finish = _FINISHES.get(finish, "stop")


class _Message:
    """A message that is put together from the pieces of a stream."""

    __slots__ = ("calls", "content", "other")

    def __init__(self) -> None:
        self.content: list[str] = []
        self.other: dict[str, list[str]] = {}
        self.calls: dict[int, dict[str, Any]] = {}

    def joined(self) -> dict[str, Any]:
        """As an answer that was not streamed would have it."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.content)}
        message |= {name: "".join(parts) for name, parts in self.other.items()}
        if self.calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = [_joined_call(self.calls[index]) for index in sorted(self.calls)]
        return message


def _joined(said: Any) -> Any:
    if isinstance(said, _Message):
        return said.joined()
    return "".join(said.pieces) if isinstance(said, _Text) else said


class _Text:
    """A text that is put together from the pieces of a stream."""

    __slots__ = ("pieces",)

    def __init__(self) -> None:
        self.pieces: list[str] = []


class EventReader:
    """Cuts the bytes of a stream into events, and says what may be sent on."""

    __slots__ = ("_answer", "_rest", "_usage_asked", "is_done")

    def __init__(self, answer: Answer, *, usage_asked: bool) -> None:
        self._answer = answer
        self._usage_asked = usage_asked
        """Whether the client itself asked for usage; else that event is ours alone."""
        self._rest = b""
        self.is_done = False
        """Whether the upstream said ``[DONE]``: it is sent on by who ends the answer, after the row is written."""

    def feed(self, data: bytes) -> bytes:
        """What may be sent on. Raises BadAnswer."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if _RETURN in data:  # white space outside of JSON text, escaped inside
            data = data.replace(b"\r\n", b"\n")
        end = data.rfind(b"\n\n") + 2
        if end < 2 or end != len(data):
            end = 0 if end < 2 else end
            self._rest = data[end:]
            if len(self._rest) > _MAX_EVENT:
                raise BadAnswer("one of its events is too long")
            if not end:
                return b""
            data = data[:end]
        if self._answer.guard is not None:
            return b"".join([self._guarded(event, self._answer.guard) for event in data.split(b"\n\n")])
        if data.find(b"\n\n") + 2 == end:
            return data if self._passes(data) else b""
        events = data.split(b"\n\n")
        return b"".join([event + b"\n\n" for event in events if event and self._passes(event)])

    def end(self) -> bytes:
        """The stream is over: an event that was not ended by an empty line counts, too."""
        rest, self._rest = self._rest.rstrip(b"\r\n"), b""
        guard = self._answer.guard
        if guard is None:
            return rest + b"\n\n" if rest and self._passes(rest) else b""
        last = self._guarded(rest, guard)
        return last + b"".join([self._emit(event) for event in guard.end(self._answer.usage.completion)])

    def _passes(self, event: bytes) -> bool:
        payload = event[6:] if event.startswith(b"data: ") else _payload(event)
        if payload is None:
            return True  # a comment that keeps the connection awake
        if payload[:6] == b"[DONE]":
            self.is_done = True
            return False
        return not self._answer.take_event(_parsed(payload, event), len(event)) or self._usage_asked

    def _guarded(self, event: bytes, guard: AnswerGuard) -> bytes:
        """What leaves in an event's place."""
        payload = _payload(event)
        if payload is None:
            return b": \n\n" if event else b""
        if payload[:6] == b"[DONE]":
            self.is_done = True
            return b""
        value = _parsed(payload, event)
        try:
            self._answer.usage.take(value.get("usage"))
            events = guard.event(value)
        except (KeyError, TypeError, AttributeError) as error:
            raise BadAnswer("its events are not those of an answer") from error
        if events is not None:
            return b"".join([self._emit(item) for item in events])
        passes = not self._answer.take_event(value, len(event)) or self._usage_asked
        return event + b"\n\n" if passes else b""

    def _emit(self, event: dict[str, Any]) -> bytes:
        data = _dumps(event)
        passes = not self._answer.take_event(event, len(data)) or self._usage_asked
        return b"data: %b\n\n" % data if passes else b""


def error_event(body: bytes) -> bytes:
    """An error in the middle of a stream, as OpenAI's clients read it."""
    return b"data: %b\n\n" % body


def _payload(event: bytes) -> bytes | None:
    for line in event.split(b"\n"):
        if line.startswith(b"data:"):
            return line[5:].strip()
    return None


def _parsed(payload: bytes, event: bytes) -> Any:
    try:
        return _loads(payload)
    except ValueError:
        return _several_lines(event)  # or no JSON


def _several_lines(event: bytes) -> Any:
    lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
    try:
        return _loads(b"\n".join(lines))
    except ValueError as error:
        raise BadAnswer("its events are not JSON") from error


def _merge_calls(calls: dict[int, Any], deltas: list[dict[str, Any]]) -> None:
    for delta in deltas:
        call = calls.setdefault(_index(delta), {"id": None, "type": "function", "function": {}})
        if delta.get("id"):
            call["id"] = delta["id"]
        if delta.get("type"):
            call["type"] = delta["type"]
        function = call["function"]
        for name, value in (delta.get("function") or {}).items():
            if isinstance(value, str):
                function.setdefault(name, []).append(value)


def _joined_call(call: dict[str, Any]) -> dict[str, Any]:
    return {**call, "function": {name: "".join(parts) for name, parts in call["function"].items()}}


def _index(item: dict[str, Any]) -> int:
    index = item.get("index")
    if index is None:
        return 0
    if type(index) is not int:
        raise TypeError("an index is a number")
    return index


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None
