"""Databases of ours: connections, transactions, migrations, and what SQLite and PostgreSQL do differently.

Here: SQLite (WAL, foreign keys, a busy timeout, write transactions that take the lock at once) and
PostgreSQL. Not here: what is stored (``registry``; the index of the traffic log in ``serving``). Every
transaction opens its own connection, so nothing is carried over a fork.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import NullPool

from posttrain.artifacts import tables as t
from posttrain.artifacts.migrations import load_migrations
from posttrain.core.atomic import is_storage_full, storage_full
from posttrain.core.clock import utc_now
from posttrain.core.errors import (
    MissingDependencyError,
    NewerStoreError,
    StorageFullError,
    StoreError,
    UsageError,
)

_BUSY_SECONDS = 60
_NO_SPACE_BYTES = 1 << 20
_ADVISORY_LOCK = 0x706F7374  # "post": keeps two processes from migrating one PostgreSQL database at once


@dataclass(frozen=True, slots=True)
class Schema:
    """What a database holds, and what messages say of it."""

    name: str = "registry"
    """What it is called."""
    setting: str = "POSTTRAIN_REGISTRY"
    """What names another one."""
    migrations: str = "posttrain.artifacts.migrations"
    """The package with the numbered SQL files."""
    table: str = t.schema_migrations.name
    """Where the applied ones are noted; two schemas in one database have two."""
    rebuild: str = "run the recipe again: finished stages are found by their manifests"
    """What to do where the file is broken, once it is moved away."""
    page_bytes: int = 4096
    """Of a SQLite file: rows that do not fit a page several times waste most of it."""

    def applied(self) -> sa.Table:
        """The table of applied migrations."""
        if self.table == t.schema_migrations.name:
            return t.schema_migrations
        columns = [sa.Column(c.name, c.type, primary_key=c.primary_key) for c in t.schema_migrations.columns]
        return sa.Table(self.table, sa.MetaData(), *columns)


class Database:
    """One database, opened and brought to this version's schema."""

    def __init__(self, url: str, schema: Schema | None = None) -> None:
        """``sqlite:///PATH`` or ``postgresql://…``. Raises UsageError, NewerStoreError, StoreError."""
        self.schema = schema or Schema()
        self.url = _parse_url(url, self.schema)
        self.dialect = self.url.get_backend_name()
        try:
            self.engine = sa.create_engine(self.url, poolclass=NullPool)
        except ImportError as error:
            raise MissingDependencyError(
                f"a PostgreSQL {self.schema.name} needs psycopg", hint="pip install 'posttrain[postgres]'"
            ) from error
        if self.dialect == "sqlite":
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
            with self._errors():
                self._use_wal(self.schema.page_bytes)
        self._migrate()

    def shown(self) -> str:
        """The file, or the URL without its password: for messages."""
        return self.url.database or ":memory:" if self.dialect == "sqlite" else self.url.render_as_string()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One consistent look at the database."""
        with self._errors(), self.engine.connect() as connection:
            if self.dialect == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def writing(self, *lock: sa.Table) -> Iterator[sa.Connection]:
        """One transaction, kept when the block ends and undone when it raises.

        SQLite: the only writer, from the start. PostgreSQL: nobody else writes the tables in ``lock``
        meanwhile.
        """
        with self._errors(), self.engine.connect() as connection:
            connection.execution_options(posttrain_writes=True)
            with connection.begin():
                if self.dialect == "postgresql" and lock:
                    names = ", ".join(table.name for table in lock)
                    connection.exec_driver_sql(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE")
                yield connection

    def integrity_problems(self) -> list[str]:
        """What the database itself finds wrong; PostgreSQL checks its pages as it reads them, so nothing
        there."""
        if self.dialect != "sqlite":
            return []
        with self.reading() as connection:
            lines = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check")]
            broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        lines += [f"a row of {row[0]} refers to a missing row of {row[2]}" for row in broken]
        return [line for line in lines if line != "ok"]

    def _use_wal(self, page_bytes: int) -> None:
        # Changing the mode needs the file for itself and does not wait for the busy timeout.
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                with self.engine.connect() as connection:
                    dbapi: Any = connection.connection.dbapi_connection
                    dbapi.execute(f"PRAGMA page_size={page_bytes}")  # of a file that is new
                    dbapi.execute("PRAGMA journal_mode=WAL")
                return
            except Exception as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _migrate(self) -> None:
        migrations, made = load_migrations(self.schema.migrations), self.schema.applied()
        with self.writing() as connection:
            if self.dialect == "postgresql":
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
            made.create(connection, checkfirst=True)
            applied = connection.scalar(sa.select(sa.func.max(made.c.number))) or 0
            if applied > migrations[-1].number:
                raise NewerStoreError(
                    f"the {self.schema.name} {self.shown()} has schema {applied}; "
                    f"this posttrain knows up to {migrations[-1].number}",
                    hint=f"upgrade posttrain, or set {self.schema.setting} to another database",
                )
            for migration in migrations[applied:]:
                for statement in migration.statements(self.dialect):
                    connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
                connection.execute(
                    made.insert().values(number=migration.number, name=migration.name, applied_at=utc_now())
                )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """The boundary: what the database says becomes StoreError with something to do about it."""
        try:
            yield
        except sa.exc.DBAPIError as error:
            raise self._explain(error.orig or error) from error
        except OSError as error:
            if isinstance(error, StoreError) or error.errno != errno.ENOSPC:
                raise
            raise self._explain(error) from error

    def _explain(self, error: BaseException) -> StoreError:
        said = " ".join(str(error).split())
        if self.dialect == "sqlite" and (is_storage_full(error) or self._disk_is_full(said)):
            return storage_full(Path(self.shown()).parent)
        if is_storage_full(error):
            return StorageFullError(
                f"the {self.schema.name} {self.shown()} has no space left", hint="free some space there"
            )
        if "database is locked" in said:
            hint = "another process holds it: wait for it or end it"
        elif "malformed" in said or "not a database" in said:
            hint = f"move the file away and {self.schema.rebuild}"
        elif self.dialect == "postgresql":
            hint = f"check {self.schema.setting} and that the server answers"
        else:
            hint = "check that the folder is there and can be written"
        return StoreError(f"the {self.schema.name} {self.shown()} failed: {said}", hint=hint)

    def _disk_is_full(self, said: str) -> bool:
        # SQLite cannot tell why its shared-memory file did not grow, and says "disk I/O error".
        folder = Path(self.shown()).parent
        return "disk I/O error" in said and shutil.disk_usage(folder).free < _NO_SPACE_BYTES


def _parse_url(url: str, schema: Schema) -> sa.URL:
    try:
        parsed = sa.make_url(url)
        backend = parsed.get_backend_name()
    except (sa.exc.ArgumentError, ValueError) as error:
        raise UsageError(
            f"{url!r} is not a database URL", hint="write sqlite:///PATH or postgresql://…"
        ) from error
    if backend == "sqlite":
        return parsed.set(drivername="sqlite+pysqlite")
    if backend in {"postgresql", "postgres"}:
        return parsed.set(drivername="postgresql+psycopg")
    raise UsageError(
        f"a {schema.name} in {backend!r} is not supported",
        hint=f"set {schema.setting} to sqlite:///… or postgresql://…",
    )


def _prepare_sqlite(connection: Any, record: object) -> None:
    del record
    connection.isolation_level = None  # transactions begin in _begin_sqlite, not when the driver guesses
    connection.execute(f"PRAGMA busy_timeout={_BUSY_SECONDS * 1000}")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA recursive_triggers=ON")
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later can fail in the middle; one that writes takes the lock
    # now.
    writes = connection.get_execution_options().get("posttrain_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
