"""The worker processes: started, watched, started again.

Here: keeping as many workers alive as were asked for. Not here: what they are told (``links``). Workers serve on when
control dies, and the next control adopts those that it finds in ``workers.json`` or that say hello by themselves; one
that says hello beside a worker of its name is told to stop. A worker that keeps dying, or cannot begin, is started
again after a pause that doubles up to :data:`_MAX_PAUSE_SECONDS`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.core.atomic import make_folder, write_atomic
from posttrain.core.errors import ServingError
from posttrain.serving.control.links import WorkerLink, WorkerLinks
from posttrain.serving.control.processes import ProcessId, process

_FIRST_PAUSE_SECONDS = 0.1
_MAX_PAUSE_SECONDS = 5.0
_STEADY_SECONDS = 10.0
"""A worker that lived so long begins with the first pause again."""
_LOOK_SECONDS = 0.05
_ADOPT_SECONDS = 3.0
_STRAY_SECONDS = 0.5
_GRACE_SECONDS = 5.0
"""For a worker that is replaced because its configuration is an old one."""
"""Until a worker that runs and was not noted has found the next control."""
_LAST_LINES = 5


@dataclass(slots=True)
class _Slot:
    name: str
    process: ProcessId | None = None
    child: subprocess.Popen[bytes] | None = None
    """None for a worker of an earlier control."""
    started_at: float = 0.0
    pause_seconds: float = _FIRST_PAUSE_SECONDS
    not_before: float = 0.0
    restarts: int = 0


class WorkerPool:
    """The workers of one serving folder."""

    def __init__(
        self, names: Sequence[str], *, folder: Path, links: WorkerLinks, told: Callable[[str], str]
    ) -> None:
        """``folder`` takes ``workers.json`` and one log file a worker. ``told`` is the digest of what a worker of this
        name is told at its start: one that was told something else is not adopted."""
        self._told = told
        self._slots = [_Slot(name) for name in names]
        self._folder = folder
        self._links = links
        self._task: asyncio.Task[None] | None = None
        links.is_stray = self._is_stray
        self._is_noted = True
        """Whether ``workers.json`` says who lives; on a full disk it is written later."""

    @property
    def names(self) -> list[str]:
        """Of all workers, alive or not."""
        return [slot.name for slot in self._slots]

    @property
    def restarts(self) -> dict[str, int]:
        """How often each worker was started again."""
        return {slot.name: slot.restarts for slot in self._slots}

    def processes(self) -> dict[str, ProcessId]:
        """The processes that live now, by name of the worker."""
        return {
            slot.name: slot.process for slot in self._slots if slot.process is not None and slot.process.alive
        }

    async def start(self, seconds: float) -> None:
        """Adopt what is there, start what is missing, wait until all listen. Raises ServingError with the log's end."""
        await self._adopt()
        for slot in self._slots:
            if slot.process is None:
                self._spawn(slot)
        names = [slot.name for slot in self._slots]

        def ready() -> bool:
            return self._failure() is not None or all(
                name in self._links.by_name and self._links.by_name[name].port for name in names
            )

        await self._links.wait_until(ready, seconds)
        failure = self._failure()
        if failure is not None or not ready():
            late = f"not every worker listens after {seconds:.0f} s: {self._last_lines(names[0])}"
            raise ServingError(failure or late, hint=f"their logs are in {self._folder}")
        self._task = asyncio.create_task(self._watch())

    async def end(self, names: Sequence[str]) -> None:
        """End workers at once; they are started again, with the current snapshot."""
        for slot in self._slots:
            if slot.name in names and slot.process is not None:
                await asyncio.to_thread(slot.process.end, 1.0)

    async def stop(self, grace_seconds: float) -> None:
        """Let every worker finish what it has, then end it."""
        if self._task is not None:
            self._task.cancel()
        self._links.broadcast({"op": "stop", "grace_seconds": grace_seconds})
        deadline = time.monotonic() + grace_seconds + 2.0
        while self._living() and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_SECONDS)
        for slot in self._slots:
            if slot.process is not None:
                await asyncio.to_thread(slot.process.end, 0.5)
            if slot.child is not None:
                slot.child.wait()
        (self._folder / "workers.json").unlink(missing_ok=True)

    def _living(self) -> bool:
        for slot in self._slots:
            if slot.child is not None:
                slot.child.poll()  # takes the exit code, so that a dead child is no zombie
        return bool(self.processes())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            for slot in self._slots:
                if slot.child is not None:
                    slot.child.poll()
                if slot.process is not None and not slot.process.alive:
                    slot.process = None
                    self._pause(slot, now)
                if slot.process is None and now >= slot.not_before:
                    slot.restarts += 1
                    try:
                        self._spawn(slot)
                    except OSError:  # no space for its log, no process to be had: tried again
                        self._pause(slot, now)
                self._end_if_it_cannot_begin(slot)
            if not self._is_noted:
                self._note()

    def _pause(self, slot: _Slot, now: float) -> None:
        steady = now - slot.started_at > _STEADY_SECONDS
        slot.pause_seconds = (
            _FIRST_PAUSE_SECONDS if steady else min(_MAX_PAUSE_SECONDS, slot.pause_seconds * 2)
        )
        slot.not_before = now + slot.pause_seconds

    def _end_if_it_cannot_begin(self, slot: _Slot) -> None:
        """A worker that could not open its log or the door waits for another word, which nobody will say."""
        link = self._links.by_name.get(slot.name)
        if slot.process is None or link is None or link.pid != slot.process.pid:
            return
        if link.error and not link.port:
            slot.process.send(signal.SIGTERM)

    async def _adopt(self) -> None:
        try:
            known = json.loads((self._folder / "workers.json").read_bytes())
        except (OSError, ValueError):
            return
        for slot in self._slots:
            pid, started, told = (*known.get(slot.name, (0, "", "")), "")[:3]
            found = ProcessId(pid, started)
            if found.alive and told == self._told(slot.name):
                slot.process, slot.started_at = found, time.monotonic()
            elif found.alive:  # it serves by another configuration: other keys, guardrails, another port
                await asyncio.to_thread(found.end, _GRACE_SECONDS)
        names = [slot.name for slot in self._slots if slot.process is not None]
        await self._links.wait_until(
            lambda: all(name in self._links.by_name for name in names), _ADOPT_SECONDS
        )
        for slot in self._slots:
            if slot.process is not None and slot.name not in self._links.by_name:
                await asyncio.to_thread(slot.process.end, 1.0)  # it hangs: control cannot be reached by it
                slot.process = None
        await self._adopt_strays()
        for name, pair in known.items():  # more workers than are wanted now
            if name not in {slot.name for slot in self._slots}:
                await asyncio.to_thread(ProcessId(*pair[:2]).end, 1.0)

    async def _adopt_strays(self) -> None:
        """The last control may have died before it could note a worker that it had started."""
        await self._links.wait_until(
            lambda: all(slot.name in self._links.by_name for slot in self._slots), _STRAY_SECONDS
        )
        for slot in self._slots:
            link = self._links.by_name.get(slot.name)
            if slot.process is None and link is not None:
                slot.process, slot.started_at = process(link.pid), time.monotonic()

    def _is_stray(self, link: WorkerLink) -> bool:
        """Whether another process is the worker of this name."""
        living = self.processes().get(link.name)
        return living is not None and living.pid != link.pid

    def _spawn(self, slot: _Slot) -> None:
        make_folder(self._folder)
        command = [sys.executable, "-m", "posttrain.serving.gateway", "--control", str(self._links.path)]
        with self._log(slot.name).open("ab") as log:
            # A session of its own: Ctrl-C in a terminal reaches control, which lets the workers finish.
            slot.child = subprocess.Popen(
                [*command, "--worker", slot.name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ.copy(),
            )
        slot.process, slot.started_at = process(slot.child.pid), time.monotonic()
        self._note()

    def _note(self) -> None:
        """Write down who lives, for the next control."""
        known = {
            each.name: [*each.process, self._told(each.name)]
            for each in self._slots
            if each.process is not None
        }
        try:
            write_atomic(self._folder / "workers.json", json.dumps(known).encode())
        except OSError:
            self._is_noted = False
            return
        self._is_noted = True

    def _failure(self) -> str | None:
        for slot in self._slots:
            link = self._links.by_name.get(slot.name)
            if link is not None and link.error:
                return f"worker {slot.name} failed: {link.error}"
            if slot.child is not None and slot.child.poll() is not None:
                return f"worker {slot.name} ended with {slot.child.returncode}: {self._last_lines(slot.name)}"
        return None

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _last_lines(self, name: str) -> str:
        try:
            text = self._log(name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "it wrote no log"
        return " / ".join(text.strip().splitlines()[-_LAST_LINES:]) or "it wrote nothing"
