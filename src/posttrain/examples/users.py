"""Simulated users of a gateway, over real HTTP.

Here: people who ask, read the answer, and say or show what they think of it. Not here: any part of the gateway; they
know its URL and nothing else. Each user asks under one name, so that the gateway answers him by the same model. Who
asks what, and who is patient, comes from the seed; what they get is the models' doing.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.data.prompts import PromptRow, read_prompts
from posttrain.rewards.config import AccuracyConfig, LanguageConsistencyConfig
from posttrain.rewards.records import Sample, Verifier
from posttrain.rewards.registry import build_verifier

_READABLE = 0.9
"""Language consistency from which a user does not notice a foreign word."""


class Manners(NamedTuple):
    """How users take an answer, as probabilities."""

    leaves_when_wrong: float = 0.8
    leaves_when_unreadable: float = 0.15
    """Right, but in two languages."""
    leaves_anyway: float = 0.005
    thanks_when_right: float = 0.1


@dataclass(slots=True)
class Visits:
    """What the users lived through."""

    asked: int = 0
    answered: int = 0
    failed: int = 0
    """No answer, whatever the reason."""
    right: int = 0
    unreadable: int = 0
    left: int = 0
    by_status: dict[int, int] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)


class Crowd:
    """Users of one model name."""

    def __init__(
        self, url: str, model: str, questions: Sequence[PromptRow], *, users: int = 1000, seed: int = 0
    ) -> None:
        """``url`` up to and including ``/v1``."""
        self._url = url
        self._model = model
        self._questions = questions
        self._users = users
        self._seed = seed
        self._manners = Manners()
        self._count = 0
        self._accuracy: Verifier = build_verifier(AccuracyConfig(mode="numeric"))
        self._language: Verifier = build_verifier(LanguageConsistencyConfig())
        self.visits = Visits()

    async def visit(self, stop: asyncio.Event, *, at_once: int = 8) -> None:
        """Keep ``at_once`` users asking, one after another, until ``stop`` is set."""
        import httpx2

        limits = httpx2.Limits(max_connections=at_once, max_keepalive_connections=at_once)
        async with httpx2.AsyncClient(limits=limits, timeout=60.0, trust_env=False) as client:
            await asyncio.gather(*(self._keep_asking(client, stop) for _ in range(at_once)))

    async def _keep_asking(self, client: Any, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self._count += 1
            await self._ask(client, self._count)

    async def _ask(self, client: Any, number: int) -> None:
        import httpx2

        user = f"user-{self._draw(number, 'user', self._users)}"
        row = self._questions[self._draw(number, "question", len(self._questions))]
        body = {"model": self._model, "messages": row.messages(), "max_tokens": 64, "user": user}
        visits, begun = self.visits, time.monotonic()
        visits.asked += 1
        try:
            response = await client.post(f"{self._url}/chat/completions", json=body)
        except httpx2.HTTPError:
            visits.failed += 1
            return
        visits.latencies_ms.append((time.monotonic() - begun) * 1000)
        visits.by_status[response.status_code] = visits.by_status.get(response.status_code, 0) + 1
        if response.status_code != 200:
            visits.failed += 1
            return
        visits.answered += 1
        text = response.json()["choices"][0]["message"]["content"] or ""
        said = self._say(number, row, text)
        if said is not None:
            name = response.headers["x-request-id"]
            await client.post(f"{self._url}/feedback", json={"request_id": name, **said})

    def _say(self, number: int, row: PromptRow, text: str) -> dict[str, Any] | None:
        """The feedback of one reader; most say nothing."""
        sample = Sample(text, row.answer, row.question, language=row.language)
        right = (self._accuracy.score(sample).value or 0.0) >= 1.0
        readable = (self._language.score(sample).value or 0.0) >= _READABLE
        self.visits.right += right
        self.visits.unreadable += not readable
        chance = self._manners.leaves_anyway
        if not right:
            chance = self._manners.leaves_when_wrong
        elif not readable:
            chance = self._manners.leaves_when_unreadable
        if self._draw(number, "leaves", 1_000_000) < chance * 1_000_000:
            self.visits.left += 1
            return {"type": "abandon"}
        if right and self._draw(number, "thanks", 1_000_000) < self._manners.thanks_when_right * 1_000_000:
            return {"type": "thumbs", "value": 1}
        return None

    def _draw(self, number: int, what: str, below: int) -> int:
        digest = hashlib.sha256(f"{self._seed}/{number}/{what}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % below


def main() -> None:
    """``python -m posttrain.examples.users``: visit until a signal, then print what was lived through, as JSON."""
    parser = argparse.ArgumentParser(description="simulated users of a gateway")
    parser.add_argument("url", help="up to and including /v1")
    parser.add_argument("model", help="public model name")
    parser.add_argument("prompts", type=Path, help="prompts with answers, JSON lines")
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    crowd = Crowd(told.url, told.model, read_prompts(told.prompts), users=told.users, seed=told.seed)

    async def visit() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await crowd.visit(stop, at_once=told.at_once)

    asyncio.run(visit())
    sys.stdout.write(json.dumps(asdict(crowd.visits)))


if __name__ == "__main__":
    main()
