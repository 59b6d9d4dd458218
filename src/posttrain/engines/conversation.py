"""Playing cases: a model is asked, its tool calls are answered from the frozen world, until it has answered.

Here: a batch of conversations side by side, turn by turn. Not here: engines (``engines.chat``), tools
(``environments.tools``), many batches at once (``suite_runner``), answers that were given before (``recorded``). Each
turn's seed is made of the suite's seed, the case, the sample and the turn, so no draw depends on what else is played.

An engine that raises or gives no answer makes a row with an error; it never makes a wrong answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from posttrain.engines.chat import ChatEngine, ChatFailure, ChatReply, ChatRequest, Turn, WrittenCall
from posttrain.engines.records import Sampling
from posttrain.environments.records import Answer, Case, ToolCall
from posttrain.environments.suites.suite import SYSTEM_PROMPT, Suite
from posttrain.environments.tools import FrozenTools, ToolMiss

_ERROR_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Played:
    """What a model did with one case, before anybody judged it."""

    case: str
    slice: str
    sample: int
    answer: Answer | None
    """None where the engine failed."""
    error: str | None = None
    """Why there is no answer."""
    misses: tuple[ToolMiss, ...] = ()
    """Calls that the frozen world had no reply to."""
    seconds: float | None = None
    """Time that the model took, over all its turns; None where that says nothing about it."""


class Job(NamedTuple):
    """One answer that is wanted."""

    case: Case
    sample: int


class Player(Protocol):
    """Anything that plays cases."""

    @property
    def batch_size(self) -> int:
        """Jobs that it wants at once."""
        ...

    def play(self, jobs: Sequence[Job]) -> list[Played]:
        """One result for each job, in order; a failure is a result. Several threads may call at once."""
        ...


class ChatPlayer:
    """A chat engine in a frozen world."""

    def __init__(self, suite: Suite, engine: ChatEngine) -> None:
        decoding = suite.settings.decoding
        self.settings = suite.settings
        self.engine = engine
        self.sampling = Sampling(
            decoding.max_new_tokens, decoding.temperature, decoding.top_p, decoding.top_k
        )
        self.system = suite.prompts.get(SYSTEM_PROMPT)
        self.tools = {spec.name: FrozenTools(suite, spec) for spec in suite.slices}
        self.offers = {
            (spec.name, tool.name): {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": dict(tool.parameters),
                },
            }
            for spec in suite.slices
            for tool in spec.tools
        }

    @property
    def batch_size(self) -> int:
        """See :class:`Player`."""
        return self.engine.batch_size

    def play(self, jobs: Sequence[Job]) -> list[Played]:
        """See :class:`Player`. Never raises for what an engine does."""
        chats = [_Chat(self, job) for job in jobs]
        for turn in range(self.settings.max_turns):
            active = [chat for chat in chats if not chat.finished]
            if not active:
                break
            requests = [chat.request(turn) for chat in active]
            for chat, reply in zip(active, _ask(self.engine, requests, self.sampling), strict=True):
                chat.take(reply)
        return [chat.result() for chat in chats]


class _Chat:
    """One conversation."""

    def __init__(self, world: ChatPlayer, job: Job) -> None:
        case = job.case
        own = case.messages[0].get("role") == "system"
        first = () if own or world.system is None else ({"role": "system", "content": world.system},)
        self.world, self.job = world, job
        self.messages: list[Mapping[str, Any]] = [*first, *case.messages]
        self.offers = tuple(world.offers[case.slice, name] for name in case.tools)
        self.calls: list[ToolCall] = []
        self.misses: list[ToolMiss] = []
        self.replies: list[ChatReply] = []
        self.error: str | None = None
        self.finished = False

    def request(self, turn: int) -> ChatRequest:
        case, sample = self.job.case.id, self.job.sample
        return ChatRequest(
            case,
            sample,
            tuple(self.messages),
            self.offers,
            turn_seed(self.world.settings.seed, case, sample, turn),
        )

    def take(self, turn: Turn) -> None:
        if isinstance(turn, ChatFailure):
            self.error, self.finished = f"engine: {turn.reason}"[:_ERROR_CHARACTERS], True
            return
        self.replies.append(turn)
        self.finished = not turn.calls
        if turn.calls:
            self._answer(turn)

    def _answer(self, reply: ChatReply) -> None:
        first = len(self.calls)
        ids = [f"call_{first + number}" for number in range(len(reply.calls))]
        written = [
            {"id": name, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for name, call in zip(ids, reply.calls, strict=True)
        ]
        self.messages.append({"role": "assistant", "content": reply.text, "tool_calls": written})
        tools, offered = self.world.tools[self.job.case.slice], self.job.case.tools
        for name, call in zip(ids, reply.calls, strict=True):
            answer = tools.answer(_tool_call(call), offered)
            self.calls.append(answer.call)
            if answer.miss is not None:
                self.misses.append(answer.miss)
            self.messages.append({"role": "tool", "tool_call_id": name, "content": answer.shown})

    def result(self) -> Played:
        case, sample = self.job.case, self.job.sample
        if self.error is not None:
            return Played(case.id, case.slice, sample, None, self.error)
        seconds = [reply.seconds for reply in self.replies if reply.seconds is not None]
        last = self.replies[-1]
        answer = Answer(
            text=_clean(last.text),
            tool_calls=tuple(self.calls),
            turns=len(self.replies),
            prompt_tokens=_total(reply.prompt_tokens for reply in self.replies),
            completion_tokens=_total(reply.completion_tokens for reply in self.replies),
            finish="turns" if last.calls else last.finish,
        )
        total = sum(seconds) if len(seconds) == len(self.replies) else None
        return Played(case.id, case.slice, sample, answer, None, tuple(self.misses), total)


def turn_seed(seed: int, case: str, sample: int, turn: int) -> int:
    """The seed of one turn's draw: 62 bits of a hash, so that no two turns share one by accident."""
    text = f"{seed}\0{case}\0{sample}\0{turn}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 2


def _ask(engine: ChatEngine, requests: Sequence[ChatRequest], sampling: Sampling) -> list[Turn]:
    """One turn each. Where a batch raises, each request is asked alone, so that one costs no other its answer."""
    try:
        turns = engine.chat(requests, sampling)
    except Exception as error:  # a boundary: whatever an engine raises is recorded data
        if len(requests) == 1:
            return [ChatFailure(f"{type(error).__name__}: {error}")]
        return [turn for request in requests for turn in _ask(engine, [request], sampling)]
    if len(turns) != len(requests):
        return [ChatFailure(f"{len(turns)} answers to {len(requests)} requests") for _ in requests]
    return turns


def _tool_call(call: WrittenCall) -> ToolCall:
    return ToolCall(_clean(call.name), call.parsed(), _clean(call.arguments))


def _total(counts: Any) -> int | None:
    known = list(counts)
    return None if None in known else sum(known)


def _clean(text: str) -> str:
    """Text that can be written as UTF-8: half a surrogate pair, which a server may send, becomes a question mark."""
    return text.encode(errors="replace").decode()
