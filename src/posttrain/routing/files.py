"""The files of learned routers, where workers read them.

Here: a file kept under the name of its digest, and read again only where it still is what its name says. Not here: what
stands in it (``model``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from posttrain.core.atomic import make_folder, write_atomic
from posttrain.core.errors import ConfigError, DataError
from posttrain.routing.model import RouterModel


def keep_model(path: Path, folder: Path, names: Collection[str]) -> Path:
    """Check a file and copy it to ``folder``; where the copy is. Raises DataError, ConfigError.

    ``names`` are those of the targets there are; the router may name no other.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read the router {path}: {error.strerror}", hint="`posttrain router train` makes one"
        ) from error
    model = RouterModel.from_json(data)
    if missing := [name for name in (model.small, model.big) if name not in names]:
        raise ConfigError(
            f"the router {path.name} chooses {missing[0]!r}, and the route has {', '.join(sorted(names))}",
            hint=f"name it under `choices`, or `posttrain router train --small {sorted(names)[0]} ...`",
        )
    kept = folder / f"{hashlib.sha256(data).hexdigest()}.json"
    make_folder(folder)
    write_atomic(kept, data)
    return kept


def read_model(path: Path) -> RouterModel:
    """Read a file that is named after its digest. Raises DataError where it is another by now."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"the router {path.name} cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != path.stem:
        raise DataError(
            f"the router {path.name} has been changed since it was deployed",
            hint="start the gateway again: it copies the configured file anew",
        )
    return RouterModel.from_json(data)
