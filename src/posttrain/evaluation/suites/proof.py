"""Proof that an evaluation is frozen: played twice, differently, with the same outcome in every byte.

Here: the second run, in a process of its own with another order of batches, other concurrency, another hash seed and
another time zone; and comparing the frozen halves row by row. Not here: the first run, which is any report.

*Covered*: dependence on order, on what runs at the same time, on hashing, on the zone, on state left over from earlier
work. *Not covered*: another machine, another version of an engine; batches are the same in both runs, since which
answers are decoded together is part of how a model is evaluated.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageContext
from posttrain.artifacts.store import ArtifactStore
from posttrain.core.canonical import digest_bytes
from posttrain.core.documents import Digest, Document, Record
from posttrain.core.errors import StageError
from posttrain.core.events import Event
from posttrain.evaluation.suites.evaluate import EvaluateSuiteConfig, evaluate_suite, planned_threads
from posttrain.evaluation.suites.models import may_vary
from posttrain.evaluation.suites.report import SuiteReport
from posttrain.evaluation.suites.rows import SuiteRow, dump_lines, load_lines

OTHER_ZONE = "Asia/Kathmandu"
_ORDER_SEED, _HASH_SEED = 1, 4242
_COMMAND = (
    "import sys; sys.path[:] = sys.argv[1:]; from posttrain.evaluation.suites.proof import main; main()"
)
_SHOWN_ROWS = 20


class ProofRun(Record):
    """How the suite was played once."""

    order: str
    """``sorted`` or ``shuffled``."""
    concurrency: int
    graders: int
    hash_seed: str
    """``PYTHONHASHSEED``; ``random`` where none was set."""
    time_zone: str
    frozen_digest: Digest


class DifferingRow(Record):
    """A row that came out differently."""

    case: str
    slice: str
    sample: int
    fields: tuple[str, ...]
    """Which parts of the row differ."""


class Proof(Document):
    """Two plays of one suite by one model."""

    record_kind: ClassVar[str] = "suite_proof"

    suite: Digest
    model: str
    rows: int
    first: ProofRun
    second: ProofRun
    equal: bool
    """Whether every byte of the frozen half is the same."""
    differing: tuple[DifferingRow, ...]


def prove(
    report: SuiteReport,
    config: EvaluateSuiteConfig,
    inputs: Mapping[str, Artifact],
    context: StageContext,
) -> Proof:
    """Play the suite of ``report`` again, otherwise, and compare. ``config`` and ``inputs`` are the first run's."""
    concurrency, graders = planned_threads(config)
    other = {
        "concurrency": concurrency + 2 * may_vary(config.model),
        "graders": graders + 1,
        "hash_seed": _HASH_SEED,
        "order_seed": _ORDER_SEED,
    }
    data = _second_run(config, inputs, context, other)
    rows = load_lines(data)
    evaluated = report.outcomes.evaluated
    differing = differing_rows(report.rows, rows)
    here = os.environ.get("PYTHONHASHSEED") or "random"
    return Proof(
        suite=evaluated.suite,
        model=evaluated.model,
        rows=len(report.rows),
        first=ProofRun(
            order="sorted",
            concurrency=concurrency,
            graders=graders,
            hash_seed=here,
            time_zone=os.environ.get("TZ") or "local",
            frozen_digest=report.frozen_digest,
        ),
        second=ProofRun(
            order="shuffled",
            concurrency=other["concurrency"],
            graders=other["graders"],
            hash_seed=str(other["hash_seed"]),
            time_zone=OTHER_ZONE,
            frozen_digest=digest_bytes(data),
        ),
        equal=digest_bytes(data) == report.frozen_digest,
        differing=tuple(differing),
    )


def differing_rows(first: Any, second: Any) -> list[DifferingRow]:
    """What came out differently, in the order of the rows; a row that only one has differs in everything."""
    sides: list[dict[tuple[str, str, int], SuiteRow]] = [
        {row.place: row for row in rows} for rows in (first, second)
    ]
    found = []
    for place in sorted(sides[0].keys() | sides[1].keys()):
        lines = [side[place].to_json() if place in side else {} for side in sides]
        fields = [name for name in {**lines[0], **lines[1]} if lines[0].get(name) != lines[1].get(name)]
        if fields:
            found.append(DifferingRow(case=place[1], slice=place[0], sample=place[2], fields=tuple(fields)))
    return found


def render_proof(proof: Proof) -> str:
    """The proof as a person reads it."""
    lines = [f"proof of freezing: {proof.model} on {proof.suite}, {proof.rows} rows, played twice"]
    for name, run in (("first", proof.first), ("second", proof.second)):
        lines.append(
            f"  {name:6}  order {run.order}, {run.concurrency} at once, {run.graders} graders, hash seed "
            f"{run.hash_seed}, zone {run.time_zone}: {run.frozen_digest}"
        )
    if proof.equal:
        return "\n".join([*lines, "  equal in every byte"]) + "\n"
    lines.append(f"  NOT EQUAL: {len(proof.differing)} rows differ")
    lines += [
        f"    {row.case}, sample {row.sample}: {', '.join(row.fields)}"
        for row in proof.differing[:_SHOWN_ROWS]
    ]
    more = len(proof.differing) - _SHOWN_ROWS
    return "\n".join([*lines, *([f"    and {more} more"] if more > 0 else [])]) + "\n"


def _second_run(
    config: EvaluateSuiteConfig,
    inputs: Mapping[str, Artifact],
    context: StageContext,
    plan: Mapping[str, Any],
) -> bytes:
    job = {
        "home": str(context.store.root),
        "config": config.model_dump(mode="json"),
        "inputs": {name: artifact.digest for name, artifact in inputs.items()},
        "threads": context.threads,
        "plan": dict(plan),
        "key": context.key,
    }
    with tempfile.TemporaryDirectory(dir=context.workdir) as folder:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND, *filter(None, sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": str(plan["hash_seed"]), "TZ": OTHER_ZONE},
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(job | {"folder": folder}))
            process.stdin.close()
            for line in process.stdout:
                context.stop.check()
                event = json.loads(line)
                context.emit("progress", phase="again", **event)
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        if code != 0:
            raise StageError("the second run of the proof failed", hint="its error stands above")
        return (Path(folder) / "answers.jsonl").read_bytes()


def main() -> None:
    """The second run: a job on standard input, progress as JSON lines on standard output."""
    job = json.loads(sys.stdin.read())
    output = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not reach the protocol

    def tell(event: Event) -> None:
        if event.kind == "progress":
            os.write(output, json.dumps(dict(event.data)).encode() + b"\n")

    folder = Path(job["folder"])
    store = ArtifactStore(Path(job["home"]))
    context = StageContext(
        store,
        "proof",
        "evaluate_suite",
        key=job["key"],
        workdir=folder,
        threads=job["threads"],
        events=tell,
    )
    inputs = {name: store.get(digest) for name, digest in job["inputs"].items()}
    config = EvaluateSuiteConfig.model_validate(job["config"])
    report = second_report(config, inputs, context, job["plan"])
    (folder / "answers.jsonl").write_bytes(dump_lines(report.rows))


def second_report(
    config: EvaluateSuiteConfig,
    inputs: Mapping[str, Artifact],
    context: StageContext,
    plan: Mapping[str, Any],
) -> SuiteReport:
    """The report of the same evaluation, played by another plan."""
    from posttrain.core.quiet import quiet_libraries
    from posttrain.environments.suites.files import read_suite

    quiet_libraries()
    suite = read_suite(context.store.view(inputs["suite"]))
    return evaluate_suite(config, suite, inputs, context, changed_plan=plan)
