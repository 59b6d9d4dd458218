"""What is run in the sandbox, and what came of it.

Here: frozen records. ``SandboxRun.result`` is what the *program* did, however it ended; it is None where the *sandbox*
failed, and then nothing may be concluded about the program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal, TypeAlias

MAX_STDIN_BYTES = 4096
StoppedBy: TypeAlias = Literal["wall_clock", "cpu", "memory", "file_size", "signal"]
"""Which limit ended a run; ``signal`` is a crash of its own."""


@dataclass(frozen=True, slots=True)
class Program:
    """Untrusted Python code with the files that it may use."""

    files: Mapping[str, bytes]
    """Contents by relative path, forward slashes; copied into the run's folder, which is the current one."""
    entry: str = "main.py"
    """The file that is run, as ``python main.py``."""
    stdin: str = field(default="", repr=False)
    """Standard input, at most 4 KiB."""

    def __post_init__(self) -> None:
        if self.entry not in self.files:
            raise ValueError(f"the program has no file {self.entry!r}: add it to `files` or change `entry`")
        for name in self.files:
            path = PurePosixPath(name)
            if (
                path.is_absolute()
                or ".." in path.parts
                or str(path) != name
                or name in ("", ".")
                or "\0" in name
            ):
                raise ValueError(f"not a path inside the run's folder: {name!r}")
        if len(self.stdin.encode()) > MAX_STDIN_BYTES:
            raise ValueError(f"`stdin` is longer than {MAX_STDIN_BYTES} bytes: put it into a file")


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a program ended."""

    exit_code: int | None
    """None where a signal or a limit ended it."""
    signal: int | None
    """The signal that ended it."""
    stopped_by: StoppedBy | None
    """None where it ended by itself. ``memory`` is told from the program's last words (``MemoryError``) or from a kill
    that no other limit explains."""
    stdout: str
    """Capped at the limit; undecodable bytes are replaced."""
    stderr: str
    output_truncated: bool
    """Whether either of them was longer."""
    seconds: float
    """Wall clock."""
    cpu_seconds: float | None = None
    """Of the program and the children that it waited for."""
    memory_bytes: int | None = None
    """Largest resident size of the program, the interpreter's included."""

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with status 0."""
        return self.exit_code == 0

    @property
    def timed_out(self) -> bool:
        """Whether a clock ended it."""
        return self.stopped_by in ("wall_clock", "cpu")

    @property
    def out_of_memory(self) -> bool:
        """Whether it met its memory limit."""
        return self.stopped_by == "memory"


@dataclass(frozen=True, slots=True)
class SandboxRun:
    """What came of running a program."""

    result: RunResult | None
    """None where the sandbox failed."""
    reason: str = ""
    """Why there is no result."""
