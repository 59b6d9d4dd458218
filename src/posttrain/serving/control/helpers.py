"""The processes beside the workers, which only read and append to the traffic log: the indexer, the judge.

Here: which there are, keeping them alive. Not here: what they do (``traffic``, ``shadow``). They end with control, and
begin again where they were: nothing that they do is lost by it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from posttrain.artifacts.home import Home
from posttrain.engines.drivers.processes import EngineProcess
from posttrain.serving.config import ServeConfig

_FIRST_PAUSE_SECONDS = 0.1
_MAX_PAUSE_SECONDS = 5.0


def helper_commands(config: ServeConfig, folder: Path, home: Home) -> dict[str, list[str]]:
    """Name to command of every helper of this gateway; ``folder`` is the traffic log."""
    indexer = [sys.executable, "-m", "posttrain.traffic", "--folder", str(folder)]
    # Without pyarrow segments stay as they are: nothing is lost by it but space.
    history = config.traffic.history_after_seconds if find_spec("pyarrow") is not None else None
    for option, value in (
        ("--history-after", history),
        ("--retention-days", config.traffic.retention_days),
    ):
        if value is not None:
            indexer += [option, str(value)]
    commands = {"indexer": indexer}
    if config.judge is not None:
        judge = [sys.executable, "-m", "posttrain.serving.shadow", "--folder", str(folder)]
        judge += ["--judge", config.judge.model_dump_json(), "--home", str(home.settings.home)]
        commands["judge"] = [*judge, "--sampling", str(config.judge_sampling)]
    return commands


class Helpers:
    """Helper processes, started again when they end."""

    def __init__(self, commands: Mapping[str, Sequence[str]], folder: Path, *, index: str | None) -> None:
        """``folder`` takes one log file each. ``index`` goes by the environment: a command line is for all to read, and
        a database's URL may hold a password."""
        self._commands = commands
        self._environment = {} if index is None else {"POSTTRAIN_TRAFFIC_INDEX": index}
        self._folder = folder
        self._processes: dict[str, EngineProcess] = {}

    def start(self) -> None:
        """Start those that do not run."""
        for name, command in self._commands.items():
            found = self._processes.get(name)
            if found is None or found.exit_code() is not None:
                self._processes[name] = EngineProcess(
                    command, log=self._folder / f"{name}.log", environment=self._environment
                )

    async def watch(self) -> None:
        """Start again what ends, with a pause that doubles."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            await asyncio.sleep(pause)
            ended = [name for name, process in self._processes.items() if process.exit_code() is not None]
            if ended:
                self.start()
            pause = min(_MAX_PAUSE_SECONDS, pause * 2) if ended else _FIRST_PAUSE_SECONDS

    def stop(self) -> None:
        """End them all; each finishes what it holds."""
        for process in self._processes.values():
            process.stop()
