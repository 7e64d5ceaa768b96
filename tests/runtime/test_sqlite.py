"""SQLite: what is acknowledged survives kill -9, migrations are all or nothing, cancellation never halves."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import time

import pytest
import trio

from runtime.errors import CorruptDataError, LocalError, Unavailable
from runtime.sqlite import Database, open_database, split_statements

ONE = "CREATE TABLE entry (number INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT;"
TWO = """
CREATE TABLE other (id INTEGER PRIMARY KEY, number INTEGER NOT NULL REFERENCES entry (number)) STRICT;
CREATE TRIGGER keep BEFORE DELETE ON entry BEGIN SELECT RAISE(ABORT, 'entries stay; always'); END;
INSERT INTO entry VALUES (0, 'a;b');
"""


def insert(connection, number, text="x"):
    connection.execute("INSERT INTO entry VALUES (?, ?)", (number, text))


def count(connection):
    return connection.execute("SELECT count(*) FROM entry").fetchone()[0]


def test_new_database_is_durable_and_private(tmp_path):
    connection = open_database(tmp_path / "db", [ONE, TWO])
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    assert connection.execute("SELECT text FROM entry").fetchone() == ("a;b",)
    with pytest.raises(sqlite3.IntegrityError, match="entries stay"):
        connection.execute("DELETE FROM entry")
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        connection.execute("INSERT INTO other VALUES (1, 99)")
    connection.close()
    assert stat.S_IMODE((tmp_path / "db").stat().st_mode) == 0o600


def test_later_migrations_are_applied_to_existing_data(tmp_path):
    connection = open_database(tmp_path / "db", [ONE])
    insert(connection, 7)
    connection.close()
    connection = open_database(tmp_path / "db", [ONE, TWO])
    assert connection.execute("SELECT number FROM entry ORDER BY number").fetchall() == [(0,), (7,)]
    connection.close()


def test_failing_migration_changes_nothing(tmp_path):
    open_database(tmp_path / "db", [ONE]).close()
    with pytest.raises(sqlite3.OperationalError, match="nonsense"):
        open_database(tmp_path / "db", [ONE, "CREATE TABLE half (a); nonsense;"])
    connection = open_database(tmp_path / "db", [ONE])
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert connection.execute("SELECT name FROM sqlite_master WHERE name = 'half'").fetchone() is None
    connection.close()


def test_edited_or_newer_migrations_are_refused(tmp_path):
    open_database(tmp_path / "db", [ONE, TWO]).close()
    with pytest.raises(LocalError, match="migration 1 differs"):
        open_database(tmp_path / "db", [ONE + " ", TWO])
    with pytest.raises(LocalError, match="version 2 is newer"):
        open_database(tmp_path / "db", [ONE])


def test_other_files_and_damage_are_named(tmp_path):
    (tmp_path / "text").write_text("this is no database, " * 100)
    with pytest.raises(CorruptDataError, match="text"):
        open_database(tmp_path / "text", [ONE])


def test_statements_are_cut_where_sqlite_cuts_them():
    assert len(split_statements(TWO)) == 3
    assert split_statements(" ;; \n") == []
    assert split_statements("SELECT ';'; SELECT 2") == ["SELECT ';';", " SELECT 2;"]


async def test_run_commits_and_read_sees_it(tmp_path):
    async with Database(tmp_path / "db", [ONE]) as db:
        await db.run(insert, 1, text="y")
        assert await db.read(count) == 1


async def test_exception_rolls_back_and_passes_through(tmp_path):
    def fail(connection):
        insert(connection, 1)
        raise KeyError("mine")

    async with Database(tmp_path / "db", [ONE]) as db:
        with pytest.raises(KeyError, match="mine"):
            await db.run(fail)
        with pytest.raises(sqlite3.IntegrityError):
            await db.run(lambda c: (insert(c, 1), insert(c, 1)))
        assert await db.read(count) == 0
        await db.run(insert, 1)
        assert await db.read(count) == 1


async def test_many_tasks_are_served_in_turn(tmp_path):
    def raise_by_one(connection):
        [found] = connection.execute("SELECT coalesce(max(number), 0) FROM entry").fetchone()
        insert(connection, found + 1)

    async with Database(tmp_path / "db", [ONE]) as db:
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(db.run, raise_by_one)
        assert await db.read(count) == 30


async def test_cancellation_never_leaves_half_a_transaction(tmp_path):
    started = trio.Event()

    def slow_pair(connection):
        insert(connection, 1)
        trio.from_thread.run_sync(started.set)
        time.sleep(0.1)
        insert(connection, 2)

    async with Database(tmp_path / "db", [ONE]) as db:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(db.run, slow_pair)
            await started.wait()
            with trio.move_on_after(0.01) as waiting:
                await db.run(insert, 3)
            nursery.cancel_scope.cancel()
        assert waiting.cancelled_caught
        assert await db.read(lambda c: c.execute("SELECT number FROM entry").fetchall()) == [(1,), (2,)]


async def test_busy_database_is_unavailable_not_an_sqlite_error(tmp_path):
    async with Database(tmp_path / "db", [ONE]) as db:
        other = sqlite3.connect(tmp_path / "db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        await db.read(lambda c: c.execute("PRAGMA busy_timeout = 50").fetchall())
        with pytest.raises(Unavailable, match="locked"):
            await db.run(insert, 1)
        other.execute("ROLLBACK")
        other.close()
        await db.run(insert, 1)
        assert await db.read(count) == 1


async def test_closed_database_says_so(tmp_path):
    async with Database(tmp_path / "db", [ONE]) as db:
        pass
    with pytest.raises(LocalError, match="closed"):
        await db.run(count)


WRITER = """
import sys, trio
from runtime.sqlite import Database
ONE = %r
async def main():
    async with Database(sys.argv[1], [ONE]) as db:
        start = await db.read(lambda c: c.execute("SELECT coalesce(max(number), 0) FROM entry").fetchone()[0])
        for number in range(start + 1, 10**9):
            await db.run(lambda c: c.execute("INSERT INTO entry VALUES (?, 'x')", (number,)))
            print(number, flush=True)
trio.run(main)
"""


def test_no_acknowledged_row_is_lost_by_kill_9(tmp_path):
    """12 processes killed at random moments; every number that one of them printed is in the database."""
    chooser = random.Random(os.getpid())
    acknowledged = 0
    for _ in range(12):
        command = [sys.executable, "-c", WRITER % ONE, str(tmp_path / "db")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            first = process.stdout.readline()
            time.sleep(chooser.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            numbers = [
                int(line)
                for line in (first + process.stdout.read()).splitlines(keepends=True)
                if line[-1:] == b"\n"
            ]
        acknowledged = max([acknowledged, *numbers])
        connection = open_database(tmp_path / "db", [ONE])
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        present = {row[0] for row in connection.execute("SELECT number FROM entry")}
        connection.close()
        assert present >= set(range(1, acknowledged + 1))
        assert len(present) <= acknowledged + 1
    assert acknowledged >= 12


SQLITE_FAULT = """
import sqlite3, sys, trio
from runtime.errors import Unavailable
from runtime.sqlite import Database
async def main():
    async with Database(sys.argv[1], [%r]) as db:
        for number in range(40):
            try:
                await db.run(lambda c: c.execute("INSERT INTO entry VALUES (?, 'x')", (number,)))
            except Unavailable:
                print("refused", number, flush=True)
            else:
                print("acknowledged", number, flush=True)
trio.run(main)
"""


def test_failed_fsync_is_never_acknowledged(tmp_path):
    """strace makes one fsync fail; that row is refused, the others are there (H3)."""
    command = [
        "strace", "-f", "-qq", "-o", str(tmp_path / "trace"), "-e", "trace=fdatasync,fsync",
        "-e", "inject=fdatasync,fsync:error=EIO:when=20", sys.executable, "-c", SQLITE_FAULT % ONE,
        str(tmp_path / "db"),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip("strace is not installed")
    if "ptrace" in done.stderr or "PTRACE" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    outcomes = [line.split() for line in done.stdout.splitlines()]
    refused = [int(number) for word, number in outcomes if word == "refused"]
    acknowledged = [int(number) for word, number in outcomes if word == "acknowledged"]
    assert len(refused) == 1
    connection = open_database(tmp_path / "db", [ONE])
    present = {row[0] for row in connection.execute("SELECT number FROM entry")}
    connection.close()
    assert present >= set(acknowledged)
    assert not present & set(refused)
