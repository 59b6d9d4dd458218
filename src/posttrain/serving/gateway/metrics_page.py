"""One page of metrics for all workers.

Here: putting a worker's page where the others find it, and one page of all. Not here: the numbers (``metrics``).
Workers share one port, so whoever asks for ``/metrics`` meets any of them; without this a counter would seem to go back
at every other look. Each sample says its worker. Pages of others are at most as old as they are put; a page that was
not put for :data:`_STALE_SECONDS` is of a worker that is gone.
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

_STALE_SECONDS = 10.0
_SAMPLE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})? (\S+)")


@dataclass(slots=True)
class _Family:
    head: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)


class MetricsShelf:
    """The pages of the workers of one gateway."""

    def __init__(self, folder: Path, worker: str) -> None:
        """``folder`` is shared by all of them, and made when missing."""
        self._folder = folder
        self._worker = worker
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, page: bytes) -> None:
        """Show the others this worker's page. A full disk leaves the old one there: metrics are no reason to fail."""
        temporary = self._folder / f".{self._worker}.part"
        with contextlib.suppress(OSError):
            temporary.write_bytes(page)
            temporary.replace(self._folder / f"{self._worker}.prom")

    def page(self, own: bytes) -> bytes:
        """All pages as one, each sample with the label ``worker``."""
        pages = {self._worker: own}
        for path in sorted(self._folder.glob("*.prom")):
            with contextlib.suppress(OSError):
                if path.stem != self._worker and time.time() - path.stat().st_mtime < _STALE_SECONDS:
                    pages[path.stem] = path.read_bytes()
        return merge(pages)


def merge(pages: dict[str, bytes]) -> bytes:
    """Prometheus pages by worker, as one: a family's help and type once, its samples together."""
    families: dict[str, _Family] = {}
    for worker, page in sorted(pages.items()):
        current = _Family()
        for line in page.decode("utf-8", "replace").splitlines():
            if line.startswith("# HELP "):
                current = families.setdefault(line.split(" ", 3)[2], _Family())
                first = not current.samples and not current.head
                current.head += [line] if first else []
            elif line.startswith("# TYPE "):
                current.head += [line] if len(current.head) == 1 else []
            elif (found := _SAMPLE.fullmatch(line)) is not None:
                name, labels, value = found.groups()
                own = f'worker="{worker}"' + (f",{labels}" if labels else "")
                current.samples.append(f"{name}{{{own}}} {value}")
    lines = [line for family in families.values() for line in (*family.head, *family.samples)]
    return "\n".join(lines).encode() + b"\n"
