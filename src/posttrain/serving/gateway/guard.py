"""Guardrails on an answer, where all answers pass: whole or as events, of every route.

Here: which texts of an answer are scanned, and putting what a scan lets out back in their place. Not here: rules and
finding (``guardrails``). Every string of a message that a model can have written is scanned: content, reasoning,
refusals, arguments of tool calls, and whatever else stands there. In a stream, what has no text of its own to scan
piece by piece (structured fields that are no tool calls) does not leave, nor do log probabilities, which spell the text
out; but for ``audit``, where everything leaves at once.

An answer that is blocked ends with the finish reason ``content_filter``, as OpenAI's do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from posttrain.guardrails import GuardrailPlan, Scan

Channel: TypeAlias = Literal["content", "reasoning", "tool_call"]
FILTERED = "content_filter"
_NO_TEXT = frozenset({"role", "id", "type", "name", "object", "index"})
_CALLS = ("tool_calls", "function_call")


class AnswerGuard:
    """The scans of one answer."""

    def __init__(self, plan: GuardrailPlan, body: Mapping[str, Any], *, audits_only: bool) -> None:
        self._plan = plan
        self._format = body.get("response_format")
        self._audits_only = audits_only
        self._scans: dict[tuple[int, str], Scan] = {}
        """By choice and place."""
        self._later: list[dict[str, Any]] = []
        """Finish reasons and usage: they leave when the text before them has."""
        self._frame: dict[str, Any] = {}
        """What events say beside their choices."""
        self._seen: set[int] = set()
        self._findings: list[dict[str, Any]] = []
        self._ended = False
        self.blocked = False
        """Nothing more of the answer may leave."""

    # -- answers that are whole -------------------------------------------------------------------

    def whole(self, answer: Mapping[str, Any], tokens: int | None) -> bool:
        """Scan an answer in place; whether it changed."""
        changed = False
        for choice in answer["choices"]:
            was_blocked, self.blocked = self.blocked, False
            touched = False
            for name in ("message", "text"):
                if name in choice:
                    value = self._walk(choice[name], "content", choice.get("index") or 0, tokens)
                    touched = touched or value != choice[name]
                    choice[name] = value
            if self.blocked:
                choice["finish_reason"] = FILTERED
                if isinstance(choice.get("message"), dict):
                    for name in _CALLS:
                        choice["message"].pop(name, None)
            if touched or self.blocked:
                changed = True
                choice["logprobs"] = None
            self.blocked = self.blocked or was_blocked
        return changed

    def _walk(self, value: Any, channel: Channel, choice: int, tokens: int | None) -> Any:
        if isinstance(value, str):
            return self._scan_whole(value, channel, choice, tokens)
        if isinstance(value, list):
            return [self._walk(item, channel, choice, tokens) for item in value]
        if isinstance(value, dict):
            return {
                name: item if name in _NO_TEXT else self._walk(item, _channel(name, channel), choice, tokens)
                for name, item in value.items()
            }
        return value

    def _scan_whole(self, text: str, channel: Channel, choice: int, tokens: int | None) -> str:
        scan = self._plan.start(False, self._format, channel)
        if scan is None:
            return text
        out = scan.feed(text)
        end = scan.finish(tokens)
        self._findings.append({"choice": choice, **end.audit})
        self.blocked = self.blocked or scan.blocked
        return out + end.tail

    # -- answers that come as events --------------------------------------------------------------

    def event(self, event: dict[str, Any]) -> list[dict[str, Any]] | None:
        """What leaves in its place; None: the event as it came."""
        return [] if self.blocked else self._event(event)

    def _event(self, event: dict[str, Any]) -> list[dict[str, Any]] | None:
        choices = event.get("choices")
        if not choices:
            if event.get("usage") is None or self._audits_only:
                return None
            self._later.append(event)
            return []
        self._frame = {name: value for name, value in event.items() if name not in ("choices", "usage")}
        now, later = [], []
        for choice in choices:
            index = choice.get("index") or 0
            self._seen.add(index)
            said = self._said(choice, index)
            if self._audits_only:
                continue
            if said:
                now.append({"index": index, **said, "finish_reason": None})
            if (finish := choice.get("finish_reason")) is not None:
                later.append({"index": index, **_nothing("delta" in choice), "finish_reason": finish})
        if self._audits_only:
            return None
        if self.blocked:
            return [{**self._frame, "choices": now}, *self._blocked_ends("delta" in choices[0])]
        if later:
            self._later.append({**self._frame, "choices": later})
        if event.get("usage") is not None:
            self._later.append({**self._frame, "choices": [], "usage": event["usage"]})
        return [{**self._frame, "choices": now}] if now else []

    def end(self, tokens: int | None) -> list[dict[str, Any]]:
        """The stream is over: what was held back."""
        if self.blocked or self._audits_only:
            self._finish(tokens)
            return []
        tails: list[dict[str, Any]] = []
        filtered: set[int] = set()
        for (index, place), tail, blocked in self._finish(tokens):
            if tail:
                tails.append({**self._frame, "choices": [_choice(index, place, tail)]})
            if blocked:
                filtered.add(index)
        for event in self._later:
            for choice in event.get("choices") or ():  # of usage alone it may be null
                if (choice.get("index") or 0) in filtered:
                    choice["finish_reason"] = FILTERED
        return [*tails, *self._later]

    @property
    def audit(self) -> list[dict[str, Any]]:
        """For the row: what was really scanned. Of an answer that was cut off, as far as it came."""
        if not self._ended:
            self._finish(None, sent=False)
        return self._findings

    def _finish(self, tokens: int | None, *, sent: bool = True) -> list[tuple[tuple[int, str], str, bool]]:
        ends = []
        self._ended = True
        for key, scan in self._scans.items():
            end = scan.finish(tokens)
            audit = {"choice": key[0], **end.audit}
            if not sent:
                audit["sent_characters"] -= len(end.tail)  # what was held back is not on its way to anybody
            self._findings.append(audit)
            ends.append((key, end.tail, scan.blocked))
        self._scans = {}
        return ends

    def _said(self, choice: dict[str, Any], index: int) -> dict[str, Any]:
        """The part of a choice that may leave now: ``delta`` or ``text``; empty where there is none."""
        text = choice.get("text")
        if isinstance(text, str):
            out = self._feed(index, "text", text)
            return {"text": out} if out else {}
        delta: Any = choice.get("delta")
        if not isinstance(delta, dict):
            return {}
        said: dict[str, Any] = {}
        for name, value in delta.items():
            if name == "tool_calls" and isinstance(value, list):
                if calls := [call for item in value if (call := self._call(index, item))]:
                    said[name] = calls
            elif name in _NO_TEXT:
                said[name] = value
            elif isinstance(value, str) and value and (out := self._feed(index, name, value)):
                said[name] = out
        if said.keys() == {"role"}:
            said["content"] = ""
        return {"delta": said} if said else {}

    def _call(self, index: int, call: Any) -> dict[str, Any] | None:
        if not isinstance(call, dict):
            return None
        kept = {name: value for name, value in call.items() if name in _NO_TEXT}
        function = call.get("function")
        if isinstance(function, dict):
            arguments = function.get("arguments")
            out = ""
            if isinstance(arguments, str):
                out = self._feed(index, f"tool_calls.{call.get('index') or 0}", arguments)
            if function.get("name") or out or not arguments:
                kept["function"] = {
                    **({"name": function["name"]} if function.get("name") else {}),
                    "arguments": out,
                }
        return kept if kept.keys() - {"index"} else None

    def _feed(self, index: int, place: str, text: str) -> str:
        scan = self._scans.get((index, place))
        if scan is None:
            made = self._plan.start(True, self._format, _channel(place.partition(".")[0], "content"))
            if made is None:
                return text
            scan = self._scans[index, place] = made
        out = scan.feed(text)
        self.blocked = self.blocked or scan.blocked
        return out

    def _blocked_ends(self, chat: bool) -> list[dict[str, Any]]:
        ends = [{"index": index, **_nothing(chat), "finish_reason": FILTERED} for index in sorted(self._seen)]
        return [{**self._frame, "choices": [end]} for end in ends]


def _channel(name: str, outer: Channel) -> Channel:
    if name in _CALLS:
        return "tool_call"
    if outer == "tool_call" or name in ("content", "text"):
        return outer
    return "reasoning"


def _nothing(chat: bool) -> dict[str, Any]:
    return {"delta": {}} if chat else {"text": ""}


def _choice(index: int, place: str, text: str) -> dict[str, Any]:
    """A piece of text as a choice of an event."""
    if place == "text":
        return {"index": index, "text": text, "finish_reason": None}
    name, _, call = place.partition(".")
    delta: dict[str, Any] = {name: text}
    if call:
        delta = {name: [{"index": int(call), "function": {"arguments": text}}]}
    return {"index": index, "delta": delta, "finish_reason": None}
