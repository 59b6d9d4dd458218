"""Training the learned router on judged pairs.

Here: tf-idf, logistic regression, calibration, threshold. Not here: judging the result (``evaluate``). Weights are
fitted on one part of the rows, the strength of the penalty, the calibration and the threshold on another, and the test
part is never looked at. Everything is deterministic: full-batch L-BFGS from zero, no random numbers.

Our own few lines and not scikit-learn: the same loss gives the same weights (``design/076``), and a gateway needs one
package less.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import log
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import optimize, sparse, special

from posttrain.core.documents import Record
from posttrain.core.errors import ConfigError, DataError
from posttrain.routing.model import Features, RouterModel, features, pack
from posttrain.routing.rows import PairRow, digest_rows, part_of
from posttrain.statistics.exact import as_fraction, lower_bound_reaches

Floats: TypeAlias = NDArray[np.float64]

PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)
"""Inverse strengths of the penalty that are tried (scikit-learn's ``C``)."""
MIN_ROWS = 50
"""In each of the two parts that training uses."""


class QualityFloor(Record):
    """The cheapest threshold whose quality is at least the floor, with its lower confidence bound."""

    kind: Literal["quality_floor"] = "quality_floor"
    floor: float = Field(gt=0, le=1)
    """Share of requests that get an answer no worse than the other model's."""
    confidence: float = Field(0.9, gt=0, lt=1)
    """Of the two-sided interval whose lower end is looked at. The best of many thresholds is a little lucky, so the
    report on held-out rows says what it really is."""


class CostWeight(Record):
    """The threshold with the most quality less ``weight`` times cost."""

    kind: Literal["cost_weight"] = "cost_weight"
    weight: float = Field(ge=0)
    """What a unit of cost is worth in quality."""


class TrainConfig(Record):
    """How a router is trained."""

    small: str = Field(min_length=1)
    big: str = Field(min_length=1)
    small_cost: float = Field(1.0, ge=0)
    big_cost: float = Field(10.0, ge=0)
    policy: QualityFloor | CostWeight = Field(QualityFloor(floor=0.9), discriminator="kind")
    buckets: int = Field(1 << 15, ge=16, le=1 << 20)
    min_known_share: float = Field(0.5, ge=0, le=1)


class Fitted(NamedTuple):
    """Weights of a logistic regression."""

    weights: Floats
    bias: float


def train_router(config: TrainConfig, rows: Sequence[PairRow]) -> RouterModel:
    """Train on the ``train`` and ``choose`` parts of ``rows``. Raises DataError where there are too few."""
    fit_rows, choose_rows = part_of(rows, "train"), part_of(rows, "choose")
    for part, found in (("train", fit_rows), ("choose", choose_rows)):
        outcomes = {row.small_is_good for row in found}
        if len(found) < MIN_ROWS or len(outcomes) < 2:
            raise DataError(
                f"{len(found)} rows to {part} with, and {len(outcomes)} kinds of outcome: too few",
                hint=f"at least {MIN_ROWS} in each part, some of them won by `big` and some not",
            )
    seen = [features(row.prompt, config.buckets) for row in fit_rows]
    idf = _idf(seen, config.buckets)
    matrix, labels = _matrix(seen, idf), _labels(fit_rows)
    held = _matrix([features(row.prompt, config.buckets) for row in choose_rows], idf)
    held_labels = _labels(choose_rows)
    fits = [fit_logistic(matrix, labels, penalty) for penalty in PENALTIES]
    calibrations = [_calibrate(held @ fit.weights + fit.bias, held_labels) for fit in fits]
    best = min(range(len(fits)), key=lambda n: calibrations[n].loss)
    fit, calibration = fits[best], calibrations[best]
    margins = held @ fit.weights + fit.bias
    probabilities = special.expit(calibration.slope * margins + calibration.intercept)
    threshold = _threshold(config, probabilities, choose_rows)
    return RouterModel(
        buckets=config.buckets,
        weights=pack(fit.weights.tolist(), "f"),
        idf=pack(idf.tolist(), "f"),
        words=pack(sorted(frozenset().union(*(item.words for item in seen))), "I"),
        bias=fit.bias,
        slope=calibration.slope,
        intercept=calibration.intercept,
        threshold=threshold,
        small=config.small,
        big=config.big,
        small_cost=config.small_cost,
        big_cost=config.big_cost,
        min_known_share=config.min_known_share,
        rows=digest_rows(rows),
        policy=" ".join(f"{key}={value}" for key, value in config.policy),
    )


def fit_logistic(matrix: sparse.csr_matrix, labels: Floats, penalty: float) -> Fitted:
    """Minimise ``penalty * sum(log-loss) + |weights|² / 2``; the bias is free."""
    signs = 2.0 * labels - 1.0
    # A bucket that no row has keeps the weight 0, so only the others are searched over.
    used = np.unique(matrix.indices)
    small = matrix[:, used].tocsr()
    turned = small.T.tocsr()

    def loss(values: Floats) -> tuple[float, Floats]:
        weights, bias = values[:-1], values[-1]
        margins = signs * (small @ weights + bias)
        pull = -signs * special.expit(-margins) * penalty
        gradient = np.append(turned @ pull + weights, pull.sum())
        return penalty * float(np.logaddexp(0.0, -margins).sum()) + float(weights @ weights) / 2, gradient

    found = optimize.minimize(
        loss, np.zeros(len(used) + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500}
    )
    weights = np.zeros(matrix.shape[1])
    weights[used] = found.x[:-1]
    return Fitted(weights, float(found.x[-1]))


def _idf(seen: Sequence[Features], buckets: int) -> Floats:
    documents = np.zeros(buckets)
    for item in seen:
        documents[list(item.counts)] += 1
    return np.log((1.0 + len(seen)) / (1.0 + documents)) + 1.0


def _matrix(seen: Sequence[Features], idf: Floats) -> sparse.csr_matrix:
    columns: list[int] = []
    values: list[float] = []
    ends = [0]
    for item in seen:
        row = np.array([(1.0 + log(count)) * idf[bucket] for bucket, count in item.counts.items()])
        values += (row / np.sqrt(row @ row)).tolist()
        columns += item.counts
        ends.append(len(columns))
    return sparse.csr_matrix((values, columns, ends), shape=(len(seen), len(idf)))


def _labels(rows: Sequence[PairRow]) -> Floats:
    return np.array([0.0 if row.small_is_good else 1.0 for row in rows])


class _Calibration(NamedTuple):
    slope: float
    intercept: float
    loss: float


def _calibrate(margins: Floats, labels: Floats) -> _Calibration:
    """Platt (1999), with his smoothed targets, so that a perfect split does not give an endless slope."""
    positive, count = labels.sum(), len(labels)
    targets = np.where(labels > 0, (positive + 1) / (positive + 2), 1 / (count - positive + 2))

    def loss(values: Any) -> tuple[float, Floats]:
        logits = values[0] * margins + values[1]
        wrong = special.expit(logits) - targets
        value = float((np.logaddexp(0.0, logits) - targets * logits).sum())
        return value, np.array([wrong @ margins, wrong.sum()])

    # A slope below zero would turn the router round on the word of a few rows.
    found = optimize.minimize(
        loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)]
    )
    return _Calibration(float(found.x[0]), float(found.x[1]), float(found.fun))


def _threshold(config: TrainConfig, probabilities: Floats, rows: Sequence[PairRow]) -> float:
    """The threshold that the policy wants; the highest sends everything to the small one."""
    order = np.argsort(probabilities, kind="stable")
    small = np.array([rows[n].small_is_good for n in order])
    big = np.array([rows[n].big_is_good for n in order])
    # Below the n-th threshold the first n rows go to the small one, the rest to the big one.
    good = np.append(0, small.cumsum()) + np.append(big[::-1].cumsum()[::-1], 0)
    sorted_p = probabilities[order]
    cuts = [0.0, *((sorted_p[:-1] + sorted_p[1:]) / 2).tolist(), 1.0]
    allowed = [n for n in range(len(cuts)) if n in (0, len(rows)) or sorted_p[n - 1] < sorted_p[n]]
    if isinstance(config.policy, CostWeight):
        costs = [config.small_cost * n + config.big_cost * (len(rows) - n) for n in range(len(cuts))]
        weight = config.policy.weight
        return float(cuts[max(allowed, key=lambda n: (good[n] - weight * costs[n], -costs[n]))])
    floor, confidence = as_fraction(config.policy.floor), as_fraction(config.policy.confidence)
    reached = [n for n in allowed if _reaches(int(good[n]), len(rows), floor, confidence)]
    if not reached:
        best = int(good[allowed].max())
        raise ConfigError(
            f"no threshold keeps {config.policy.floor:g} of the quality: the best has {best} of {len(rows)} rows",
            hint="lower the floor, or judge more pairs",
        )
    cheaper = config.small_cost <= config.big_cost
    return float(cuts[max(reached) if cheaper else min(reached)])


def _reaches(good: int, rows: int, floor: Fraction, confidence: Fraction) -> bool:
    return lower_bound_reaches(good, rows, floor, confidence=confidence)
