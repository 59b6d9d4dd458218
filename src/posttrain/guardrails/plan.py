"""Rules made ready: compiled once for a configuration, asked for every request.

Here: requests, and starting the scan of an answer. Not here: rules as data (``config``), streams (``scan``). A plan is
immutable and shared by all requests of a worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from posttrain.guardrails.config import (
    BlockedTermsRule,
    GuardrailConfig,
    JsonSchemaRule,
    LengthRule,
    PersonalDataRule,
    PromptInjectionRule,
    Rule,
)
from posttrain.guardrails.finders import Finder
from posttrain.guardrails.personal import personal_finders
from posttrain.guardrails.phrases import INJECTION_MARKERS, PhraseFinder
from posttrain.guardrails.records import Action, Finding, RequestScan, strongest
from posttrain.guardrails.scan import MAX_FINDINGS, Scan
from posttrain.guardrails.schema import SchemaChecks


def finders(rule: Rule) -> list[Finder]:
    """What finds the places that ``rule`` speaks of; empty for rules about the text as a whole."""
    match rule:
        case PersonalDataRule():
            return personal_finders(rule.kinds, rule.allow)
        case BlockedTermsRule():
            return [PhraseFinder(rule.kind, rule.terms)]
        case PromptInjectionRule():
            return [PhraseFinder(rule.kind, (*INJECTION_MARKERS, *rule.extra))]
        case _:
            return []


class Side:
    """The rules that look at one kind of text; without ``whole`` only those that find places in it."""

    def __init__(self, rules: list[Rule], *, whole: bool = True) -> None:
        self.labels = tuple(rule.label for rule in rules)
        self.rules: list[tuple[str, Action, str]] = [
            (rule.label, rule.action, "[REDACTED]" if isinstance(rule, BlockedTermsRule) else "")
            for rule in rules
        ]
        self.finders = [(finder, number) for number, rule in enumerate(rules) for finder in finders(rule)]
        self.whole = [
            (rule.label, rule) for rule in rules if whole and isinstance(rule, LengthRule | JsonSchemaRule)
        ]
        self.limits = sorted(
            (rule.max_characters, number)
            for number, rule in enumerate(rules)
            if whole and isinstance(rule, LengthRule) and rule.max_characters is not None
        )
        """Most characters, and the rule's number."""
        self.schemas = (
            SchemaChecks() if any(isinstance(rule, JsonSchemaRule) for _, rule in self.whole) else None
        )

    @property
    def window_characters(self) -> int:
        """The most that is ever held back, in folded characters."""
        return max((finder.reach for finder, _ in self.finders), default=0)

    def wants_json(
        self, rule: JsonSchemaRule, response_format: Mapping[str, Any] | None, channel: str
    ) -> bool:
        """Whether ``rule`` applies to this answer."""
        if channel != "content":
            return False
        asked = response_format is not None and response_format.get("type") in ("json_schema", "json_object")
        return rule.json_schema is not None or asked

    def needs_whole(self, response_format: Mapping[str, Any] | None, channel: str) -> bool:
        """Whether the whole answer is kept, because a rule wants to see it."""
        return any(
            isinstance(rule, JsonSchemaRule) and self.wants_json(rule, response_format, channel)
            for _, rule in self.whole
        )

    def must_wait(self, response_format: Mapping[str, Any] | None, channel: str) -> bool:
        """Whether nothing may leave before the whole answer was seen: a schema that blocks."""
        return any(
            isinstance(rule, JsonSchemaRule)
            and rule.action == "block"
            and self.wants_json(rule, response_format, channel)
            for _, rule in self.whole
        )


class GuardrailPlan:
    """The rules of a gateway, ready to run."""

    def __init__(self, config: GuardrailConfig) -> None:
        self._stream = config.stream
        self._response = Side([rule for rule in config.rules if rule.looks_at("response")])
        asked = [rule for rule in config.rules if rule.looks_at("request")]
        self._request = {
            source: Side(
                [r for r in asked if not isinstance(r, PromptInjectionRule) or source in r.sources],
                whole=False,
            )
            for source in ("user", "tool", "other")
        }
        self._asked = asked

    @property
    def window_characters(self) -> int:
        """The most of a streamed answer that is ever held back."""
        return self._response.window_characters

    def request(self, prompt: Any) -> RequestScan:
        """Judge what a client sent: the list ``messages``, or the text or texts of ``prompt``.

        Looked at: text contents and text parts of messages of every role, and the arguments of tool calls in them.
        *Not covered*: pictures, sound, files.
        """
        if not self._asked:
            return _NOTHING
        walk = _Walk(self._request, self._asked)
        if isinstance(prompt, list) and any(isinstance(item, dict) for item in prompt):
            cleaned: Any = walk.messages(prompt)
        elif isinstance(prompt, list):
            cleaned = walk.same(
                [walk.value(item, "user", f"prompt[{n}]") for n, item in enumerate(prompt)], prompt
            )
        else:
            cleaned = walk.value(prompt, "user", "prompt")
        return walk.end(cleaned)

    def start(
        self,
        stream: bool,
        response_format: Mapping[str, Any] | None = None,
        channel: Literal["content", "reasoning", "tool_call"] = "content",
    ) -> Scan | None:
        """A scan for one text of one answer; None where no rule looks at answers.

        An answer with several texts (choices, reasoning, tool calls) takes one scan for each. An answer that is not
        streamed is scanned as a whole: feed it and finish.
        """
        side = self._response
        if not side.labels:
            return None
        wanted = response_format if isinstance(response_format, Mapping) else None
        mode = self._stream
        if mode != "audit" and (not stream or side.must_wait(wanted, channel)):
            mode = "buffer"
        return Scan(side, mode, wanted, channel)


_NOTHING = RequestScan("pass", (), None, None)


class _Walk:
    """One pass over a request."""

    def __init__(self, sides: Mapping[str, Side], rules: list[Rule]) -> None:
        self._sides = sides
        self._rules = rules
        self._findings: list[Finding] = []
        self._characters = 0

    def messages(self, messages: list[Any]) -> list[Any]:
        return self.same([self._message(item, f"messages[{n}]") for n, item in enumerate(messages)], messages)

    def _message(self, message: Any, place: str) -> Any:
        if not isinstance(message, dict):
            return message
        role = message.get("role")
        source = "tool" if role in ("tool", "function") else "user" if role == "user" else "other"
        changed = {}
        content = message.get("content")
        if isinstance(content, str):
            changed["content"] = self.value(content, source, f"{place}.content")
        elif isinstance(content, list):
            parts = [self._part(part, source, f"{place}.content[{n}]") for n, part in enumerate(content)]
            changed["content"] = self.same(parts, content)
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            changed["tool_calls"] = self.same(
                [self._call(call, f"{place}.tool_calls[{n}]") for n, call in enumerate(calls)], calls
            )
        return {**message, **changed} if any(changed[key] is not message[key] for key in changed) else message

    def _part(self, part: Any, source: str, place: str) -> Any:
        if isinstance(part, str):
            return self.value(part, source, place)
        text = part.get("text") if isinstance(part, dict) else None
        cleaned = self.value(text, source, place)
        return part if cleaned is text else {**part, "text": cleaned}

    def _call(self, call: Any, place: str) -> Any:
        function = call.get("function") if isinstance(call, dict) else None
        arguments = function.get("arguments") if isinstance(function, dict) else None
        cleaned = self.value(arguments, "other", place)
        if cleaned is arguments or not isinstance(function, dict):
            return call
        return {**call, "function": {**function, "arguments": cleaned}}

    def value(self, text: Any, source: str, place: str) -> Any:
        """``text`` after its rules; the same object where nothing was redacted."""
        if not isinstance(text, str) or not text:
            return text
        self._characters += len(text)
        side = self._sides[source]
        if not side.finders:
            return text
        scan = Scan(side, "buffer")
        scan.feed(text)
        end = scan.finish()
        self._findings += [finding._replace(place=place) for finding in end.findings]
        return end.tail if end.action == "redact" else text

    @staticmethod
    def same(new: list[Any], old: list[Any]) -> list[Any]:
        """``old`` where nothing in it changed."""
        return old if all(a is b for a, b in zip(new, old, strict=True)) else new

    def end(self, cleaned: Any) -> RequestScan:
        """Rules about the request as a whole, and the outcome."""
        for rule in self._rules:
            if isinstance(rule, LengthRule) and not (
                (rule.min_characters or 0) <= self._characters <= (rule.max_characters or self._characters)
            ):
                self._findings.append(Finding(rule.label, "length", 0, 0, rule.action, "prompt"))
        findings = tuple(self._findings)
        action = strongest(findings)
        audit = {
            "channel": "request",
            "scanned_characters": self._characters,
            "rules": [rule.label for rule in self._rules],
            "findings": [finding.to_json() for finding in findings[:MAX_FINDINGS]],
            "blocked": action == "block",
        }
        if len(findings) > MAX_FINDINGS:
            audit["findings_not_listed"] = len(findings) - MAX_FINDINGS
        return RequestScan(action, findings, cleaned, audit)
