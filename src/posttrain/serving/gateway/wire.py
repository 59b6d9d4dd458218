"""What both ends of the gateway's connections are to the event loop.

Here: the methods of asyncio's protocol, for ``server`` and ``upstream``. It is not asyncio's class: a class that may be
compiled (``compiled``) inherits from such classes, and the event loop asks for the methods, not for the class. What
arrives must be ``bytes``, as it is from uvloop, asyncio and httptools: compiled code takes no other kind.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

never: Final = float("inf")
"""A deadline that is none."""


class Wire:
    """One connection."""

    __slots__ = ("transport",)

    def __init__(self) -> None:
        self.transport: Any = None

    @property
    def protocol(self) -> asyncio.Protocol:
        """This, by the name that the event loop's types know."""
        return cast(asyncio.Protocol, self)

    def connection_made(self, transport: Any) -> None:
        """The connection is there."""
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone; ``exc`` says why, None: it was closed."""

    def data_received(self, data: bytes) -> None:
        """Bytes came."""

    def eof_received(self) -> bool:
        """The other end will send no more; False: the transport closes itself."""
        return False

    def pause_writing(self) -> None:
        """The other end does not take what was sent."""

    def resume_writing(self) -> None:
        """It does again."""
