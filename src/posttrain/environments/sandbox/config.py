"""What a run in the sandbox may use.

Here: data only, pydantic only. Not here: behaviour (``pool``).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Backend: TypeAlias = Literal["bubblewrap", "namespaces"]
"""``bubblewrap``: the program ``bwrap``. ``namespaces``: the same of Linux itself, without any program."""

_MIB = 1 << 20


class SandboxConfig(BaseModel):
    """Limits of one run, and how many runs go at once.

    The memory of one run is at most ``processes`` times ``memory_mib`` and ``folder_mib``, beside the interpreter's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    backend: Literal["auto", "bubblewrap", "namespaces"] = "auto"
    """``auto``: bubblewrap where it is installed and works, else namespaces."""
    workers: int = Field(default=1, ge=1, le=256)
    """Runs at once."""
    wall_seconds: float = Field(default=10.0, gt=0, le=3600)
    cpu_seconds: int = Field(default=10, ge=1, le=3600)
    """Of one process."""
    memory_mib: int = Field(default=256, ge=16)
    """Address space of one process, on top of the interpreter's."""
    processes: int = Field(default=8, ge=1, le=1024)
    """Processes and threads of a run, its first one included."""
    open_files: int = Field(default=64, ge=16, le=65536)
    """File descriptors of one process."""
    file_mib: int = Field(default=8, ge=1)
    """Size of one file."""
    folder_mib: int = Field(default=32, ge=1)
    """Size of all files of a run."""
    files: int = Field(default=1024, ge=16)
    """Files and folders of a run."""
    output_kib: int = Field(default=64, ge=1, le=16384)
    """What is kept of standard output, and of standard error; a run that writes far more cannot go on writing."""

    def order(self) -> dict[str, float]:
        """The limits in the units in which the guest is told them."""
        return {
            "wall_seconds": self.wall_seconds,
            "cpu_seconds": self.cpu_seconds,
            "memory_bytes": self.memory_mib * _MIB,
            "processes": self.processes,
            "open_files": self.open_files,
            "file_bytes": self.file_mib * _MIB,
            "folder_bytes": self.folder_mib * _MIB,
            "files": self.files,
            "output_bytes": self.output_kib * 1024,
        }
