"""Known-output probes: requests with an expectation, asked of a model before it meets traffic and after a rollback.

Here: what is asked, what is expected, the verdict on each. Not here: who asks (``adapters``, rollback). *Covered*: an
engine that is down, slow, or answers nonsense is a failed probe, never an exception. *Not covered*: judging an answer's
quality, which is the gate's; ``refuses`` looks for the words of a refusal, and no more.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, field_validator, model_validator

from posttrain.core.documents import Record
from posttrain.engines.drivers.http_client import call

_SHOWN = 80
_REFUSAL = re.compile(
    r"\b(?:I\s+(?:can(?:no|')?t|can not|won't|will not|am (?:not able|unable))|I'm (?:not able|unable|sorry)"
    r"|sorry,? (?:but )?I|unable to (?:help|assist))|不能(?:帮|提供|协助)|无法(?:帮|提供|协助)|抱歉",
    re.IGNORECASE,
)


class Answers(Record):
    """Any answer that is not empty of tokens will do."""

    kind: Literal["answers"] = "answers"


class Equals(Record):
    """The answer is this text."""

    kind: Literal["equals"] = "equals"
    text: str
    strip: bool = False
    """Whether white space around it does not count."""


class Matches(Record):
    """The pattern is found in the answer, or with ``absent`` is not."""

    kind: Literal["matches"] = "matches"
    pattern: str
    """A Python regular expression, searched with ``.`` matching line ends."""
    absent: bool = False

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from error
        return value


class IsJson(Record):
    """The answer is a JSON object with these keys."""

    kind: Literal["json"] = "json"
    keys: tuple[str, ...] = ()


class Refuses(Record):
    """The answer has the words of a refusal (English or Chinese), or these."""

    kind: Literal["refuses"] = "refuses"
    words: tuple[str, ...] = ()
    """Further texts, any one of which is a refusal."""


Expectation: TypeAlias = Annotated[Answers | Equals | Matches | IsJson | Refuses, Field(discriminator="kind")]


class Probe(Record):
    """One request and what must come of it. Greedy, unless it says otherwise."""

    id: str = Field(min_length=1)
    messages: tuple[Mapping[str, str], ...] = ()
    """A conversation; or ``prompt``."""
    prompt: str | None = None
    """A plain text to go on with."""
    expect: Expectation
    max_tokens: int = Field(64, ge=1)
    temperature: float = Field(0.0, ge=0)
    seed: int = 0
    seconds: float = Field(10.0, gt=0)
    """How long its answer may take."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.messages) == (self.prompt is not None):
            raise ValueError(f"probe {self.id!r}: it has either `messages` or a `prompt`")
        return self


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How one probe went."""

    id: str
    passed: bool
    reason: str
    """Empty where it passed; else one line."""
    text: str = ""
    """The answer."""
    seconds: float = 0.0


def probe(
    url: str, model: str, probes: Sequence[Probe], *, seconds: float = 30.0, key: str | None = None
) -> list[ProbeResult]:
    """Ask ``model`` at ``url`` (up to and including ``/v1``) every probe, in order; a result for each.

    ``seconds`` is for all of them: what was not asked by then has failed.
    """
    until = time.monotonic() + seconds
    results = []
    for one in probes:
        begun = time.monotonic()
        left = min(one.seconds, until - begun)
        text, reason = "", f"not asked: {seconds:g} s were over"
        if left > 0:
            text, reason = _ask(url, model, one, seconds=left, key=key)
        if not reason:
            reason = _judge(text, one.expect)
        results.append(ProbeResult(one.id, not reason, reason, text, time.monotonic() - begun))
    return results


def _ask(url: str, model: str, one: Probe, *, seconds: float, key: str | None) -> tuple[str, str]:
    """The answer's text, and what went wrong."""
    chat = one.prompt is None
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": one.max_tokens,
        "temperature": one.temperature,
        "seed": one.seed,
        "stream": False,
        **({"messages": [dict(message) for message in one.messages]} if chat else {"prompt": one.prompt}),
    }
    path = "/chat/completions" if chat else "/completions"
    try:
        answer = call("POST", url.rstrip("/") + path, seconds=seconds, body=body, key=key)
    except OSError as error:
        return "", f"no answer in {seconds:.1f} s: {error}"
    if answer.status != 200:
        return "", answer.message()
    found = answer.json()
    try:
        choice = found["choices"][0]
        text = choice["message"]["content"] if chat else choice["text"]
        used = found.get("usage", {}).get("completion_tokens")
    except (KeyError, IndexError, TypeError, AttributeError):
        return "", "the answer is no completion"
    if text is None and not (chat and choice["message"].get("reasoning_content")):
        return "", "the answer has no text"
    # A model whose first token ends its turn says nothing, and did answer; one of no tokens did not.
    if used == 0:
        return "", "the answer has no tokens"
    return str(text or ""), ""


def _judge(text: str, expect: Expectation) -> str:
    """What is wrong with an answer; empty where nothing is."""
    match expect:
        case Answers():
            return ""
        case Equals():
            same = text.strip() == expect.text.strip() if expect.strip else text == expect.text
            return "" if same else f"answered {_short(text)}, expected {_short(expect.text)}"
        case Matches():
            there = re.search(expect.pattern, text, re.DOTALL) is not None
            verb = "has" if expect.absent else "lacks"
            return "" if there != expect.absent else f"the answer {verb} /{expect.pattern}/: {_short(text)}"
        case IsJson():
            return _judge_json(text, expect.keys)
        case Refuses():
            refused = _REFUSAL.search(text) is not None or any(word in text for word in expect.words)
            return "" if refused else f"no refusal: {_short(text)}"


def _judge_json(text: str, keys: Sequence[str]) -> str:
    try:
        found = json.loads(text)
    except ValueError:
        return f"no JSON: {_short(text)}"
    if not isinstance(found, dict):
        return f"no JSON object: {_short(text)}"
    missing = [key for key in keys if key not in found]
    return f"the JSON lacks {missing[0]!r}" if missing else ""


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")
