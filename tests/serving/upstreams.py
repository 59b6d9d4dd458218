"""A real small server that speaks the OpenAI protocol, and misbehaves on request.

What it does with a request is said by the request's own field ``mock`` (the gateway passes unknown fields on), or by
``Upstream.always``, which is laid over it. Fields: ``delay`` seconds before the answer, ``status``, ``text`` to answer
and how many ``times``, ``chunks`` of a stream, ``gap`` seconds between them, ``cut`` the connection (``at once``,
``in head``, ``in body``), ``garbage`` (``http``, ``json``, ``event``, ``first event``, ``html``), ``framing``
(``chunked``, ``length``, ``close``), ``close`` the connection after the answer, ``usage`` false, ``done`` false,
``crlf``, ``pieces`` bytes a write, ``raw`` JSON, ``junk`` behind the answer (``at once``, ``later``), ``headers``
lines, ``error event``, ``events`` instead of its own.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Seen:
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    finished: bool = False
    """Whether its answer was sent whole."""


@dataclass
class Upstream:
    """One server."""

    name: str = "up"
    always: dict[str, Any] = field(default_factory=dict)
    calls: list[Seen] = field(default_factory=list)
    connections: int = 0
    """Connections ever taken."""
    port: int = 0

    async def start(self, **options: Any) -> Upstream:
        """Listen on a free port, or on one that was."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, **options)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    @property
    def url(self) -> str:
        """For a snapshot."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def open(self) -> int:
        """Connections there are."""
        return len(self._writers)

    def cut_all(self) -> None:
        """Close every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def stop(self) -> None:
        """Go away."""
        self._server.close()
        self.cut_all()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connections += 1
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, RuntimeError):
            pass  # RuntimeError: uvloop's word for a connection that is closed
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])
        }
        if lines[0].startswith("GET "):
            await self._answer(writer, 200, {}, json.dumps({"data": [{"id": self.name}]}))
            return True
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        seen = Seen(lines[0].split(" ")[1], headers, body)
        self.calls.append(seen)
        how = {**(body.get("mock") or {}), **self.always}
        await asyncio.sleep(how.get("delay", 0))
        if how.get("cut") == "at once":
            writer.transport.abort()
            return False
        if how.get("garbage") == "http":
            writer.write(b"\x00\x01 this is no HTTP\r\n\r\n")
            await writer.drain()
            return True
        status = how.get("status", 200)
        if status != 200:
            await self._answer(
                writer,
                status,
                how,
                how.get("raw") or json.dumps({"error": {"message": "mock", "code": "mock"}}),
            )
        elif body.get("stream"):
            await self._stream(writer, body, how, chat="chat" in seen.path)
        else:
            await self._answer(
                writer, 200, how, how.get("raw") or json.dumps(self._whole(body, how, "chat" in seen.path))
            )
        seen.finished = True
        return not how.get("close") and how.get("framing") != "close"

    def _text(self, body: dict[str, Any], how: dict[str, Any]) -> str:
        return str(how.get("text", f"{self.name} says {body['model']}")) * int(how.get("times", 1))

    def _usage(self, how: dict[str, Any]) -> dict[str, Any] | None:
        if how.get("usage") is False:
            return None
        return {
            "prompt_tokens": 7,
            "completion_tokens": 5,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 2},
        }

    def _whole(self, body: dict[str, Any], how: dict[str, Any], chat: bool) -> dict[str, Any]:
        text = self._text(body, how)
        choice: dict[str, Any] = {"index": 0, "finish_reason": how.get("finish", "stop")}
        if chat:
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if body.get("tools"):
                message = {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "call_1",
                            "type": "function",
                            "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'},
                        }
                    ],
                }
                choice["finish_reason"] = "tool_calls"
            if (body.get("response_format") or {}).get("type") == "json_object":
                message["content"] = '{"answer": 3}'
            choice["message"] = message
        else:
            choice["text"] = text
        answer = {
            "id": "x",
            "object": "chat.completion" if chat else "text_completion",
            "created": 1,
            "model": body["model"],
            "choices": [choice],
        }
        if usage := self._usage(how):
            answer["usage"] = usage
        return answer

    def _events(self, body: dict[str, Any], how: dict[str, Any], chat: bool) -> list[str]:
        if "events" in how:
            return [json.dumps(event) for event in how["events"]]
        base = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
        chunks = how.get("chunks", 3)
        text = self._text(body, how)
        size = max(1, -(-len(text) // chunks))
        events: list[Any] = []
        if chat:
            events.append({**base, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        if chat and body.get("tools"):
            for delta in (
                {
                    "index": 0,
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "add", "arguments": ""},
                },
                {"index": 0, "function": {"arguments": '{"a": 1, '}},
                {"index": 0, "function": {"arguments": '"b": 2}'}},
            ):
                events.append({**base, "choices": [{"index": 0, "delta": {"tool_calls": [delta]}}]})
        else:
            for start in range(0, len(text), size):
                part = text[start : start + size]
                choice = {"index": 0, "delta": {"content": part}} if chat else {"index": 0, "text": part}
                events.append({**base, "choices": [{**choice, "finish_reason": None}]})
        finish = "tool_calls" if body.get("tools") else how.get("finish", "stop")
        last = {"index": 0, "delta": {}} if chat else {"index": 0, "text": ""}
        events.append({**base, "choices": [{**last, "finish_reason": finish}]})
        usage = self._usage(how)
        if usage and (body.get("stream_options") or {}).get("include_usage"):
            events.append({**base, "choices": [], "usage": usage})
        lines = [json.dumps(event) for event in events]
        if how.get("garbage") == "event":
            lines.insert(2, "{no json")
        if how.get("garbage") == "first event":
            lines.insert(0, "{no json")
        if how.get("error event"):
            lines.insert(2, json.dumps({"error": {"message": "broke", "code": 500}}))
        return lines if how.get("done") is False else [*lines, "[DONE]"]

    async def _stream(
        self, writer: asyncio.StreamWriter, body: dict[str, Any], how: dict[str, Any], *, chat: bool
    ) -> None:
        chunked = how.get("framing", "chunked") == "chunked"
        end = "\r\n\r\n" if how.get("crlf") else "\n\n"
        framing = "transfer-encoding: chunked\r\n" if chunked else "connection: close\r\n"
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{framing}\r\n".encode())
        if how.get("cut") == "in head":
            await writer.drain()
            writer.transport.abort()
            return
        for number, line in enumerate(self._events(body, how, chat)):
            if how.get("cut") == "in body" and number == 2:
                await writer.drain()
                await asyncio.sleep(0.02)
                writer.transport.abort()
                return
            event = f"data: {line}{end}".encode()
            for part in _parts(event, how.get("pieces")):
                writer.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
                await writer.drain()
                await asyncio.sleep(how.get("gap", 0))
        if chunked:
            writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _answer(
        self, writer: asyncio.StreamWriter, status: int, how: dict[str, Any], text: str
    ) -> None:
        body = text.encode()
        if how.get("garbage") == "json":
            body = b'{"choices": ['
        if how.get("garbage") == "html":
            body = b"<html>Bad gateway</html>"
        framing = how.get("framing", "length")
        lines = {
            "length": f"content-length: {len(body)}\r\n",
            "chunked": "transfer-encoding: chunked\r\n",
            "close": "connection: close\r\n",
        }[framing]
        close = "connection: close\r\n" if how.get("close") else ""
        extra = how.get("headers", "")
        writer.write(
            f"HTTP/1.1 {status} Mock\r\ncontent-type: application/json\r\n{lines}{close}{extra}\r\n".encode()
        )
        if how.get("cut") == "in head":
            await writer.drain()
            writer.transport.abort()
            return
        if how.get("cut") == "in body":
            writer.write(body[: len(body) // 2])
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.transport.abort()
            return
        junk = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
        if how.get("junk") == "at once":
            body += junk
        for part in _parts(body, how.get("pieces")):
            writer.write(b"%x\r\n%b\r\n" % (len(part), part) if framing == "chunked" else part)
            await writer.drain()
            await asyncio.sleep(how.get("gap", 0))
        if framing == "chunked":
            writer.write(b"0\r\n\r\n")
        if how.get("junk") == "later":
            await asyncio.sleep(0.001)
            writer.write(junk)
        await writer.drain()


def _parts(data: bytes, size: int | None) -> list[bytes]:
    return [data] if size is None else [data[at : at + size] for at in range(0, len(data), size)]
