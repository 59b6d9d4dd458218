"""Requests as they came in an hour of somebody's production: when, how long the question, how long the answer.

Here: reading a trace, choosing a slice, playing it faster. Not here: sending (``_replay_ends``). The trace is
``AzureLLMInferenceTrace_conv.csv.gz`` of github.com/Azure/AzurePublicDataset (CC BY 4.0); it is no part of this
repository.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import random
from bisect import bisect_left
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

FILE = "AzureLLMInferenceTrace_conv.csv.gz"
MAX_PROMPT_TOKENS = 16_384
"""Longer prompts count as absurd and are cut; the trace's longest has 14,050."""
CHARACTERS_PER_TOKEN = 4


class Asked(NamedTuple):
    """One request of a trace."""

    at_seconds: float
    """From the first one."""
    prompt_tokens: int
    answer_tokens: int


def folder() -> Path:
    """Where traces are: ``POSTTRAIN_TRACES``, else beside the repository."""
    return Path(os.environ.get("POSTTRAIN_TRACES") or Path("..") / "shared" / "data" / "llm-traces")


def read_trace(path: Path) -> list[Asked] | None:
    """All of it, in order; None where the file is not there."""
    try:
        text = gzip.decompress(path.read_bytes()).decode()
    except FileNotFoundError:
        return None
    found = []
    for row in csv.DictReader(io.StringIO(text)):
        at = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
        prompt = min(int(row["ContextTokens"]), MAX_PROMPT_TOKENS)
        found.append(Asked(at, prompt, int(row["GeneratedTokens"])))
    return from_zero(sorted(found))


def made_up(count: int, seconds: float) -> list[Asked]:
    """A trace of the same kind, the same every time: bursts, mostly short questions, some long."""
    draw = random.Random(count)
    times = sorted(draw.betavariate(0.8, 0.8) * seconds for _ in range(count))
    return [
        Asked(at, min(int(draw.lognormvariate(6.3, 1.1)), 8000), 1 + int(draw.expovariate(1 / 150)))
        for at in times
    ]


def busiest(trace: Sequence[Asked], seconds: float) -> list[Asked]:
    """The stretch of so many seconds with the most requests."""
    times = [asked.at_seconds for asked in trace]
    ends = [bisect_left(times, at + seconds) for at in times]
    start = max(range(len(trace)), key=lambda index: ends[index] - index)
    return from_zero(trace[start : ends[start]])


def from_zero(trace: Sequence[Asked]) -> list[Asked]:
    """The same, with the first request at 0."""
    return [asked._replace(at_seconds=asked.at_seconds - trace[0].at_seconds) for asked in trace]
