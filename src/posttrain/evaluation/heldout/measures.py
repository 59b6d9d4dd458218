"""From scored completions to measures: rates with their intervals, pass@k, slices, paired differences.

Here: which measure is taken over which rows, with which interval. Not here: the formulas (``statistics``),
the language detector (``languages``), the scoring of a completion (``rewards``), the look of a report
(``report``). To add a rate: one entry in ``MEASURES`` and, for one value a row, one in ``_cases``.

Rows may come in any order; the same rows give the same report, to the byte.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from posttrain.core.errors import DataError
from posttrain.evaluation.heldout._cases import (
    COUNTS,
    MODES,
    RATES,
    Cases,
    CountPick,
    RatePick,
    check_same_cases,
    group,
    mean,
    outcome,
    scored,
)
from posttrain.evaluation.heldout.records import (
    CaseRow,
    Comparison,
    EvaluationReport,
    Measure,
    Mode,
    PairedDifference,
    Scalar,
    Slice,
)
from posttrain.statistics import intervals as statistics

MAX_SLICES_PER_TAG = 24
"""A tag with more values than this tells cases apart rather than kinds of them: it makes no slices."""


class MeasureInfo(NamedTuple):
    """What a reader must know about a measure."""

    title: str
    unit: Literal["share", "tokens"]
    better: Literal["higher", "lower", "neither"]
    meaning: str
    """One sentence."""


MEASURES: Mapping[str, MeasureInfo] = {
    "success@1": MeasureInfo(
        "Success@1",
        "share",
        "higher",
        "Completions whose answer is right and stands where the recipe asks for it.",
    ),
    "accuracy_any_format": MeasureInfo(
        "Right number, any format",
        "share",
        "higher",
        "Completions in which the right answer stands anywhere: a gain here is not a gain of format.",
    ),
    "pass@k": MeasureInfo(
        "Pass@k",
        "share",
        "higher",
        "Cases that at least one of k samples solves (unbiased estimate, Chen et al. 2021).",
    ),
    "format_rate": MeasureInfo(
        "Format kept", "share", "higher", "Completions that keep the recipe's format."
    ),
    "language_mixing": MeasureInfo(
        "Languages mixed",
        "share",
        "lower",
        "Completions whose reasoning mixes in another script than the question's.",
    ),
    "reasoning_tokens": MeasureInfo(
        "Reasoning tokens", "tokens", "neither", "Mean tokens of reasoning a completion."
    ),
    "completion_tokens": MeasureInfo("Completion tokens", "tokens", "neither", "Mean tokens a completion."),
    "truncated_rate": MeasureInfo("Cut off", "share", "lower", "Completions that ran into the token limit."),
    "none_rate": MeasureInfo(
        "Not scorable",
        "share",
        "lower",
        "Completions that could not be scored: they count neither as right nor as wrong.",
    ),
}
"""Every measure by its name without the mode; ``pass@k`` stands for ``pass@2``, ``pass@4``…"""


def measure_info(name: str) -> MeasureInfo:
    """What ``sampled.success@1``, ``success@1``, ``greedy.pass@4``… is. Raises KeyError for another name."""
    bare = name.split(".", 1)[-1]
    if bare.startswith("pass@"):
        return MEASURES["pass@k"]._replace(title=f"Pass@{bare.removeprefix('pass@')}")
    return MEASURES[bare]


def measure_rows(
    rows: Iterable[CaseRow],
    *,
    model: str,
    suite: str,
    sampling: Mapping[str, Scalar] | None = None,
    confidence: float = 0.95,
) -> EvaluationReport:
    """Everything there is to measure in ``rows``: completions of one ``model`` on one ``suite`` (digests).

    Rates with one sample a case have Clopper-Pearson intervals, others Korn-Graubard intervals over cases.
    Raises DataError for no rows, for one sample given twice, and for two problems under one case id.
    """
    modes = group(rows)
    return EvaluationReport(
        model=model,
        suite=suite,
        sampling=dict(sampling or {}),
        confidence=confidence,
        cases=len({case_id for cases in modes.values() for case_id in cases}),
        samples={mode: sum(len(samples) for samples in cases.values()) for mode, cases in modes.items()},
        measures=tuple(m for mode, cases in modes.items() for m in _measures(mode, cases, confidence)),
        error_counts={mode: _outcomes(cases) for mode, cases in modes.items()},
        slices=tuple(_slices(modes, confidence)),
    )


def compare(
    before: Iterable[CaseRow],
    after: Iterable[CaseRow],
    *,
    before_label: str = "before",
    after_label: str = "after",
    confidence: float = 0.95,
) -> Comparison:
    """Paired differences ``after - before`` of every measure, in each mode that both sides have.

    One sample a case on both sides: Tango's score interval and the exact McNemar test. More: the
    square-and-add interval over case means. Tokens: t over per-case differences. A case that one side could
    not score is dropped from that measure and counted. Raises DataError when the two sides do not cover the
    same cases.
    """
    first, second = group(before), group(after)
    differences: list[PairedDifference] = []
    for mode in (mode for mode in MODES if mode in first and mode in second):
        check_same_cases(mode, first[mode], second[mode])
        pair = _Pair(mode, first[mode], second[mode], confidence)
        for name in MEASURES:
            if name in RATES:
                differences.append(pair.rate(name, RATES[name]))
            elif name in COUNTS:
                differences.append(pair.tokens(name, COUNTS[name]))
            else:
                differences += [pair.pass_at(k) for k in pair.shared_ks()]
    if not differences:
        raise DataError(
            "the two evaluations have no mode in common", hint="evaluate both greedily, or both sampled"
        )
    return Comparison(
        before_label=before_label,
        after_label=after_label,
        confidence=confidence,
        differences=tuple(differences),
    )


# --- one measure


def _measures(mode: Mode, cases: Cases, confidence: float) -> Iterator[Measure]:
    for name in MEASURES:
        if name in RATES:
            yield _rate(f"{mode}.{name}", cases, RATES[name], confidence)
        elif name in COUNTS:
            yield _mean(f"{mode}.{name}", cases, COUNTS[name], confidence)
        else:
            yield from (_pass_at(f"{mode}.pass@{k}", cases, k, confidence) for k in _ks(cases))


def _rate(name: str, cases: Cases, pick: RatePick, confidence: float) -> Measure:
    values = list(scored(cases, pick).values())
    count, n = sum(map(sum, values)), sum(map(len, values))
    exact = n == len(values)
    estimate = None
    if values and exact:
        interval = statistics.clopper_pearson(count, n, confidence=confidence)
        estimate = statistics.Estimate(count / n, *interval)
    elif values:
        estimate = statistics.clustered_proportion(list(map(mean, values)), n, confidence=confidence)
    method = "clopper-pearson" if exact else "korn-graubard"
    return _measure(name, estimate, n=n, method=method, count=count, cases=len(values))


def _ks(cases: Cases) -> list[int]:
    """2, 4, 8… up to the samples that every case has."""
    fewest = min(len(samples) for samples in cases.values())
    return [2**power for power in range(1, fewest.bit_length())]


class _Chances(NamedTuple):
    """pass@k by case, over the cases with enough scored samples."""

    by_case: Mapping[str, float]
    samples: Mapping[str, int]

    def draws(self, k: int, cases: Iterable[str]) -> int:
        """K samples hold K // k disjoint draws of k: the observations behind an interval."""
        return sum(self.samples[case_id] // k for case_id in cases)


def _chances(cases: Cases, k: int) -> _Chances:
    enough = {c: values for c, values in scored(cases, RATES["success@1"]).items() if len(values) >= k}
    return _Chances(
        by_case={c: statistics.pass_at_k(len(values), sum(values), k) for c, values in enough.items()},
        samples={c: len(values) for c, values in enough.items()},
    )


def _pass_at(name: str, cases: Cases, k: int, confidence: float) -> Measure:
    chances = _chances(cases, k)
    values = list(chances.by_case.values())
    estimate = None
    if values:
        draws = chances.draws(k, chances.by_case)
        estimate = statistics.clustered_proportion(values, draws, confidence=confidence)
    n = sum(chances.samples.values())
    return _measure(name, estimate, n=n, method="korn-graubard", cases=len(values))


def _mean(name: str, cases: Cases, pick: CountPick, confidence: float) -> Measure:
    means = [mean([pick(row) for row in samples]) for samples in cases.values()]
    n = sum(len(samples) for samples in cases.values())
    found = _measure(
        name, statistics.mean_interval(means, confidence=confidence), n=n, method="t", cases=len(means)
    )
    # One case has a mean but no spread to make an interval of.
    return found if found.value is not None else found.model_copy(update={"value": _rounded(means[0])})


def _measure(name: str, estimate: statistics.Estimate | None, **facts: Any) -> Measure:
    value, low, high = _rounded_estimate(estimate)
    return Measure(name=name, value=value, low=low, high=high, **facts)


def _rounded_estimate(
    estimate: statistics.Estimate | None,
) -> tuple[float | None, float | None, float | None]:
    if estimate is None:
        return None, None, None
    return _rounded(estimate.value), _rounded(estimate.low), _rounded(estimate.high)


def _rounded(number: float) -> float:
    """To 12 significant digits, so that the last bits of another scipy do not change a report's digest."""
    return float(f"{number:.12g}")


# --- outcomes and slices


def _outcomes(cases: Cases) -> dict[str, int]:
    """Completions by outcome, in order of the outcome's name."""
    return dict(sorted(Counter(outcome(row) for samples in cases.values() for row in samples).items()))


def _slices(modes: Mapping[Mode, Cases], confidence: float) -> Iterator[Slice]:
    """One slice a tag value, the language of the question among the tags."""
    slices: dict[tuple[str, str], dict[Mode, dict[str, Sequence[CaseRow]]]] = {}
    for mode, cases in modes.items():
        for case_id, samples in cases.items():
            for tag, value in {"language": samples[0].language, **samples[0].tags}.items():
                slices.setdefault((tag, str(value)), {}).setdefault(mode, {})[case_id] = samples
    values_of_tag = Counter(tag for tag, _ in slices)
    # Shorter values first, so that 2 stands before 10.
    for (tag, value), by_mode in sorted(slices.items(), key=lambda s: (s[0][0], len(s[0][1]), s[0][1])):
        if values_of_tag[tag] > MAX_SLICES_PER_TAG:
            continue
        yield Slice(
            tag=tag,
            value=value,
            cases=len({case_id for cases in by_mode.values() for case_id in cases}),
            measures=tuple(
                _rate(f"{mode}.success@1", cases, RATES["success@1"], confidence)
                for mode, cases in by_mode.items()
            ),
        )


# --- paired differences


class _Pair(NamedTuple):
    """The two sides of a comparison in one mode, over the same cases."""

    mode: Mode
    first: Cases
    second: Cases
    confidence: float

    def rate(self, name: str, pick: RatePick) -> PairedDifference:
        first, second = scored(self.first, pick), scored(self.second, pick)
        paired = [case_id for case_id in first if case_id in second]
        before, after = [first[c] for c in paired], [second[c] for c in paired]
        if all(len(values) == 1 for values in (*before, *after)):
            return self._binary(name, [v[0] for v in before], [v[0] for v in after])
        counts = (sum(map(len, before)), sum(map(len, after)))
        return self._clustered(name, list(map(mean, before)), list(map(mean, after)), counts)

    def shared_ks(self) -> list[int]:
        return [k for k in _ks(self.first) if k in _ks(self.second)]

    def pass_at(self, k: int) -> PairedDifference:
        first, second = _chances(self.first, k), _chances(self.second, k)
        paired = [case_id for case_id in first.by_case if case_id in second.by_case]
        before, after = [first.by_case[c] for c in paired], [second.by_case[c] for c in paired]
        draws = (first.draws(k, paired), second.draws(k, paired))
        return self._clustered(f"pass@{k}", before, after, draws)

    def tokens(self, name: str, pick: CountPick) -> PairedDifference:
        before, after = (
            [mean([pick(row) for row in samples]) for samples in side.values()]
            for side in (self.first, self.second)
        )
        estimate = statistics.paired_mean_difference(before, after, confidence=self.confidence)
        return self._record(name, before, after, estimate, method="t")

    def _binary(self, name: str, before: Sequence[bool], after: Sequence[bool]) -> PairedDifference:
        gained = sum(b and not a for a, b in zip(before, after, strict=True))
        lost = sum(a and not b for a, b in zip(before, after, strict=True))
        estimate = None
        if before:
            estimate = statistics.tango_interval(gained, lost, len(before), confidence=self.confidence)
        p_value = _rounded(statistics.mcnemar_exact(gained, lost))
        facts = {"gained": gained, "lost": lost, "p_value": p_value}
        return self._record(name, before, after, estimate, method="tango", **facts)

    def _clustered(
        self, name: str, before: Sequence[float], after: Sequence[float], observations: tuple[int, int]
    ) -> PairedDifference:
        estimate = None
        if before:
            estimate = statistics.paired_clustered_difference(
                before, after, observations=observations, confidence=self.confidence
            )
        return self._record(name, before, after, estimate, method="mover-korn-graubard")

    def _record(
        self,
        name: str,
        before: Sequence[float],
        after: Sequence[float],
        estimate: statistics.Estimate | None,
        /,
        **facts: Any,
    ) -> PairedDifference:
        difference, low, high = _rounded_estimate(estimate)
        return PairedDifference(
            name=f"{self.mode}.{name}",
            before=_rounded(math.fsum(before) / len(before)) if before else None,
            after=_rounded(math.fsum(after) / len(after)) if after else None,
            difference=difference,
            low=low,
            high=high,
            cases=len(before),
            dropped=len(self.first) - len(before),
            **facts,
        )
