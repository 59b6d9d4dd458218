"""Holding the world still while a suite is played: network, clock, time zone, locale, hash seed.

Here: a guard on this process's sockets, the environment of frozen processes, and closing the network of one. Not here:
the sandbox that a model's code runs in (``evaluation``'s, stricter), the tools (``tools``).

*Covered*, in this process: whatever Python code connects, sends a datagram, binds or looks a name up, in any thread,
also below ``socket`` (an audit hook sees ``_socket`` too), except to the endpoints that the guard is told. *Covered*,
in a worker process (:func:`close_network`): every program in it, where the kernel gives it a network namespace of its
own; elsewhere the same guard with no exception, and ``Closing.how`` says which it was. *Not covered*: compiled code
that opens sockets by itself in this process, such as a database driver's; sockets that were connected before; files,
which are not frozen for code in this process: tools do not open any, and graders get their data from the suite.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from posttrain.core.errors import PosttrainError

_EVENTS = frozenset(
    {
        "socket.connect",
        "socket.sendto",
        "socket.sendmsg",
        "socket.bind",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "socket.gethostbyaddr",
        "socket.getnameinfo",
    }
)
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname")


class NetworkClosedError(PosttrainError, OSError):
    """Something tried to reach the network while a suite was played."""

    def __reduce__(self) -> tuple[type[NetworkClosedError], tuple[str, str | None]]:
        return (type(self), (self.message, self.hint))


class Endpoint(NamedTuple):
    """The one place that may be reached: the model's server."""

    host: str
    port: int


class Closing(NamedTuple):
    """How a process's network was closed."""

    how: Literal["namespace", "guard"]
    """``namespace``: the kernel has no way out; ``guard``: Python's sockets refuse."""


class _Guard:
    """The state that the audit hook reads; a hook can never be removed, so it asks this one whether it is on."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.installed = False
        self.closed = 0
        self.endpoints: list[Endpoint] = []
        self.addresses: set[tuple[str, int]] = set()
        self.looking = threading.local()

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.closed or event not in _EVENTS or getattr(self.looking, "up", False):
            return
        if not self.allows(event, arguments):
            target = arguments[0] if event in _LOOKUPS else arguments[-1]
            raise NetworkClosedError(
                f"the network is closed while a suite is played: {event} {target!r}",
                hint="a frozen suite may not depend on it; record the reply, or put the file into the suite",
            )

    def allows(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event in _LOOKUPS:
            host = arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]
            return any(host == endpoint.host for endpoint in self.endpoints)
        if event != "socket.connect" or not isinstance(arguments[1], tuple):
            return False
        address = (str(arguments[1][0]), int(arguments[1][1]))
        if address not in self.addresses and any(e.port == address[1] for e in self.endpoints):
            self.look_up()  # a name may have moved to another address since
        return address in self.addresses

    def look_up(self) -> None:
        self.looking.up = True
        try:
            for endpoint in self.endpoints:
                with contextlib.suppress(OSError):  # unknown now: connecting will say so
                    for found in socket.getaddrinfo(*endpoint, type=socket.SOCK_STREAM):
                        self.addresses.add((str(found[4][0]), int(found[4][1])))
        finally:
            self.looking.up = False


_GUARD = _Guard()


@contextlib.contextmanager
def closed_network(endpoints: Sequence[Endpoint] = ()) -> Iterator[None]:
    """Inside the block this process reaches nothing but ``endpoints``; others raise NetworkClosedError.

    Blocks may be nested and overlap between threads: what any of them allows is allowed, until the last one ends.
    """
    with _GUARD.lock:
        if not _GUARD.installed:
            sys.addaudithook(_GUARD.hook)
            _GUARD.installed = True
        _GUARD.endpoints.extend(endpoints)
        _GUARD.look_up()
        _GUARD.closed += 1
    try:
        yield
    finally:
        with _GUARD.lock:
            _GUARD.closed -= 1
            for endpoint in endpoints:
                _GUARD.endpoints.remove(endpoint)
            _GUARD.addresses.clear()
            _GUARD.look_up()


def endpoint_of(url: str) -> Endpoint:
    """Where a request to ``url`` connects to: the server, or the proxy that the environment names for it."""
    parts = urllib.parse.urlsplit(url)
    proxies = urllib.request.getproxies()
    if parts.scheme in proxies and not urllib.request.proxy_bypass(parts.netloc):
        parts = urllib.parse.urlsplit(proxies[parts.scheme])
    return Endpoint(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))


def frozen_environment(hash_seed: int = 0) -> Mapping[str, str]:
    """The whole environment of a frozen process: nothing of the caller's but where programs are found.

    No key, no proxy, no setting of a library travels with it.
    """
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "TZ": "UTC",
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "PYTHONHASHSEED": str(hash_seed),
        "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@contextlib.contextmanager
def frozen_zone() -> Iterator[None]:
    """Inside the block this process is in UTC, so that what tools and reports print never depends on where it runs."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    try:
        yield
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()


def close_network() -> Closing:
    """Close this process's network for good, for itself and every process that it starts.

    A network namespace without any interface where the kernel allows it, in a user namespace where that takes one;
    the guard in any case. Call before threads are started: a namespace is a thread's.
    """
    how: Literal["namespace", "guard"] = "namespace" if _own_namespace() else "guard"
    _GUARD.closed += 1
    if not _GUARD.installed:
        sys.addaudithook(_GUARD.hook)
        _GUARD.installed = True
    return Closing(how)


def _own_namespace() -> bool:
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(_CLONE_NEWNET) == 0:
        return True
    user, group = os.getuid(), os.getgid()
    if library.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    with contextlib.suppress(
        OSError
    ):  # unmapped ids are ids of nobody, and the network is closed all the same
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    return True
