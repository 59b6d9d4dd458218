"""Running a recipe: stage after stage, each one reused, taken up or run, and every step of it recorded.

Here: ``run_recipe`` and ``resume_run``. Not here: what a stage does, stage keys (``plan``), drawing progress
(``cli``).

What survives a kill at any instant: a finished stage is known by its key once all its outputs are in the
store, and is then never run again; an unfinished one keeps its checkpoints in ``work/<key>`` and is handed
the same folder next time, by the same run or by any other run of the same work. Two processes that come to
the same stage at once: the second waits, then reuses what the first made.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from posttrain.artifacts.home import Home
from posttrain.artifacts.records import Artifact, RunRecord, RunStageRecord
from posttrain.artifacts.registry import new_run_id
from posttrain.artifacts.stage import StageContext, StageResult, StageSpec, StopRequest
from posttrain.core.allocator import keep_freed_memory
from posttrain.core.atomic import make_folder, remove_tree, storage_errors, write_atomic
from posttrain.core.canonical import canonical_json
from posttrain.core.clock import utc_now
from posttrain.core.errors import Interrupted, PosttrainError, StageError, UsageError
from posttrain.core.events import Event, EventKind, EventSink, ignore_events
from posttrain.core.quiet import quiet_libraries
from posttrain.pipelines.eventlog import EventLog
from posttrain.pipelines.plan import StageKeys, reusable_outputs
from posttrain.pipelines.recipe import RecipeSource
from posttrain.pipelines.records import RunOutcome, StageOutcome
from posttrain.pipelines.registry import STAGES, missing_dependency, stage_function
from posttrain.pipelines.resolve import ArtifactInput, ResolvedRecipe, ResolvedStage, resolve_recipe
from posttrain.pipelines.runs import find_run, latest_unfinished, resume_command, run_lock

_WAIT_SECONDS = 0.2
_RUN_LOCK_SECONDS = 1.0  # longer than `posttrain runs` holds it to see whether a run lives
_PAGES = {"report": "report.html", "decision": "decision.html"}
"""Kind of an output to the page that it may hold."""


def run_recipe(
    home: Home,
    resolved: ResolvedRecipe,
    *,
    events: EventSink = ignore_events,
    stop: StopRequest | None = None,
    resume: bool = True,
) -> RunOutcome:
    """Run ``resolved`` in ``home`` as a new run; what has been done before is reused.

    ``resume=False`` throws away the checkpoints of unfinished stages instead of going on from them. Raises
    the stage's own error when one fails, and Interrupted, with the command to go on, when ``stop`` was
    requested.
    """
    run = RunRecord(
        id=new_run_id(),
        recipe=resolved.name,
        recipe_digest=resolved.digest,
        recipe_json=canonical_json(resolved.document).decode(),
        created_at=utc_now(),
        updated_at=utc_now(),
        seed=resolved.recipe.seed,
        pid=os.getpid(),
        host=socket.gethostname(),
    )
    return _Execution(home, resolved, run, events=events, stop=stop, resume=resume).execute(new=True)


def resume_run(
    home: Home,
    reference: str | None = None,
    *,
    events: EventSink = ignore_events,
    stop: StopRequest | None = None,
    stages: Mapping[str, StageSpec] = STAGES,
) -> RunOutcome:
    """Take up an unfinished run with the recipe that it stored: the run called ``reference``, or the
    youngest.

    Raises UsageError where there is none, where it has finished, or where it is running.
    """
    run = find_run(home, reference) if reference else latest_unfinished(home)
    if run is None:
        raise UsageError(
            "there is no unfinished run here", hint="`posttrain runs` lists runs; --home names another home"
        )
    if run.status == "finished":
        raise UsageError(f"run {run.id} has finished", hint=f"`posttrain show {run.id}` shows what it made")
    resolved = resolve_recipe(
        RecipeSource.from_mapping(json.loads(run.recipe_json), f"the recipe of run {run.id}"),
        stages=stages,
        lookup=home.store.get,
    )
    return _Execution(home, resolved, run, events=events, stop=stop).execute(new=False)


class _Execution:
    """One process executing one run."""

    def __init__(
        self,
        home: Home,
        resolved: ResolvedRecipe,
        run: RunRecord,
        *,
        events: EventSink,
        stop: StopRequest | None,
        resume: bool = True,
    ) -> None:
        self.home = home
        self.resolved = resolved
        self.run = run
        self.watcher = events
        self.stop = stop or StopRequest()
        self.resume = resume
        self.keys = StageKeys(resolved)
        self.done: dict[str, StageOutcome] = {}
        self.records = {
            stage.name: RunStageRecord(run.id, position, stage.name, stage.spec.kind)
            for position, stage in enumerate(resolved.stages)
        }

    # -- the run -----------------------------------------------------------------------------------

    def execute(self, *, new: bool) -> RunOutcome:
        quiet_libraries(self.resolved.recipe.allow_hub)
        keep_freed_memory()
        for stage in self.resolved.stages:
            for name, wire in stage.inputs.items():
                if not isinstance(wire, ArtifactInput):
                    continue
                if wire.digest is None:
                    raise UsageError(
                        f"{stage.name}.inputs.{name}: {wire} was not looked up",
                        hint="give resolve_recipe a lookup: lookup_in(settings)",
                    )
                self.home.store.ensure(wire.digest)
        try:
            held = run_lock(self.home, self.run.id).acquire(timeout=_RUN_LOCK_SECONDS)
        except Timeout:
            raise UsageError(
                f"run {self.run.id} is running already", hint="wait for it, or stop it"
            ) from None
        with held, contextlib.closing(EventLog(self.home.run_folder(self.run.id))) as log:
            self.log = log
            self._open_record(new=new)
            started = time.monotonic()
            try:
                return self._stages(started)
            except BaseException as error:  # a boundary: however a run ends, its record says so
                self._record_end(error, time.monotonic() - started)
                if isinstance(error, Interrupted):
                    raise self._interrupted(error) from None
                raise

    def _open_record(self, *, new: bool) -> None:
        if new:
            self.home.registry.create_run(self.run, list(self.records.values()))
            return
        for record in self.home.registry.run_stages(self.run.id):
            if record.name in self.records:
                self.records[record.name] = record
        self.home.registry.update_run(
            self.run.id, status="running", pid=os.getpid(), host=socket.gethostname()
        )

    def _stages(self, started: float) -> RunOutcome:
        names = [stage.name for stage in self.resolved.stages]
        self._emit("run_started", None, run=self.run.id, recipe=self.resolved.name, stages=names)
        for stage in self.resolved.stages:
            self.stop.check()
            self.done[stage.name] = self._stage(stage)
        outputs = {
            name: self.done[wire.stage].outputs[wire.output] for name, wire in self.resolved.outputs.items()
        }
        reports = {
            name: page for name, artifact in outputs.items() if (page := self._copy_report(name, artifact))
        }
        self.home.registry.update_run(self.run.id, status="finished")
        seconds = time.monotonic() - started
        self._emit(
            "run_finished",
            None,
            run=self.run.id,
            status="finished",
            outputs={name: artifact.digest for name, artifact in outputs.items()},
            reports={name: str(page) for name, page in reports.items()},
            seconds=round(seconds, 3),
        )
        return RunOutcome(
            self.run.id, self.resolved.name, tuple(self.done.values()), outputs, reports, seconds
        )

    def _copy_report(self, name: str, artifact: Artifact) -> Path | None:
        """A page that opens without the store, in the run's folder."""
        page = _PAGES.get(artifact.kind)
        if page is None or all(entry.path != page for entry in artifact.files):
            return None
        alone = all(
            wire.output != artifact.kind or key == name for key, wire in self.resolved.outputs.items()
        )
        target = self.home.run_folder(self.run.id) / (page if alone else f"{name}.html")
        write_atomic(target, self.home.store.read_bytes(artifact, page))
        return target

    # -- one stage ---------------------------------------------------------------------------------

    def _stage(self, stage: ResolvedStage) -> StageOutcome:
        inputs = {
            name: self.home.store.get(wire.reference)
            if isinstance(wire, ArtifactInput)
            else self.done[wire.stage].outputs[wire.output]
            for name, wire in stage.inputs.items()
        }
        digests = {name: artifact.digest for name, artifact in inputs.items()}
        key = self.keys.key(stage, digests)
        before = self.records[stage.name]
        if before.key not in (None, key):  # taken up with other code: what is recorded is about other work
            self.records[stage.name] = RunStageRecord(
                self.run.id, before.position, stage.name, stage.spec.kind
            )
        self._save(stage, key=key, inputs=digests)
        reused = self._reuse(stage, key)
        if reused is not None:
            return reused
        with self._only_one(stage, key):
            reused = self._reuse(stage, key)  # another process may have made it while this one waited
            return reused if reused is not None else self._run(stage, key, inputs, digests)

    def _reuse(self, stage: ResolvedStage, key: str) -> StageOutcome | None:
        # The run names the key by now, so the garbage collector keeps what is found here.
        outputs = reusable_outputs(self.home, stage, key)
        if outputs is None:
            return None
        digests = {name: artifact.digest for name, artifact in outputs.items()}
        record = self.records[stage.name]
        if record.status != "finished":  # else this very run made it, before it was stopped
            self._save(stage, status="reused", outputs=digests, finished_at=utc_now())
        self._remove_leftovers(key)
        self._emit("stage_reused", stage.name, key=key, outputs=digests)
        return StageOutcome(stage.name, stage.spec.kind, key, "reused", outputs, record.summary)

    def _remove_leftovers(self, key: str) -> None:
        """Remove the checkpoints of a stage whose process was killed between finishing and tidying up."""
        if self.home.work_path(key).is_dir():
            with contextlib.suppress(Timeout), self._lock(key).acquire(timeout=0):
                remove_tree(self.home.work_path(key))

    @contextlib.contextmanager
    def _only_one(self, stage: ResolvedStage, key: str) -> Iterator[None]:
        """Hold the lock of ``key``: no two processes work in one work folder."""
        lock = self._lock(key)
        waiting = False
        while not lock.is_locked:
            try:
                lock.acquire(timeout=_WAIT_SECONDS if waiting else 0)
            except Timeout:
                self.stop.check()
                if not waiting:
                    waiting = True
                    self._emit("note", stage.name, text="another process is making this; waiting for it")
        try:
            yield
        finally:
            lock.release()

    def _lock(self, key: str) -> FileLock:
        # Beside `work`, not in it: a lock file that the collector removes while it is held protects nothing.
        folder = self.home.settings.home / "locks"
        make_folder(folder)
        return FileLock(folder / key.removeprefix("sha256:"))

    def _run(
        self, stage: ResolvedStage, key: str, inputs: Mapping[str, Artifact], digests: Mapping[str, str]
    ) -> StageOutcome:
        if not self.resume:
            remove_tree(self.home.work_path(key))
        context = StageContext(
            store=self.home.store,
            stage=stage.name,
            kind=stage.spec.kind,
            key=key,
            workdir=self.home.work_folder(key),
            input_digests=digests,
            threads=self.home.settings.threads,
            events=self._on_event,
            stop=self.stop,
        )
        self._save(stage, status="running", started_at=self.records[stage.name].started_at or utc_now())
        self._emit("stage_started", stage.name, key=key)
        started = time.monotonic()
        try:
            result = self._call(stage, inputs, context)
            outputs = self._keep(stage, key, result)
        except BaseException as error:  # a boundary: recorded, then raised on
            self._stage_ended_badly(stage, error, time.monotonic() - started)
            raise
        seconds = round(time.monotonic() - started, 3)
        self._save(
            stage,
            status="finished",
            outputs={name: artifact.digest for name, artifact in outputs.items()},
            summary=result.summary,
            finished_at=utc_now(),
            seconds=self._seconds_before(stage) + seconds,
        )
        remove_tree(context.workdir)
        self._emit(
            "stage_finished",
            stage.name,
            key=key,
            outputs={name: artifact.digest for name, artifact in outputs.items()},
            seconds=seconds,
            summary=dict(result.summary),
        )
        return StageOutcome(stage.name, stage.spec.kind, key, "finished", outputs, result.summary, seconds)

    def _call(
        self, stage: ResolvedStage, inputs: Mapping[str, Artifact], context: StageContext
    ) -> StageResult:
        try:
            with storage_errors(context.workdir):
                return stage_function(stage.spec)(stage.config, inputs, context)
        except ModuleNotFoundError as error:
            missing = missing_dependency(error)
            if missing is None:
                raise
            raise missing from error

    def _keep(self, stage: ResolvedStage, key: str, result: StageResult) -> dict[str, Artifact]:
        """Check that the stage kept its word, and say that it is finished."""
        declared, given = dict(stage.spec.outputs), dict(result.outputs)
        if given.keys() != declared.keys():
            raise StageError(
                f"stage {stage.name!r} ({stage.spec.kind}) returned the outputs {sorted(given)}, "
                f"declared {sorted(declared)}"
            )
        for name, artifact in given.items():
            if artifact.kind != declared[name]:
                raise StageError(
                    f"stage {stage.name!r} ({stage.spec.kind}): output {name!r} is of kind "
                    f"{artifact.kind!r}, declared {declared[name]!r}"
                )
            self.home.store.ensure(artifact.digest)
        for artifact in given.values():
            self.home.registry.record(artifact)
        self.home.registry.complete_stage(
            key, stage.spec.kind, {name: artifact.digest for name, artifact in given.items()}
        )
        return given

    # -- records and events ------------------------------------------------------------------------

    def _save(self, stage: ResolvedStage, **changes: Any) -> None:
        record = replace(self.records[stage.name], **changes)
        self.records[stage.name] = record
        self.home.registry.save_run_stage(record)

    def _seconds_before(self, stage: ResolvedStage) -> float:
        return self.records[stage.name].seconds or 0.0

    def _stage_ended_badly(self, stage: ResolvedStage, error: BaseException, seconds: float) -> None:
        by_user = isinstance(error, Interrupted | KeyboardInterrupt)
        with contextlib.suppress(PosttrainError, OSError):  # a full disk must not hide the error itself
            self._save(
                stage,
                status="running" if by_user else "failed",  # an unfinished stage of a run that does not run
                seconds=round(self._seconds_before(stage) + seconds, 3),
            )
        hint = error.hint if isinstance(error, PosttrainError) else None
        self._emit("stage_failed", stage.name, error=_one_line(error), hint=hint, interrupted=by_user)

    def _record_end(self, error: BaseException, seconds: float) -> None:
        by_user = isinstance(error, Interrupted | KeyboardInterrupt)
        status: Literal["interrupted", "failed"] = "interrupted" if by_user else "failed"
        with contextlib.suppress(PosttrainError, OSError):
            self.home.registry.update_run(
                self.run.id, status=status, error=None if by_user else _one_line(error)
            )
        if not isinstance(error, PosttrainError | KeyboardInterrupt):
            text = "".join(traceback.format_exception(error))
            with contextlib.suppress(OSError):
                (self.home.run_folder(self.run.id) / "traceback.txt").write_text(text, encoding="utf-8")
        self._emit(
            "run_finished", None, run=self.run.id, status=status, outputs={}, seconds=round(seconds, 3)
        )

    def _interrupted(self, error: Interrupted) -> Interrupted:
        return Interrupted(
            f"run {self.run.id} stopped on request; finished stages and checkpoints are kept",
            hint=f"go on with: {resume_command(self.home, self.run.id)}",
        )

    def _emit(self, event: EventKind, stage: str | None, **data: Any) -> None:
        self._on_event(Event(event, stage, data))

    def _on_event(self, event: Event) -> None:
        self.log.write(event)
        self.watcher(event)


def _one_line(error: BaseException) -> str:
    if isinstance(error, PosttrainError):
        return str(error)
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
