"""Completions from any OpenAI-compatible server (vLLM, SGLang, llama.cpp, a hosted model).

Here: one request at a time with retries, many at once with threads, and a record for each request that could not be
answered. Not here: tool calls (``chat_engines``), serving. *Covered*: refused connections, timeouts, 408, 409, 429 and
5xx answers are tried again, with growing pauses or as ``Retry-After`` says; other answers are final. *Not covered*:
streaming.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from posttrain.core.errors import ConfigError, StageError
from posttrain.engines.records import Completion, Conversation, Sampling

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_REFUSED = {
    401: "`api_key_env` names no valid key",
    403: "the key may not use it",
    404: "check `base_url` and `model`",
}


class EndpointConfig(BaseModel):
    """A server and how patiently it is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str = Field(pattern=r"^https?://")
    """Up to and including ``/v1``."""
    model: str
    """The model's name on the server."""
    api_key_env: str | None = None
    """Environment variable that holds the key; the key itself never enters a recipe."""
    timeout_seconds: float = Field(60.0, gt=0)
    """For one answer."""
    max_attempts: int = Field(5, ge=1)
    backoff_seconds: float = Field(0.5, ge=0)
    """Pause before the second attempt; it doubles with each further one, up to 30 s."""
    concurrency: int = Field(8, ge=1, le=256)
    """Requests at once."""


@dataclass(frozen=True, slots=True)
class EndpointFailure:
    """A request that got no answer."""

    reason: str
    final: bool
    """Whether asking again would be pointless."""


class EndpointServer:
    """The server itself: asks once or as often as it takes."""

    def __init__(self, config: EndpointConfig) -> None:
        key = os.environ.get(config.api_key_env, "") if config.api_key_env else ""
        if config.api_key_env and not key:
            raise ConfigError(
                f"the environment variable {config.api_key_env} is not set",
                hint="set it to the server's key, or remove `endpoint.api_key_env`",
            )
        self.config = config
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def client(self) -> httpx2.Client:
        """A new client, which may be used by several threads."""
        import httpx2

        return httpx2.Client(timeout=self.config.timeout_seconds, headers=self._headers)

    def ask(
        self, client: httpx2.Client, body: Mapping[str, Any], parse: Callable[[Any], T]
    ) -> T | EndpointFailure:
        """What ``parse`` makes of one answer to ``body``, after as many attempts as it takes.

        An answer that makes it raise ValueError, KeyError, IndexError or TypeError is none.
        """
        failure = EndpointFailure("never asked", final=False)
        for attempt in range(self.config.max_attempts):
            answer, pause = self._try(client, body, parse)
            if not isinstance(answer, EndpointFailure) or answer.final:
                return answer
            failure = answer
            if attempt + 1 < self.config.max_attempts:
                grown = self.config.backoff_seconds * 2**attempt
                time.sleep(min(30.0, grown if pause is None else pause))
        return failure

    def _try(
        self, client: httpx2.Client, body: Mapping[str, Any], parse: Callable[[Any], T]
    ) -> tuple[T | EndpointFailure, float | None]:
        """One attempt, and the pause that the server asks for."""
        import httpx2

        try:
            response = client.post(f"{self.config.base_url.rstrip('/')}/chat/completions", json=body)
        except httpx2.HTTPError as error:
            return EndpointFailure(type(error).__name__, final=False), None
        if response.status_code != 200:
            final = response.status_code not in _AGAIN
            hint = _REFUSED.get(response.status_code, "")
            text = f"HTTP {response.status_code}" + (f": {hint}" if hint else "")
            wait = response.headers.get("retry-after", "")
            return EndpointFailure(text, final), float(wait) if wait.replace(".", "", 1).isdigit() else None
        try:
            return parse(response.json()), None
        except (ValueError, KeyError, IndexError, TypeError):
            return EndpointFailure("the answer is not a chat completion", final=False), None


class EndpointEngine:
    """An :class:`~posttrain.engines.records.Engine` on a server."""

    def __init__(self, config: EndpointConfig) -> None:
        self._server = EndpointServer(config)
        self._config = config

    def generate(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]:
        """See :class:`~posttrain.engines.records.Engine`. Raises StageError where one request got no answer."""
        results: list[list[Completion]] = []
        for answer in self.complete_each(conversations, sampling, on_progress):
            if isinstance(answer, EndpointFailure):
                raise StageError(
                    f"{self._config.base_url} gave no answer: {answer.reason}",
                    hint="check the server and `endpoint`; finished work is kept",
                )
            results.append(answer)
        return results

    def complete_each(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion] | EndpointFailure]:
        """As :meth:`generate`, with a failure in place of each conversation that got no answer."""
        if sampling.prefix:
            raise ConfigError(
                "a server cannot begin a reply with a given text", hint="use a model of the store"
            )
        answers: list[list[Completion] | EndpointFailure] = []
        with (
            self._server.client() as client,
            ThreadPoolExecutor(self._config.concurrency) as threads,
        ):
            for answer in threads.map(lambda chat: self._complete(client, chat, sampling), conversations):
                answers.append(answer)
                if on_progress is not None:
                    on_progress(len(answers), len(conversations))
        return answers

    def _complete(
        self, client: httpx2.Client, conversation: Conversation, sampling: Sampling
    ) -> list[Completion] | EndpointFailure:
        completions: list[Completion] = []
        for number in range(sampling.samples):  # `n` is not implemented by every server
            body = {
                "model": self._config.model,
                "messages": [dict(message) for message in conversation],
                "max_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "seed": sampling.seed + number,
            }
            answer = self._server.ask(client, body, _completion)
            if isinstance(answer, EndpointFailure):
                return answer
            completions.append(answer)
        return completions


def _completion(answer: Any) -> Completion:
    choice = answer["choices"][0]
    text = choice["message"]["content"]
    tokens = int((answer.get("usage") or {}).get("completion_tokens") or 0)
    return Completion(
        str(text or ""), tokens, "length" if choice.get("finish_reason") == "length" else "stop"
    )
