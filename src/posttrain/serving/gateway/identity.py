"""Names of requests and of those who make them.

Here: request ids, units of stickiness, tags, the hashes under which people appear in the log. Not here: keys and
tenants (``access``), which unit gets what (``assignment``).
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from functools import lru_cache
from typing import Any, Final

from posttrain.routing.config import ROUTED_TAGS
from posttrain.routing.records import Unit
from posttrain.traffic.clock import MonotonicWallClock
from posttrain.traffic.pseudonym import MAX_NAME, pseudonym

USER_HEADER: Final = b"x-posttrain-user"
CONVERSATION_HEADER: Final = b"x-posttrain-conversation"
SLICES_HEADER: Final = b"x-posttrain-slices"
REQUEST_ID_HEADER: Final = b"x-request-id"

_SANE_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{7,127}")
_MAX_ID: Final = 128
_TENANT_DIGITS = 16
_SANE_SLICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/=+-]{0,63}")
_MAX_SLICES = 16
_REMEMBERED = 65_536
_HEX: Final = [b"%03x" % number for number in range(4096)]


class RequestIds:
    """Ids that sort by time; a client's own id is used where it is a sane token that was not used just before.

    Where there are keys it stands behind its tenant's hash: with an id that another tenant used, one could otherwise
    write over that tenant's rows, and see that it was used.

    *Not covered*: a client that gives one id to two workers. Both rows then bear it.
    """

    def __init__(self, clock: MonotonicWallClock) -> None:
        self._clock = clock
        self._ms = 0
        self._time = b""
        """The last id's time, written out: formatting it costs more than the rest of an id."""
        self._count = 0
        self._suffix = os.urandom(6).hex().encode()
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def make(self) -> bytes:
        """A new one."""
        self._count = count = (self._count + 1) & 0xFFFFFF
        now = self._clock.now_ms()
        if now != self._ms:
            self._ms, self._time = now, b"%012x" % now
        return b"%b-%b%b-%b" % (self._time, _HEX[count >> 12], _HEX[count & 0xFFF], self._suffix)

    def choose(self, given: bytes | None, tenant: str | None = None) -> bytes:
        """The client's, else a new one; ``tenant`` is a pseudonym."""
        if given is None or not _SANE_ID.fullmatch(given):
            return self.make()
        if tenant is not None:
            given = b"%b.%b" % (tenant[:_TENANT_DIGITS].encode(), given)
        if len(given) > _MAX_ID or given in self._seen:
            return self.make()
        self._seen[given] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return given


class Asker:
    """Whose request it is, as far as it was told: pseudonyms, by which he is also assigned.

    So the log, which holds no names, is enough to draw everybody's bucket again.
    """

    __slots__ = ("conversation", "tenant", "user")

    def __init__(self, user: str | None, conversation: str | None, tenant: str | None) -> None:
        self.user = user
        self.conversation = conversation
        self.tenant = tenant

    def unit(self, kind: Unit, request_id: str) -> str:
        """What stays with its answer."""
        if kind == "request":
            return request_id
        if kind == "conversation" and self.conversation:
            return self.conversation
        return self.user or self.tenant or request_id

    def says(self, kind: Unit, request_id: str) -> dict[str, Any]:
        """What rows say of him; ``unit`` where none of the names in the row is it."""
        says: dict[str, Any] = {}
        if self.user is not None:
            says["user"] = self.user
        if self.conversation is not None:
            says["conversation"] = self.conversation
        if self.tenant is not None:
            says["tenant"] = self.tenant
        unit = self.unit(kind, request_id)
        if unit != (request_id if kind == "request" else says.get(kind)):
            says["unit"] = unit
        return says


def read_asker(
    headers: dict[bytes, bytes], body: dict[str, Any], tenant: str | None, pseudonyms: Pseudonyms
) -> Asker:
    """From the headers, else from the body."""
    user, conversation = headers.get(USER_HEADER), headers.get(CONVERSATION_HEADER)
    name = _text(user) if user else body.get("safety_identifier") or body.get("user")
    return Asker(
        pseudonyms.of("user", name[:MAX_NAME]) if isinstance(name, str) and name else None,
        pseudonyms.of("conversation", _text(conversation)) if conversation else None,
        pseudonyms.of("tenant", tenant) if tenant else None,
    )


def read_slices(header: bytes | None) -> list[str]:
    """The tags of a request; what is no sane token, or is ours to give, is left out."""
    if not header:
        return []
    found = (part.strip() for part in header.decode("latin-1").split(","))
    sane = (part for part in found if _SANE_SLICE.fullmatch(part) and not part.startswith(ROUTED_TAGS))
    return list(sane)[:_MAX_SLICES]


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")[:MAX_NAME]


class Pseudonyms:
    """Keyed hashes, the recent ones kept: most requests are of somebody who asked just before."""

    def __init__(self, secret: bytes) -> None:
        self.of = lru_cache(maxsize=8192)(lambda kind, text: pseudonym(secret, kind, text))
        """``of(kind, text)``: the pseudonym of a name."""
