"""``python -m posttrain.traffic``: the indexer of a traffic folder, as a process of its own.

It ends cleanly on SIGTERM. Between batches it moves old segments to the history and removes what is past its time.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from posttrain.core.errors import PosttrainError
from posttrain.traffic.history import archive
from posttrain.traffic.index import TrafficIndex
from posttrain.traffic.indexer import run_indexer
from posttrain.traffic.retention import retain

_HOUSEKEEPING_SECONDS = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; 0, or 1 with what went wrong on stderr."""
    parser = argparse.ArgumentParser(prog="python -m posttrain.traffic", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the segments are")
    parser.add_argument(
        "--index",
        metavar="URL",
        default=os.environ.get("POSTTRAIN_TRAFFIC_INDEX"),
        help="sqlite:///PATH or postgresql://…; default: POSTTRAIN_TRAFFIC_INDEX, else in the folder",
    )
    parser.add_argument(
        "--poll-seconds", type=float, default=0.2, help="how often to look (default: %(default)s)"
    )
    parser.add_argument(
        "--history-after", type=float, metavar="SECONDS", help="move older segments to Parquet"
    )
    parser.add_argument(
        "--retention-days", type=float, metavar="DAYS", help="remove what is older, everywhere"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        run_indexer(
            options.folder,
            options.index,
            poll_seconds=options.poll_seconds,
            housekeeping=_housekeeping(options),
        )
    except PosttrainError as error:
        print(f"error: {error}", *(f"  {error.hint}",) * bool(error.hint), sep="\n", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


def _housekeeping(options: argparse.Namespace) -> Callable[[TrafficIndex], None]:
    next_at = 0.0

    def work(index: TrafficIndex) -> None:
        nonlocal next_at
        if time.monotonic() < next_at or (options.history_after is None and options.retention_days is None):
            return
        next_at = time.monotonic() + _HOUSEKEEPING_SECONDS
        if options.history_after is not None:
            archive(options.folder, index, older_than_seconds=options.history_after)
        if options.retention_days is not None:
            retain(options.folder, index, days=options.retention_days)

    return work


if __name__ == "__main__":
    sys.exit(main())
