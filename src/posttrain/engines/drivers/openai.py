"""A server that somebody else runs: any OpenAI URL as an engine.

Here: health by ``GET /v1/models``, and, where the config says how, adapters. Not here: starting or stopping it.
*Not covered*: any promise of repeatability; we do not know how it was started.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.engines.drivers.http_client import Answer, call
from posttrain.engines.drivers.records import Determinism, Health, OpenAIConfig, ServedModel
from posttrain.engines.drivers.server_driver import key_from, samples
from posttrain.engines.errors import EngineError

_LOAD_SECONDS = 120.0
_RUNNING = re.compile(r'(?:running|waiting)_lora_adapters="([^"]*)"')


class OpenAIDriver:
    """A server at a URL; see :class:`~posttrain.engines.drivers.protocol.EngineDriver`."""

    def __init__(self, config: OpenAIConfig) -> None:
        """Raises EngineError where the key's variable is not set."""
        self._config = config
        self._key = key_from(config.key_variable)
        self._url = config.url.rstrip("/")
        self._base = ""

    @property
    def base(self) -> str:
        """The first model that is no adapter; empty until it was asked."""
        return self._base

    @property
    def max_adapters(self) -> int:
        """How many adapters it holds at once."""
        return 0 if self._config.adapter_api == "none" else self._config.max_adapters

    def start(self) -> str:
        """Ask it once. Raises EngineError where it does not answer."""
        health = self.health()
        if not health.ok:
            raise EngineError(
                f"{self._url} is not usable: {health.detail}", hint="check `url` and `key_variable`"
            )
        return self._url

    def health(self) -> Health:
        """Whether it says what models it has."""
        try:
            self.models()
        except EngineError as error:
            return Health(ok=False, detail=str(error))
        return Health(ok=True)

    def models(self) -> list[ServedModel]:
        """What it answers to."""
        body = self._checked("GET", f"{self._url}/models").json()
        try:
            rows = [
                ServedModel(name=row["id"], adapter=row.get("parent") is not None) for row in body["data"]
            ]
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise EngineError(f"{self._url}/models is no list of models") from error
        self._base = next((row.name for row in rows if not row.adapter), "")
        return rows

    def load_adapter(self, name: str, folder: Path) -> str:
        """Load an adapter; the server must see ``folder`` under the same path."""
        body = {"lora_name": name, "lora_path": str(folder)}
        self._checked("POST", self._adapter_url("load_lora_adapter"), body)
        return name

    def unload_adapter(self, name: str) -> None:
        """Answer to ``name`` no more."""
        if any(model.name == name for model in self.models()):
            self._checked("POST", self._adapter_url("unload_lora_adapter"), {"lora_name": name})

    def busy(self, names: Sequence[str]) -> Mapping[str, int]:
        """Requests in flight, where the server says so as vLLM does; else 0."""
        try:
            return vllm_busy(self.metrics(), names)
        except EngineError:
            return dict.fromkeys(names, 0)

    def metrics(self) -> Mapping[str, float]:
        """Its ``/metrics``, beside the version's path; EngineError where it has none."""
        root = self._url.rsplit("/", 1)[0]
        return samples(self._checked("GET", f"{root}/metrics").body.decode(errors="replace"))

    def determinism(self) -> Determinism:
        """Nothing is promised."""
        return Determinism(
            same_request_same_text=False,
            batch_invariant=False,
            prefix_cache_exact=False,
            limits="the server was started by others",
        )

    def stop(self) -> None:
        """It is not ours to stop."""

    def _adapter_url(self, action: str) -> str:
        match self._config.adapter_api:
            case "vllm":
                return f"{self._url}/{action}"
            case "sglang":
                return f"{self._url.rsplit('/', 1)[0]}/{action}"
            case _:
                raise EngineError(
                    f"{self._url} loads no adapters", hint="set `adapter_api` to vllm or sglang where it can"
                )

    def _checked(self, method: str, url: str, body: Mapping[str, Any] | None = None) -> Answer:
        seconds = self._config.health_seconds if body is None else _LOAD_SECONDS
        try:
            answer = call(method, url, seconds=seconds, body=body, key=self._key)
        except OSError as error:
            raise EngineError(f"{url} does not answer: {error}") from error
        if answer.status != 200:
            raise EngineError(f"{url} refused: {answer.message()}")
        return answer


def vllm_busy(metrics: Mapping[str, float], names: Sequence[str]) -> dict[str, int]:
    """1 for each of ``names`` that vLLM says has requests, else 0; all 0 where it answers nobody."""
    at_work = sum(
        value
        for name, value in metrics.items()
        if name.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting{"))
    )
    if not at_work:
        return dict.fromkeys(names, 0)
    # One series for every set of adapters there ever was; its value is when it was last true.
    series = {name: at for name, at in metrics.items() if name.startswith("vllm:lora_requests_info")}
    latest = max(series, key=lambda name: series[name], default="")
    active = {one.strip() for found in _RUNNING.findall(latest) for one in found.split(",")}
    return {name: int(name in active) for name in names}
