"""Shadow answers beside the users' answers, judged and written to the traffic log.

Here: joining the two rows of a request, asking the judge, the verdict row. Not here: making the copies (``gateway``),
what verdicts mean for a rollout (``rollout``). It runs in a process of its own and only reads and appends to the log,
so nothing that a user waits for waits for it. A verdict's id is made from the pair and the judge: judged again after a
kill, it is the same verdict.

*Not covered*: pairs whose content was not logged, and answers of tools, are ``unknown``; so are halves of pairs that
were in memory when it was killed and that the log no longer has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from posttrain.core.buckets import BUCKETS, bucket
from posttrain.engines.judging import PairJudgement, PairRequest
from posttrain.engines.reward_scorer import RewardScorer
from posttrain.serving.shadow.config import EndpointJudge, RewardModelJudge, ShadowJudge

Row = Mapping[str, Any]
_WAITING = 20_000
"""Halves of pairs that are kept; the oldest goes first. A shadow comes right after its answer."""
_SALT = "shadow-judging"


class PairJudge(Protocol):
    """Whoever says which of two replies is better."""

    def compare(self, requests: Sequence[PairRequest]) -> list[PairJudgement]:
        """One judgement a pair, in order; ``first`` is production's."""
        ...


class Pair(NamedTuple):
    """A user's answer and the unseen one."""

    production: Row
    shadow: Row


class Pairing:
    """Joins rows in whatever order they come."""

    def __init__(self, *, sampling: float = 1.0) -> None:
        """``sampling`` is the share of pairs that is handed on, chosen by request."""
        self._below = round(sampling * BUCKETS)
        self._answers: dict[str, Row] = {}
        self._shadows: dict[str, Row] = {}
        self._done: dict[str, None] = {}

    def add(self, rows: Iterable[Row]) -> list[Pair]:
        """Take rows; the pairs that they complete."""
        found = []
        for row in rows:
            if row["kind"] == "verdict":
                self._remember(row["shadow"])
            elif row["kind"] == "end":
                _keep(self._answers, row["id"], row)
                if (shadow := self._shadows.pop(row["id"], None)) is not None:
                    found += self._pair(row, shadow)
            elif row["kind"] == "shadow" and bucket(_SALT, str(row["of"])) < self._below:
                answer = self._answers.get(str(row["of"]))
                if answer is None:
                    _keep(self._shadows, str(row["of"]), row)
                else:
                    found += self._pair(answer, row)
        return found

    def _pair(self, answer: Row, shadow: Row) -> list[Pair]:
        if shadow["id"] in self._done:
            return []
        self._remember(shadow["id"])
        return [Pair(answer, shadow)]

    def _remember(self, shadow: str) -> None:
        _keep(self._done, shadow, None)


def judge_pairs(judge: PairJudge, name: str, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """A verdict row for every pair. A judge that fails is a verdict, too: ``unknown``, with the reason."""
    readable = [(pair, request) for pair in pairs if (request := _request(pair)) is not None]
    found: dict[str, PairJudgement] = {}
    if readable:
        try:
            judged = judge.compare([request for _, request in readable])
        except Exception as error:  # a boundary: a batch that no judge can take must not come again for ever
            judged = [PairJudgement(None, False, str(error)) for _ in readable]
        found = {str(pair.shadow["id"]): word for (pair, _), word in zip(readable, judged, strict=True)}
    unread = PairJudgement(None, False, "an answer is missing, or its content was not logged")
    return [_verdict(pair, name, found.get(str(pair.shadow["id"]), unread)) for pair in pairs]


def open_judge(config: ShadowJudge, load: Callable[[str], RewardScorer]) -> PairJudge:
    """The judge of a config; ``load`` gives the reward model of a reference."""
    match config:
        case EndpointJudge():
            from posttrain.engines.judges import build_judge

            return build_judge(config.judge, _no_model)
        case RewardModelJudge():
            return _ByScore(load(config.model), config.tie)


class _ByScore:
    def __init__(self, scorer: RewardScorer, tie: float) -> None:
        self._scorer = scorer
        self._tie = tie

    def compare(self, requests: Sequence[PairRequest]) -> list[PairJudgement]:
        conversations = [list(request.messages) for request in requests]
        first = self._scorer.score(conversations, [request.first for request in requests])
        second = self._scorer.score(conversations, [request.second for request in requests])
        return [self._word(one, two) for one, two in zip(first, second, strict=True)]

    def _word(self, one: float, two: float) -> PairJudgement:
        reason = f"{one:.3f} and {two:.3f}"
        if abs(one - two) <= self._tie:
            return PairJudgement(0.5, True, reason)
        return PairJudgement(1.0 if one > two else 0.0, True, reason)


def _verdict(pair: Pair, name: str, word: PairJudgement) -> dict[str, Any]:
    outcome = "unknown" if word.first_wins is None else "tie"
    if word.first_wins == 1.0:
        outcome = "production"
    elif word.first_wins == 0.0:
        outcome = "shadow"
    return {
        "v": 1,
        "kind": "verdict",
        "id": f"{pair.shadow['id']}:{name}",
        "of": pair.production["id"],
        "shadow": pair.shadow["id"],
        "at_ms": time.time_ns() // 1_000_000,
        "judge": name,
        "outcome": outcome,
        "flipped": word.first_wins is not None and not word.consistent,
        "detail": {"reason": word.reason[:500]},
    }


def _request(pair: Pair) -> PairRequest | None:
    messages = _messages(pair.production.get("request"))
    first, second = (_text(row.get("response")) for row in (pair.production, pair.shadow))
    if not messages or first is None or second is None:
        return None
    return PairRequest(str(pair.shadow["id"]), messages, first, second)


def _messages(request: Any) -> tuple[Mapping[str, str], ...]:
    """The conversation of a request's body; of a plain prompt, one turn of the user."""
    if not isinstance(request, Mapping):
        return ()
    if isinstance(request.get("prompt"), str):
        return ({"role": "user", "content": request["prompt"]},)
    turns = request.get("messages")
    if not isinstance(turns, list):
        return ()
    kept = [turn for turn in turns if isinstance(turn, Mapping) and isinstance(turn.get("content"), str)]
    return tuple({"role": str(turn.get("role", "user")), "content": turn["content"]} for turn in kept)


def _text(response: Any) -> str | None:
    if isinstance(response, Mapping):
        response = response.get("content", response.get("text"))
    return response if isinstance(response, str) else None


def _keep(kept: dict[str, Any], name: str, value: Any) -> None:
    kept[name] = value
    if len(kept) > _WAITING:
        del kept[next(iter(kept))]


def _no_model() -> Any:
    raise AssertionError("an endpoint needs no model of the store")
