"""Nothing reaches the network while a suite is played, and frozen processes are all alike."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from posttrain.core.clock import FixedClock, SystemClock
from posttrain.environments.suites.freeze import (
    Endpoint,
    NetworkClosedError,
    closed_network,
    endpoint_of,
    frozen_environment,
    frozen_zone,
)


@pytest.fixture
def server() -> Iterator[Endpoint]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield Endpoint("127.0.0.1", listening.getsockname()[1])


def connect(endpoint: Endpoint) -> None:
    socket.create_connection(endpoint, timeout=5).close()


def test_the_network_is_closed_but_for_the_models_server(server: Endpoint) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        other = Endpoint("127.0.0.1", listening.getsockname()[1])
        connect(other)
        with closed_network([server]):
            connect(server)
            with pytest.raises(NetworkClosedError, match="the network is closed"):
                connect(other)
        connect(other)


def test_every_way_out_of_python_is_closed(server: Endpoint) -> None:
    def datagram() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", server)

    def raw() -> None:
        import _socket

        with contextlib.closing(_socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as below:
            below.connect_ex(server)

    def unix() -> None:
        with socket.socket(socket.AF_UNIX) as local:
            local.connect("/run/nothing.sock")

    def listen() -> None:
        socket.create_server(("127.0.0.1", 0)).close()

    ways = [
        lambda: connect(server),
        datagram,
        raw,
        unix,
        listen,
        lambda: socket.getaddrinfo("example.org", 80),
    ]
    with closed_network():
        for way in ways:
            with pytest.raises(OSError, match="the network is closed"):
                way()


def test_the_guard_holds_in_every_thread_until_the_last_block_ends(server: Endpoint) -> None:
    found: list[object] = []

    def work() -> None:
        try:
            connect(server)
            found.append("reached")
        except NetworkClosedError as error:
            found.append(pickle.loads(pickle.dumps(error)).message)

    with closed_network():
        with closed_network([server]):
            connect(server)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(found) == 1 and "closed" in str(found[0])


def test_a_closed_process_reaches_nothing_and_its_children_neither(server: Endpoint) -> None:
    """Where the kernel gives it a namespace; elsewhere only Python's own sockets are closed."""
    program = (
        "import socket, subprocess, sys\n"
        "from posttrain.environments.suites.freeze import close_network\n"
        "print(close_network().how)\n"
        "address = ('127.0.0.1', int(sys.argv[1]))\n"
        "try:\n"
        "    socket.create_connection(address, timeout=5)\n"
        "except OSError as error:\n"
        "    print(type(error).__name__)\n"
        "child = 'import socket, sys; socket.create_connection((\"127.0.0.1\", int(sys.argv[1])), timeout=5)'\n"
        "print(subprocess.run([sys.executable, '-c', child, sys.argv[1]], capture_output=True).returncode)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(server.port)], capture_output=True, text=True, check=True
    )
    how, error, child = done.stdout.split()
    assert error == "NetworkClosedError"
    assert child == ("1" if how == "namespace" else "0")


def test_a_frozen_process_has_utc_a_fixed_locale_and_a_fixed_hash_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.setenv("PYTHONHASHSEED", "12345")
    monkeypatch.setenv("SECRET_API_KEY", "abc")
    program = (
        "import locale, os, sys, time;"
        "print(time.strftime('%Z', time.localtime(0)), hash('frozen'), sys.getfilesystemencoding(),"
        " os.environ.get('SECRET_API_KEY'), os.environ['LANG'], time.localtime(0).tm_hour)"
    )

    def run(seed: int) -> list[str]:
        environment = dict(frozen_environment(seed))
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    first = run(0)
    assert first == run(0)
    assert (first[0], *first[2:]) == ("UTC", "utf-8", "None", "C.UTF-8", "0")
    assert run(1)[1] != first[1]


def test_this_process_is_in_utc_while_a_suite_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    with frozen_zone():
        assert time.localtime(0).tm_hour == 0
    assert (os.environ["TZ"], time.localtime(0).tm_hour) == ("Asia/Tokyo", 9)
    monkeypatch.undo()
    time.tzset()


def test_the_servers_address_is_that_of_its_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert endpoint_of("https://models.example/v1") == ("models.example", 443)
    assert endpoint_of("http://localhost:8000/v1") == ("localhost", 8000)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert endpoint_of("https://models.example/v1") == ("proxy.example", 3128)
    assert endpoint_of("https://inside.example/v1") == ("inside.example", 443)


def test_clocks() -> None:
    assert FixedClock("2026-01-01T00:00:00Z").now() == "2026-01-01T00:00:00Z"
    assert SystemClock().now() < SystemClock().now()
    for wrong in (
        "2026-01-01",
        "2026-01-01T00:00:00",
        "2026-01-01T00:00:00+01:00",
        "now",
        "2026-13-01T00:00:00Z",
    ):
        with pytest.raises(ValueError, match="is not a time in UTC"):
            FixedClock(wrong)
