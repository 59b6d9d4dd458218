"""Every snapshot that was ever served, one file each.

Here: the chain of epochs on disk. Not here: sending one to workers (``swap``). A snapshot is written once under its
epoch and never changed; the highest epoch is current. Two processes cannot both write the next one: the second is
refused, so that nobody overwrites a rollback that he has not seen.
"""

from __future__ import annotations

from pathlib import Path

from posttrain.core.atomic import make_folder, move_new, storage_errors, sync_file, sync_folder, unique_name
from posttrain.core.errors import ServingError
from posttrain.routing.records import Snapshot


class SnapshotStore:
    """The snapshots of one serving folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[int, Snapshot] = {}
        """Snapshots never change, so none is read twice."""
        make_folder(folder)

    def epochs(self) -> list[int]:
        """Every epoch there is, ascending."""
        return sorted(int(name.stem) for name in self.folder.glob("*.json") if name.stem.isdecimal())

    def current(self) -> Snapshot | None:
        """The snapshot of the highest epoch; None before the first."""
        epochs = self.epochs()
        return self.get(epochs[-1]) if epochs else None

    def get(self, epoch: int) -> Snapshot:
        """The snapshot of one epoch. Raises ServingError where there is none."""
        if epoch not in self._known:
            try:
                data = self._path(epoch).read_bytes()
            except FileNotFoundError:
                raise ServingError(f"there is no snapshot of epoch {epoch}") from None
            self._known[epoch] = Snapshot.from_json(data)
        return self._known[epoch]

    def all(self) -> list[Snapshot]:
        """Every snapshot, the current one last."""
        return [self.get(epoch) for epoch in self.epochs()]

    def publish(self, snapshot: Snapshot) -> None:
        """Keep the next snapshot, on the disk when this returns. Raises ServingError unless it follows the last one."""
        epochs = self.epochs()
        if snapshot.epoch != (epochs[-1] if epochs else 0) + 1:
            raise ServingError(
                f"epoch {snapshot.epoch} does not follow {epochs[-1] if epochs else 'nothing'}",
                hint="another process has changed the traffic meanwhile: look at `posttrain rollout status`",
            )
        temporary = self.folder / f".{unique_name()}.part"
        with storage_errors(self.folder):
            try:
                temporary.write_bytes(snapshot.to_bytes())
                temporary.chmod(0o444)
                sync_file(temporary)
                if not move_new(temporary, self._path(snapshot.epoch)):
                    raise ServingError(f"epoch {snapshot.epoch} is taken by another process")
            finally:
                temporary.unlink(missing_ok=True)
        sync_folder(self.folder)

    def _path(self, epoch: int) -> Path:
        return self.folder / f"{epoch:010d}.json"
