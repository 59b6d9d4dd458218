"""The contract of every engine driver.

Here: one protocol. Not here: any engine. Methods block and may be called from any thread; one call changes the engine
at a time. To add a driver: a class with these methods, and a line in ``registry``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from posttrain.engines.drivers.records import Determinism, Health, ServedModel


class EngineDriver(Protocol):
    """An engine from its start to its stop. What fails raises EngineError, in one line with a hint."""

    @property
    def base(self) -> str:
        """The name of the base model on the engine; empty before a server of others was asked."""
        ...

    @property
    def max_adapters(self) -> int:
        """How many adapters it holds at once."""
        ...

    def start(self) -> str:
        """Start it and wait until it answers; the OpenAI base URL, ``http://127.0.0.1:PORT/v1``."""
        ...

    def health(self) -> Health:
        """Whether it answers now; never raises."""
        ...

    def models(self) -> list[ServedModel]:
        """What it answers to now."""
        ...

    def load_adapter(self, name: str, folder: Path) -> str:
        """Load a PEFT folder under ``name``; the name to send as ``model``.

        Only ``adapters.AdapterManager`` calls this, with names and folders that carry the digest.
        """
        ...

    def unload_adapter(self, name: str) -> None:
        """Answer to ``name`` no more; requests that it has begun are finished. One that is not there is fine."""
        ...

    def busy(self, names: Sequence[str]) -> Mapping[str, int]:
        """Requests in flight for each of ``names``, as far as the engine can say (0 where it cannot)."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """The engine's own numbers: Prometheus samples by name with labels."""
        ...

    def determinism(self) -> Determinism:
        """Which promises hold, and which flags were set."""
        ...

    def stop(self) -> None:
        """End it; twice is fine."""
        ...
