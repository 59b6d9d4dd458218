"""The key file: JSON, mode 0600, written whole.

Here: making, listing, revoking and rotating keys. Not here: checking one (``check``). A change is made under a lock, so
two commands at once lose nothing; workers read the file when they are told to. A key is shown once, when it is made:
``ptk_<id>_<secret>``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from posttrain.core.atomic import locked, make_folder, write_atomic
from posttrain.core.clock import utc_now
from posttrain.core.errors import ConfigError, DataError, StoreError, UnknownReferenceError
from posttrain.core.suggest import did_you_mean
from posttrain.serving.access.budgets import MAX_KEYS
from posttrain.serving.access.records import SCOPES, Budgets, KeyList, KeyRecord, Scope, SecretHash

PREFIX = "ptk_"
_ID_CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
_ID_LENGTH = 12
_SECRET_BYTES = 32
_NO_HASH = SecretHash(salt="00" * 16, sha256="00" * 32)


class NewKey(NamedTuple):
    """A key that was just made."""

    record: KeyRecord
    token: str
    """The key itself, which is kept nowhere: show it once."""


class KeyFile:
    """A key file, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[KeyRecord, ...]:
        """Every key there ever was, oldest first. Raises StoreError or DataError."""
        try:
            mode = stat.S_IMODE(self.path.stat().st_mode)
            data = self.path.read_bytes()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StoreError(f"cannot read the key file {self.path}: {error.strerror}") from error
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StoreError(
                f"others may write the key file {self.path}, so anybody could be in it",
                hint=f"chmod 600 {self.path}",
            )
        try:
            return KeyList.from_json(data).keys
        except DataError as error:
            # The reader's own message would repeat what is in the file.
            raise DataError(f"{self.path} is no key file", hint="restore it, or make a new one") from error

    def create_key(
        self,
        tenant: str,
        *,
        name: str = "",
        scopes: Sequence[Scope] | None = None,
        models: Sequence[str] | None = None,
        budgets: Budgets | None = None,
        expires_at: float | None = None,
    ) -> NewKey:
        """Make a key for ``tenant``."""
        for scope in scopes or ():
            if scope not in SCOPES:
                raise ConfigError(f"there is no scope {scope!r}", hint=did_you_mean(scope, SCOPES))
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        identifier = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))
        with self._changing() as keys:
            slot = 1 + max((key.slot for key in keys), default=-1)
            if slot >= MAX_KEYS:
                raise ConfigError(
                    f"{self.path} has {MAX_KEYS} keys, which is the most",
                    hint="rotate a key instead of making one",
                )
            fields = {"scopes": tuple(scopes)} if scopes else {}
            try:
                record = KeyRecord(
                    id=identifier,
                    slot=slot,
                    tenant=tenant,
                    name=name,
                    models=tuple(models) if models else None,
                    budgets=budgets or Budgets(),
                    created_at=utc_now(),
                    expires_at=expires_at,
                    secret=_hash(secret),
                    **fields,
                )
            except ValidationError as error:
                first = error.errors(include_input=False)[0]
                raise ConfigError(f"the key's {first['loc'][0]}: {first['msg']}") from error
            keys.append(record)
        return NewKey(record, f"{PREFIX}{identifier}_{secret}")

    def revoke(self, identifier: str) -> KeyRecord:
        """Make a key worthless, for ever; it stays listed."""
        return self._replace(
            identifier, lambda _: {"disabled": True, "previous": None, "previous_until": None}
        )

    def rotate(self, identifier: str, *, keep_seconds: float = 0.0) -> NewKey:
        """Give a key a new secret; the old one stays good for ``keep_seconds``."""
        secret = secrets.token_urlsafe(_SECRET_BYTES)

        def changes(old: KeyRecord) -> dict[str, object]:
            if old.disabled:
                raise ConfigError(
                    f"the key {identifier} is revoked", hint="`posttrain key create` makes a new one"
                )
            kept = (old.secret, time.time() + keep_seconds) if keep_seconds else (None, None)
            return {"secret": _hash(secret), "previous": kept[0], "previous_until": kept[1]}

        return NewKey(self._replace(identifier, changes), f"{PREFIX}{identifier}_{secret}")

    def _replace(self, identifier: str, changes: Callable[[KeyRecord], dict[str, object]]) -> KeyRecord:
        with self._changing() as keys:
            for place, key in enumerate(keys):
                if key.id == identifier:
                    keys[place] = key.model_copy(update=changes(key))
                    return keys[place]
            raise UnknownReferenceError(
                f"there is no key {identifier!r}", hint=did_you_mean(identifier, [key.id for key in keys])
            )

    @contextmanager
    def _changing(self) -> Iterator[list[KeyRecord]]:
        make_folder(self.path.parent)
        with locked(self.path.with_name(self.path.name + ".lock"), exclusive=True):
            keys = list(self.read())
            yield keys
            text = json.dumps(KeyList(keys=tuple(keys)).to_json(), indent=1, ensure_ascii=False) + "\n"
            write_atomic(self.path, text.encode(), mode=0o600)


def _hash(secret: str) -> SecretHash:
    salt = secrets.token_bytes(16)
    return SecretHash(salt=salt.hex(), sha256=hashlib.sha256(salt + secret.encode()).hexdigest())


def split_token(token: bytes) -> tuple[str, bytes] | None:
    """Id and secret of a key; None for what is none."""
    start, length = len(PREFIX), len(PREFIX) + _ID_LENGTH
    if not token.startswith(b"ptk_") or token[length : length + 1] != b"_" or len(token) > 200:
        return None
    return token[start:length].decode("latin-1"), token[length + 1 :]


def is_secret(record: KeyRecord | None, secret: bytes, now: float) -> bool:
    """Whether ``secret`` is the record's; takes as long for a key that does not exist."""
    hashes = [record.secret if record else _NO_HASH]
    if record and record.previous and now < (record.previous_until or 0.0):
        hashes.append(record.previous)
    found = [
        hmac.compare_digest(hashlib.sha256(bytes.fromhex(known.salt) + secret).hexdigest(), known.sha256)
        for known in hashes
    ]
    return record is not None and any(found)
