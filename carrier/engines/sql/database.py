"""One way to open the carrier's database, on SQLite and on PostgreSQL (design §7).

Rules
- SQLite: WAL, synchronous=FULL, foreign keys on; a write transaction starts with BEGIN IMMEDIATE, so what it has
  read cannot change before it commits. PostgreSQL: the same statements, with row locks where they say so.
- Synchronous; `carrier.engines.worker.Worker` is the one place that brings it to a thread.
- It does not do: create tables (`migrate.py`), retry.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import attrs
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from carrier.errors import LocalCarrierError, UnavailableError

BUSY_TIMEOUT_S = 30
"""How long a SQLite writer waits for the one before it."""

POOL_SIZE = 16
_WRITE_OPTION = "hgw_write"

SqlRow = Any
"""A row, read by column name; the columns are those of `schema.py`."""


@attrs.frozen
class Database:
    """An open database; `read` and `write` give one transaction each."""

    engine: sa.Engine

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Give a connection inside one consistent read transaction."""
        with _own_errors(), self.engine.connect() as connection:
            if self.engine.dialect.name == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Give a connection inside one write transaction; committed (and synced) when the block ends well."""
        with _own_errors(), self.engine.connect() as connection:
            writer = connection.execution_options(**{_WRITE_OPTION: True})
            with writer.begin():
                yield writer

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def open_database(url: str) -> Database:
    """Return the database at `url` (`sqlite:///…` or `postgresql+psycopg://…`). Connects on first use.

    Raises `LocalCarrierError` for another kind of URL.
    """
    parsed = sa.make_url(url)
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise LocalCarrierError("database: expected sqlite:///PATH with a file, got a database in memory")
        engine = sa.create_engine(
            parsed,
            connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
            poolclass=sa.pool.QueuePool,
            pool_size=POOL_SIZE,
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return Database(engine)
    if backend == "postgresql":
        return Database(sa.create_engine(parsed, pool_size=POOL_SIZE, pool_pre_ping=True))
    raise LocalCarrierError(f"database: expected sqlite:// or postgresql://, got {backend}")


def _prepare_sqlite(dbapi_connection: Any, _record: object) -> None:
    dbapi_connection.isolation_level = None  # we say BEGIN ourselves
    cursor = dbapi_connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    write = connection.get_execution_options().get(_WRITE_OPTION, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        raise UnavailableError(f"database: {error.orig}") from error
