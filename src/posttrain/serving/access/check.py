"""What a worker asks for each request: may this one have that?

Here: the check, and the rule about open gateways. Not here: making keys (``keys``), counting (``budgets``). A key that
was right once is recognised by the SHA-256 of what was sent, so the file's hash is computed once for each key and
worker. Wrong keys are never remembered: there is no end to them.

No message in here repeats anything of what a client sent, nor does the traffic log get it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from posttrain.core.errors import ConfigError
from posttrain.serving.access.budgets import SharedBudgets
from posttrain.serving.access.keys import KeyFile, is_secret, split_token
from posttrain.serving.access.records import Budgets, KeyRecord, Principal, Refusal

OPEN = Principal("open", "", -1)
"""Who everybody is where there are no keys."""
_MAX_KNOWN = 10_000

_NO_KEY = Refusal(401, "missing_api_key", "send a key: Authorization: Bearer ptk_...")
_WRONG_KEY = Refusal(401, "invalid_api_key", "this key is not known")
_EXPIRED = Refusal(401, "expired_api_key", "this key has expired")
_REVOKED = Refusal(401, "revoked_api_key", "this key is revoked")


class _Known(NamedTuple):
    principal: Principal
    scopes: frozenset[str]
    models: frozenset[str] | None
    until: float
    """When this very secret stops being good."""
    budgets: Budgets | None


class Access:
    """The keys as a worker knows them. Without a path everybody may do everything: see :func:`require_access`."""

    def __init__(
        self,
        path: Path | None,
        budgets: SharedBudgets | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``budgets`` counts; without it no budget is kept. ``clock`` says when keys expire."""
        self._file = KeyFile(path) if path is not None else None
        self._budgets = budgets
        self._clock = clock
        self._keys: dict[str, KeyRecord] = {}
        self._known: dict[bytes, _Known] = {}
        self.reload()

    def reload(self) -> int:
        """Read the file again; returns how many keys there are. Where that fails the keys stay as they were."""
        if self._file is not None:
            self._keys = {key.id: key for key in self._file.read()}
            self._known = {}
        return len(self._keys)

    def check(self, authorization: bytes | None, scope: str, model: str | None) -> Principal | Refusal:
        """Who asks, or why not: the ``Authorization`` header, what is wanted, and of which model.

        A request that is admitted is counted; a refused one is not.
        """
        if self._file is None:
            return OPEN
        if authorization is None:
            return _NO_KEY
        known = self._known.get(hashlib.sha256(authorization).digest())
        if known is None:
            found = self._recognise(authorization)
            if isinstance(found, Refusal):
                return found
            known = found
        if self._clock() >= known.until:
            return _EXPIRED
        if scope not in known.scopes:
            return Refusal(403, "insufficient_scope", "this key is not for that")
        if known.models is not None and model is not None and model not in known.models:
            return Refusal(403, "model_not_allowed", "this key is not for that model")
        if known.budgets is not None and self._budgets is not None:
            wait = self._budgets.admit(known.principal.slot, known.budgets)
            if wait:
                return Refusal(429, "rate_limit_exceeded", "the budget of this key is used up for now", wait)
        return known.principal

    def charge(self, principal: Principal, tokens: int) -> None:
        """Count the tokens of an answer that has ended."""
        if principal.slot >= 0 and self._budgets is not None:
            self._budgets.charge(principal.slot, tokens)

    def allows(self, principal: Principal, model: str) -> bool:
        """Whether ``model`` is one that this key may ask for: what a list of models shows it."""
        key = self._keys.get(principal.key_id)
        return key is None or key.models is None or model in key.models

    def _recognise(self, authorization: bytes) -> _Known | Refusal:
        scheme, _, token = authorization.partition(b" ")
        parts = split_token(token.strip()) if scheme.lower() == b"bearer" else None
        if parts is None:
            return _WRONG_KEY
        identifier, secret = parts
        record, now = self._keys.get(identifier), self._clock()
        if not is_secret(record, secret, now) or record is None:
            return _WRONG_KEY
        if record.disabled:
            return _REVOKED
        until = float("inf") if record.expires_at is None else record.expires_at
        if not is_secret(record.model_copy(update={"previous": None}), secret, now):
            until = min(until, record.previous_until or 0.0)
        known = _Known(
            Principal(record.tenant, record.id, record.slot),
            frozenset(record.scopes),
            None if record.models is None else frozenset(record.models),
            until,
            record.budgets if record.budgets.limited else None,
        )
        if len(self._known) >= _MAX_KNOWN:
            # Only right keys come here, in as many spellings of the header as a client likes.
            self._known.clear()
        self._known[hashlib.sha256(authorization).digest()] = known
        return known


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``; a path is a Unix socket."""
    if host == "localhost" or host.startswith(("/", "unix:")):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_access(host: str, keys: Path | None, *, declared_open: bool = False) -> None:
    """Refuse a gateway that strangers could reach without a key. Raises ConfigError.

    ``declared_open`` is ``access: open`` in the configuration: somebody meant it, because something else checks.
    """
    if declared_open and keys is not None and keys.exists():
        raise ConfigError(
            f"access: open, but there is a key file {keys}", hint="remove `access: open`, or the file"
        )
    if declared_open or is_loopback(host):
        return
    if keys is None or not KeyFile(keys).read():
        raise ConfigError(
            f"listening on {host!r} without any key would let everybody in",
            hint="`posttrain key create`, or listen on 127.0.0.1, or say `access: open`",
        )
