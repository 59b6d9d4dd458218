"""The replay lane: answers that an earlier evaluation recorded are graded again, and no model runs.

Here: a player over a report's ``answers.jsonl``. Not here: recording (every report does). Every tool call is answered
again from the suite; a reply that differs from the recorded one makes a row with an error, since the model answered to
another world. On an unchanged suite a replay has the same bytes as the report that it replays, but for latency and
cost, which a recording never has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from posttrain.engines.conversation import Job, Played
from posttrain.environments.suites.suite import Suite
from posttrain.environments.tools import FrozenTools
from posttrain.evaluation.suites.report import read_report
from posttrain.evaluation.suites.rows import SuiteRow


class RecordedPlayer:
    """Plays what was played before."""

    batch_size = 64

    def __init__(self, suite: Suite, model: str, rows: Mapping[tuple[str, int], SuiteRow]) -> None:
        self.model = model
        """Who gave the answers."""
        self._rows = rows
        self._tools = {spec.name: FrozenTools(suite, spec) for spec in suite.slices}

    @classmethod
    def read(cls, folder: Path, suite: Suite) -> RecordedPlayer:
        """The answers of the report in ``folder``. Raises DataError for what is no report of a suite."""
        report = read_report(folder)
        rows = {(row.played.case, row.played.sample): row for row in report.rows}
        return cls(suite, report.outcomes.evaluated.model, rows)

    def play(self, jobs: Sequence[Job]) -> list[Played]:
        """See :class:`~posttrain.engines.conversation.Player`."""
        return [self._play(job) for job in jobs]

    def _play(self, job: Job) -> Played:
        case = job.case
        row = self._rows.get((case.id, job.sample))
        if row is None:
            return Played(case.id, case.slice, job.sample, None, "replay: this answer was never recorded")
        played = replace(row.played, slice=case.slice, seconds=None)
        if played.answer is None:
            return played
        tools = self._tools[case.slice]
        answers = [tools.answer(call, case.tools) for call in played.answer.tool_calls]
        for call, answer in zip(played.answer.tool_calls, answers, strict=True):
            if call.reply != answer.call.reply:
                error = f"replay: {call.name}({call.raw}) had another reply when it was recorded"
                return replace(played, answer=None, error=error, misses=())
        return replace(played, misses=tuple(answer.miss for answer in answers if answer.miss is not None))
