"""Runs as they are kept: their events, whether their process still lives, taking one up again, removing
one.

Here: everything about a run that is not executing it. Not here: the records (``artifacts.registry``).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from posttrain.artifacts.home import Home
from posttrain.artifacts.records import RunRecord, RunStatus
from posttrain.core.atomic import remove_tree
from posttrain.core.errors import UnknownReferenceError, UsageError
from posttrain.core.settings import Settings
from posttrain.core.suggest import did_you_mean
from posttrain.pipelines.eventlog import read_log

_LOCK = "lock"


def read_events(home: Home, run_id: str) -> Iterator[dict[str, Any]]:
    """The events of a run, oldest first."""
    return read_log(_folder(home, run_id))


def run_lock(home: Home, run_id: str) -> FileLock:
    """The lock that the process executing a run holds; the system releases it when the process dies."""
    return FileLock(home.run_folder(run_id) / _LOCK)


def run_status(home: Home, run: RunRecord) -> RunStatus:
    """The status of a run, with ``running`` told apart from a process that was killed."""
    if run.status == "running" and not _is_alive(home, run):
        return "interrupted"
    return run.status


def _is_alive(home: Home, run: RunRecord) -> bool:
    if run.host is None or run.pid is None:
        return False
    if run.host == socket.gethostname():
        try:
            os.kill(run.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # somebody's process; the lock tells whether it is ours
    lock = _folder(home, run.id) / _LOCK
    if not lock.exists():
        return True  # another machine's run on a shared registry: believe the record
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def find_run(home: Home, reference: str) -> RunRecord:
    """The run with this id or this unique beginning of an id. Raises UnknownReferenceError."""
    runs = {run.id: run for run in home.registry.runs()}
    if reference in runs:
        return runs[reference]
    found = [run for run_id, run in runs.items() if run_id.startswith(reference)]
    if len(found) == 1 and reference:
        return found[0]
    if found:
        raise UnknownReferenceError(
            f"{len(found)} runs begin with {reference!r}", hint="give more of the run's id"
        )
    raise UnknownReferenceError(f"there is no run {reference!r}", hint=did_you_mean(reference, runs))


def latest_unfinished(home: Home, recipe_digest: str | None = None) -> RunRecord | None:
    """The youngest run that was interrupted or failed and is not being executed, of one recipe or of any."""
    for run in reversed(home.registry.runs()):
        if recipe_digest in (None, run.recipe_digest) and run_status(home, run) in ("interrupted", "failed"):
            return run
    return None


def remove_run(home: Home, run: RunRecord) -> None:
    """Forget a run and its folder; its artifacts stay until the garbage is collected.

    Raises UsageError for one that is being executed.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(run_lock(home, run.id).acquire(timeout=0))
        except Timeout:
            raise UsageError(f"run {run.id} is running", hint="stop it first, with Ctrl-C") from None
        home.registry.delete_run(run.id)
        remove_tree(_folder(home, run.id))


def resume_command(home: Home, run_id: str) -> str:
    """What to type to take up a run."""
    parts = ["posttrain", "run", "--resume", run_id]
    if home.settings.home != Settings.from_environment().home:
        parts += ["--home", str(home.settings.home)]
    return shlex.join(parts)


def _folder(home: Home, run_id: str) -> Path:
    return home.settings.home / "runs" / run_id
