"""SQLite as gateway and NAS use it: durable, migrated, one writer thread behind an async face.

Rules: WAL with synchronous=FULL, so a committed transaction survives a power cut; foreign keys on; migrations
run in order, each in its own transaction, and a migration that was ever applied may not change (its hash is
kept). After a failed commit the connection is thrown away and opened anew from disk: a failed fsync is never
retried on the same file handle. Async code never touches a connection itself.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

import trio

from runtime.errors import CorruptDataError, LocalError, Unavailable

P = ParamSpec("P")
T = TypeVar("T")

BUSY_TIMEOUT_S = 10.0
CACHE_KIB = 2048
WAL_AUTOCHECKPOINT_PAGES = 1000
JOURNAL_SIZE_LIMIT_BYTES = 8 * 1024 * 1024
BUSY_RETRY_AFTER_S = 1.0
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_TRANSIENT = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
    }
)
_PRIMARY_CODE = 0xFF
_HISTORY = (
    "CREATE TABLE IF NOT EXISTS applied_migration (version INTEGER PRIMARY KEY, sha256 TEXT NOT NULL) STRICT"
)


def open_database(path: Path | str, migrations: Sequence[str]) -> sqlite3.Connection:
    """Open or create a database and bring it to the newest version; blocks.

    Args:
        path: the file; its directory must exist. Created with mode 0600.
        migrations: SQL scripts; number n brings user_version from n to n + 1. Only ever appended to.

    Returns:
        A connection in autocommit mode (transactions are begun by hand), usable from any one thread at a time.

    Raises:
        LocalError: the file is newer than this program, or an applied migration was edited.
        CorruptDataError: not a SQLite database, or damaged.
        Unavailable: busy, disk full, I/O error.
    """
    file = Path(path)
    if not file.exists():
        file.touch(mode=0o600)
    try:
        connection = sqlite3.connect(
            file, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            _configure(connection)
            _migrate(connection, migrations, file)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as exc:
        raise translate(exc, file) from exc
    return connection


def _configure(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_AUTOCHECKPOINT_PAGES}").fetchone()
    connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_SIZE_LIMIT_BYTES}").fetchone()


def _migrate(connection: sqlite3.Connection, migrations: Sequence[str], file: Path) -> None:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(migrations):
        known = len(migrations)
        raise LocalError(
            f"database {file}: version {version} is newer than this program knows ({known}): upgrade it"
        )
    _check_history(connection, migrations[:version], file)
    for number in range(version, len(migrations)):
        _apply(connection, number, migrations[number])


def _check_history(connection: sqlite3.Connection, applied: Sequence[str], file: Path) -> None:
    if not applied:
        return
    rows = dict(connection.execute("SELECT version, sha256 FROM applied_migration").fetchall())
    for number, script in enumerate(applied):
        if rows.get(number + 1) != _digest(script):
            raise LocalError(f"database {file}: migration {number + 1} differs from the one that was applied")


def _apply(connection: sqlite3.Connection, number: int, script: str) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if found == number:  # another process may have applied it while we waited for the lock
            connection.execute(_HISTORY)
            for statement in split_statements(script):
                connection.execute(statement)
            row = (number + 1, _digest(script))
            connection.execute("INSERT INTO applied_migration (version, sha256) VALUES (?, ?)", row)
            connection.execute(f"PRAGMA user_version = {number + 1}")
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


def split_statements(script: str) -> list[str]:
    """Cut a script into statements as SQLite itself sees them (triggers and quoted semicolons stay whole)."""
    statements, pending = list[str](), ""
    for piece in script.split(";"):
        pending += piece + ";"
        if sqlite3.complete_statement(pending):
            if pending.strip(" \t\r\n;"):
                statements.append(pending)
            pending = ""
    rest = pending.removesuffix(";")
    if rest.strip():
        statements.append(rest)
    return statements


def _digest(script: str) -> str:
    return hashlib.sha256(script.encode()).hexdigest()


def translate(exc: sqlite3.Error, file: Path | str) -> Exception:
    """Turn a SQLite error into ours; constraint violations and misuse stay what they are."""
    code = getattr(exc, "sqlite_errorcode", 0) & _PRIMARY_CODE
    if code in _DAMAGED:
        return CorruptDataError(f"database {file}: {exc}")
    if code in _TRANSIENT:
        return Unavailable(f"database {file}: {exc}", retry_after_s=BUSY_RETRY_AFTER_S)
    return exc


class Database:
    """A database behind one thread at a time; `async with Database(path, migrations) as db`.

    Opening happens on entry. Many tasks may call `run` and `read` at once; they are served in turn.
    """

    def __init__(self, path: Path | str, migrations: Sequence[str]) -> None:
        self._path = Path(path)
        self._migrations = tuple(migrations)
        self._limiter = trio.CapacityLimiter(1)
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        await trio.to_thread.run_sync(self._connect, limiter=self._limiter)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._close, limiter=self._limiter)

    async def run(
        self, fn: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call `fn(connection, …)` inside one transaction that may write; commit when it returns.

        Returning means the transaction is on disk. Any exception of `fn` rolls back and passes through.
        Cancelled while waiting for its turn: nothing happened. Cancelled later: the transaction still ends,
        committed or rolled back as a whole, before the cancellation is raised at the caller's next checkpoint.
        `fn` must not commit, must not keep the connection, and must not await.

        Raises:
            Unavailable: busy, disk full, I/O error; nothing was written, retry later.
            CorruptDataError: the file is damaged.
        """
        return await self._in_thread("BEGIN IMMEDIATE", lambda connection: fn(connection, *args, **kwargs))

    async def read(
        self, fn: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call `fn(connection, …)` on one consistent snapshot; as `run`, but takes no write lock."""
        return await self._in_thread("BEGIN", lambda connection: fn(connection, *args, **kwargs))

    async def _in_thread(self, begin: str, fn: Callable[[sqlite3.Connection], T]) -> T:
        return await trio.to_thread.run_sync(self._transact, begin, fn, limiter=self._limiter)

    def _connect(self) -> sqlite3.Connection:
        if self._closed:
            raise LocalError(f"database {self._path}: used after it was closed")
        if self._connection is None:
            self._connection = open_database(self._path, self._migrations)
        return self._connection

    def _close(self) -> None:
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _transact(self, begin: str, fn: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connect()
        try:
            connection.execute(begin)
            result = fn(connection)
            self._commit(connection)
        except sqlite3.Error as exc:
            self._roll_back(connection)
            ours = translate(exc, self._path)
            if ours is exc:
                raise
            self._drop()
            raise ours from exc
        except BaseException:
            self._roll_back(connection)
            raise
        return result

    def _commit(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("COMMIT")
        except sqlite3.Error:
            self._roll_back(connection)
            self._drop()
            raise

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        if self._connection is connection and connection.in_transaction:
            try:
                connection.execute("ROLLBACK")
            except sqlite3.Error:
                self._drop()
