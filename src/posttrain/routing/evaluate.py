"""What a learned router is worth, on pairs that it has not seen.

Here: the router beside always-big, always-small and an oracle; its curve of quality by cost; its calibration. Not here:
choosing anything from it. Quality is the share of requests whose answer is no worse than the other model's, with its
exact interval (Clopper-Pearson); the difference from always-big is paired (Tango). The rows are scored by the very code
that serves.

*Covered*: prompts like those of the rows. *Not covered*: whether the judge who made the pairs was right.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import fsum
from typing import ClassVar, NamedTuple

from posttrain.core.documents import Digest, Document, Record
from posttrain.core.errors import DataError
from posttrain.routing.model import LearnedRouter, RouterModel
from posttrain.routing.rows import PairRow, digest_rows
from posttrain.statistics.intervals import clopper_pearson, tango_interval

_CURVE = 20
_BINS = 10


class PolicyLine(Record):
    """One way to route."""

    name: str
    """``router``, ``always big``, ``always small`` or ``oracle``."""
    quality: float
    low: float
    high: float
    mean_cost: float
    big_share: float


class Point(Record):
    """Of the curve: the share of requests, the surest first, that goes to the big one."""

    big_share: float
    mean_cost: float
    quality: float


class Bin(Record):
    """Rows of about the same probability."""

    rows: int
    probability: float
    """Mean."""
    observed: float
    """Share that the big one won."""


class SliceLine(Record):
    """The router on one slice."""

    slice: str
    rows: int
    quality: float
    low: float
    high: float
    big_share: float


class RouterReport(Document):
    """What was measured."""

    record_kind: ClassVar[str] = "router_report"

    model: Digest
    rows_digest: Digest
    rows: int
    unsure: int
    """Rows that went to the big one because the router did not know enough."""
    policies: tuple[PolicyLine, ...]
    against_big: tuple[float, float, float]
    """Quality of the router less always-big: value, low, high."""
    curve: tuple[Point, ...]
    area: float
    """Mean quality over all shares: the area below the curve."""
    area_random: float
    """Of a router that draws lots."""
    area_oracle: float
    auc: float | None
    """How often a row that the big one won is above one that it did not."""
    brier: float
    brier_constant: float
    """Of always saying the share that the big one won: what calibration must beat."""
    ece: float
    """Mean distance between said and observed, over ten bins of as many rows each."""
    bins: tuple[Bin, ...]
    slices: tuple[SliceLine, ...]

    @property
    def gain(self) -> float:
        """0 as good as lots, 1 as good as the oracle."""
        room = self.area_oracle - self.area_random
        return (self.area - self.area_random) / room if room > 0 else 0.0


class _Judged(NamedTuple):
    row: PairRow
    probability: float
    big: bool
    unsure: bool

    @property
    def good(self) -> bool:
        return self.row.big_is_good if self.big else self.row.small_is_good


def evaluate_router(model: RouterModel, rows: Sequence[PairRow]) -> RouterReport:
    """Judge ``model`` on ``rows``; give it held-out ones. An unsure row goes to the big one."""
    if not rows:
        raise DataError("no rows to judge the router on", hint="give more rows; a fifth of them is held out")
    learned = LearnedRouter(model)
    judged = []
    for row in rows:
        score = learned.score(row.prompt)
        judged.append(_Judged(row, score.probability, score.target != model.small, score.target is None))
    gained = sum(item.good and not item.row.big_is_good for item in judged)
    lost = sum(item.row.big_is_good and not item.good for item in judged)
    wins = [not item.row.small_is_good for item in judged]
    base = sum(wins) / len(wins)
    bins = _bins(judged)
    oracle = [
        _Judged(r.row, 0.0 if r.row.small_is_good else 1.0, not r.row.small_is_good, False) for r in judged
    ]
    curve, best = _curve(model, judged), _curve(model, sorted(oracle, key=_worth))
    return RouterReport(
        model=model.digest,
        rows_digest=digest_rows(rows),
        rows=len(rows),
        unsure=sum(item.unsure for item in judged),
        policies=(
            _line(model, "router", judged),
            _line(model, "always big", [item._replace(big=True) for item in judged]),
            _line(model, "always small", [item._replace(big=False) for item in judged]),
            _line(model, "oracle", oracle),
        ),
        against_big=tuple(tango_interval(gained, lost, len(judged))),
        curve=tuple(curve[round(n * (len(curve) - 1) / _CURVE)] for n in range(_CURVE + 1)),
        area=_area(curve),
        area_random=(curve[0].quality + curve[-1].quality) / 2,
        area_oracle=_area(best),
        auc=_auc([item.probability for item in judged], wins),
        brier=fsum((item.probability - win) ** 2 for item, win in zip(judged, wins, strict=True))
        / len(judged),
        brier_constant=base * (1 - base),
        ece=fsum(item.rows * abs(item.probability - item.observed) for item in bins) / len(judged),
        bins=tuple(bins),
        slices=tuple(_slice(name, judged) for name in sorted({item.row.slice for item in judged})),
    )


def _line(model: RouterModel, name: str, judged: Sequence[_Judged]) -> PolicyLine:
    good, count = sum(item.good for item in judged), len(judged)
    big = sum(item.big for item in judged)
    interval = clopper_pearson(good, count)
    return PolicyLine(
        name=name,
        quality=good / count,
        low=interval.low,
        high=interval.high,
        mean_cost=(big * model.big_cost + (count - big) * model.small_cost) / count,
        big_share=big / count,
    )


def _worth(item: _Judged) -> int:
    """For the oracle's curve: first to the big one what it wins, last what the small one wins."""
    return {"big": 0, "tie": 1, "small": 2}[item.row.outcome]


def _curve(model: RouterModel, judged: Sequence[_Judged]) -> list[Point]:
    ordered = sorted(judged, key=lambda item: -item.probability)
    good, count = sum(item.row.small_is_good for item in ordered), len(ordered)
    points = []
    for big in range(count + 1):
        if big:
            row = ordered[big - 1].row
            good += row.big_is_good - row.small_is_good
        cost = (big * model.big_cost + (count - big) * model.small_cost) / count
        points.append(Point(big_share=big / count, mean_cost=cost, quality=good / count))
    return points


def _area(curve: Sequence[Point]) -> float:
    return fsum((a.quality + b.quality) / 2 for a, b in pairwise(curve)) / (len(curve) - 1)


def _auc(probabilities: Sequence[float], wins: Sequence[bool]) -> float | None:
    above = sorted(zip(probabilities, wins, strict=True))
    positive, negative = sum(wins), len(wins) - sum(wins)
    if not positive or not negative:
        return None
    total, place, below = 0.0, 0, 0
    while place < len(above):
        end = place
        while end < len(above) and above[end][0] == above[place][0]:
            end += 1
        won = sum(win for _, win in above[place:end])
        lost = end - place - won
        total += won * (below + lost / 2)
        below += lost
        place = end
    return total / (positive * negative)


def _bins(judged: Sequence[_Judged]) -> list[Bin]:
    ordered = sorted(judged, key=lambda item: item.probability)
    cuts = [round(n * len(ordered) / _BINS) for n in range(_BINS + 1)]
    bins = []
    for start, end in pairwise(cuts):
        part = ordered[start:end]
        if part:
            said = fsum(item.probability for item in part) / len(part)
            observed = sum(not item.row.small_is_good for item in part) / len(part)
            bins.append(Bin(rows=len(part), probability=said, observed=observed))
    return bins


def _slice(name: str, judged: Sequence[_Judged]) -> SliceLine:
    part = [item for item in judged if item.row.slice == name]
    good = sum(item.good for item in part)
    interval = clopper_pearson(good, len(part))
    return SliceLine(
        slice=name,
        rows=len(part),
        quality=good / len(part),
        low=interval.low,
        high=interval.high,
        big_share=sum(item.big for item in part) / len(part),
    )
