"""Requests in a file of their own: for whoever wants to look at them elsewhere.

Here: JSON lines and Parquet, by the file's name. Not here: the history (``history``), datasets for training (they are
scrubbed first, and have a lineage). What is exported has content in it: who may read the file is up to its owner.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.core.atomic import make_folder, storage_errors, sync_file, sync_folder, unique_name
from posttrain.core.errors import MissingDependencyError, UsageError
from posttrain.traffic.codec import dumps
from posttrain.traffic.columns import REQUESTS
from posttrain.traffic.index import TrafficIndex
from posttrain.traffic.query import Where, feedback_of, requests, verdicts_of

_GROUP = 5000
_AS_TEXT = ("slices", "guardrails", "request", "response", "feedback", "verdicts")
"""Columns of any shape are JSON text in Parquet."""
_INTEGERS = ("at_ms", "epoch", "tries", "status", "prompt_tokens", "completion_tokens", "cached_tokens")
_NUMBERS = ("cost_usd", "queue_ms", "first_ms", "latency_ms", "gateway_ms")


def export_requests(index: TrafficIndex, where: Where, output: Path) -> int:
    """Write requests with their feedback and verdicts; how many. Whole or not at all."""
    write = {".jsonl": _write_lines, ".parquet": _write_parquet}.get(output.suffix)
    if write is None:
        raise UsageError(
            f"{output.name!r} names no format that is known", hint="end the name in .jsonl or .parquet"
        )
    make_folder(output.absolute().parent)
    temporary = output.parent / f".{unique_name()}.part"
    with storage_errors(output.parent):
        try:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            count = write(_rows(index, where), temporary)
            sync_file(temporary)
            temporary.replace(output)
        finally:
            temporary.unlink(missing_ok=True)
    sync_folder(output.absolute().parent)
    return count


def _rows(index: TrafficIndex, where: Where) -> Iterator[dict[str, Any]]:
    for row in requests(index, where):
        yield {
            **dataclasses.asdict(row),
            "feedback": [dataclasses.asdict(item) for item in feedback_of(index, row.id)],
            "verdicts": [dataclasses.asdict(item) for item in verdicts_of(index, row.id)],
        }


def _write_lines(rows: Iterator[dict[str, Any]], path: Path) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(dumps(row) + "\n")
            count += 1
    return count


def _write_parquet(rows: Iterator[dict[str, Any]], path: Path) -> int:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError(
            "writing Parquet needs pyarrow", hint="pip install pyarrow, or export to a .jsonl"
        ) from error
    types = (
        dict.fromkeys(_INTEGERS, pa.int64()) | dict.fromkeys(_NUMBERS, pa.float64()) | {"stream": pa.bool_()}
    )
    names = ["id", *REQUESTS.columns, "feedback", "verdicts"]
    schema = pa.schema([pa.field(name, types.get(name, pa.string())) for name in names])
    count = 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        group: list[dict[str, Any]] = []
        for row in rows:
            texts = {name: dumps(row[name]) for name in _AS_TEXT if row[name] is not None}
            group.append({**row, **texts})
            count += 1
            if len(group) == _GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                group = []
        writer.write_table(pa.Table.from_pylist(group, schema=schema))
    return count
