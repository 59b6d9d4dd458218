"""``python -m posttrain.serving.shadow``: judge the pairs of a traffic log until SIGTERM.

Here: the process. Not here: judging (``judge``). Its place in the log is kept beside it, so that after a kill it goes
on; what it judged twice has the same id and counts once.
"""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path

from pydantic import TypeAdapter

from posttrain.artifacts.home import open_home, resolve
from posttrain.core.atomic import write_atomic
from posttrain.core.errors import DataError
from posttrain.core.settings import Settings
from posttrain.engines.reward_scorer import RewardScorer
from posttrain.serving.shadow.config import ShadowJudge
from posttrain.serving.shadow.judge import Pairing, judge_pairs, open_judge
from posttrain.traffic.codec import dumps
from posttrain.traffic.config import TrafficConfig
from posttrain.traffic.follow import Follower
from posttrain.traffic.segments import SegmentWriter

_LOOK_SECONDS = 0.2
_BATCH = 64


def main() -> None:
    """Judge until a signal."""
    parser = argparse.ArgumentParser(prog="python -m posttrain.serving.shadow", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the traffic log")
    parser.add_argument("--judge", required=True, help="the judge's configuration, JSON")
    parser.add_argument("--home", type=Path, help="where a reward model is")
    parser.add_argument("--sampling", type=float, default=1.0, help="share of pairs that is judged")
    told = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    adapter: TypeAdapter[ShadowJudge] = TypeAdapter(ShadowJudge)
    config = adapter.validate_json(told.judge)
    judge = open_judge(config, lambda reference: _load(told.home, reference))
    place = told.folder / "judge.cursor"
    follower, pairing = _follower(told.folder, place), Pairing(sampling=told.sampling)
    writer = SegmentWriter(told.folder, owner="judge", config=TrafficConfig())
    try:
        while not stop.wait(_LOOK_SECONDS):
            pairs = pairing.add(follower.poll())
            for first in range(0, len(pairs), _BATCH):
                for verdict in judge_pairs(judge, config.name, pairs[first : first + _BATCH]):
                    writer.append(dumps(verdict).encode())
            if pairs:
                write_atomic(place, follower.cursor.encode())
    finally:
        writer.close()


def _follower(folder: Path, place: Path) -> Follower:
    """From where the last judge was; from what comes now where there was none: old shadows are over."""
    try:
        return Follower(folder, place.read_text())
    except (OSError, DataError):  # none yet, or one that cannot be read
        return Follower.from_now(folder)


def _load(home: Path | None, reference: str) -> RewardScorer:
    opened = open_home(Settings.from_environment(home))
    return RewardScorer.load(opened.store.view(resolve(opened, reference)))


if __name__ == "__main__":
    main()
