"""Names of users, conversations and tenants as the log knows them: keyed hashes.

Here: the secret and the hash. Without the secret a hash says nothing; with it, and a name, ``posttrain log forget``
finds a person's rows. Throwing the secret away makes every hash anonymous, for good. The secret is ``secret`` in the
*traffic* folder (beside the segments), for every process of one gateway the same.

A user of one name is one user, whichever tenant he came by: somebody who meets two applications stays in one arm, and
forgetting a name needs no list of the tenants there ever were. So where tenants number their users, forgetting ``42``
forgets each tenant's ``42``; rows say the tenant beside the user, by which questions can tell them apart.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from posttrain.core.atomic import make_folder, move_new, sync_folder, unique_name
from posttrain.traffic.errors import TrafficLogError

_SECRET_BYTES = 32
MAX_NAME = 256
"""Characters of a name that are looked at."""


def load_or_make_secret(folder: Path) -> bytes:
    """The secret of a traffic folder, made at the first call; of several processes at once, all get the same."""
    path = folder / "secret"
    if not path.exists():
        make_folder(folder)
        temporary = folder / f".{unique_name()}.part"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(_SECRET_BYTES))
            stream.flush()
            os.fsync(descriptor)
        move_new(temporary, path)
        sync_folder(folder)
    secret = path.read_bytes()
    if len(secret) != _SECRET_BYTES:
        raise TrafficLogError(
            f"{path} does not hold a secret of {_SECRET_BYTES} bytes",
            hint="put it back from a backup; with a new one, `posttrain log forget` finds no user of before",
        )
    return secret


def pseudonym(secret: bytes, kind: str, text: str) -> str:
    """16 bytes in hex for a name of this kind: ``user``, ``conversation``, ``tenant``."""
    data = f"{kind}\0{text[:MAX_NAME]}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16, key=secret).hexdigest()
