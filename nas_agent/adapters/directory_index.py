"""The index of a vault in a directory: which pack holds which chunk, and which generations exist.

Rules: everything here can be made again from session headers, pack trailers, `.root` and `.refs` files; the files are
the truth. Chunks belong to an *owner* (device key and epoch), so that one device's packs never answer for another's.
Blocking; one thread at a time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import attrs

from nas_agent.ports import Location
from runtime.sqlite import open_database
from wire.vault.pack import Trailer

_MIGRATIONS: Final = (
    """
    CREATE TABLE owner (id INTEGER PRIMARY KEY, device_key BLOB NOT NULL, epoch TEXT NOT NULL,
        UNIQUE (device_key, epoch)) STRICT;
    -- session.open: 0 ended, 1 open, 2 interrupted
    CREATE TABLE session (session TEXT PRIMARY KEY, owner INTEGER NOT NULL REFERENCES owner,
        opened_at INTEGER NOT NULL, open INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE pack (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
        session TEXT NOT NULL REFERENCES session, size_bytes INTEGER NOT NULL) STRICT;
    CREATE TABLE chunk (owner INTEGER NOT NULL, id BLOB NOT NULL, pack INTEGER NOT NULL, start INTEGER NOT NULL,
        length INTEGER NOT NULL, PRIMARY KEY (owner, id)) STRICT, WITHOUT ROWID;
    CREATE TABLE generation (generation TEXT PRIMARY KEY, backup_set TEXT NOT NULL, owner INTEGER NOT NULL,
        sequence INTEGER NOT NULL, root_sha256 TEXT NOT NULL, received_at INTEGER NOT NULL,
        stored_bytes INTEGER NOT NULL, path TEXT NOT NULL UNIQUE) STRICT, WITHOUT ROWID;
    CREATE TABLE live (id BLOB NOT NULL, owner INTEGER NOT NULL, PRIMARY KEY (owner, id)) STRICT, WITHOUT ROWID;
    """,
)


@attrs.frozen
class GenerationRow:
    """One generation; `path` is its `.root` file relative to the vault."""

    generation: str
    backup_set: str
    owner: int
    sequence: int
    root_sha256: str
    received_at: int
    stored_bytes: int
    path: str


@attrs.frozen
class PackRow:
    """One pack: its number in the index, its name (64 hex) and the size it was recorded with."""

    number: int
    name: str
    size_bytes: int


class DirectoryIndex:
    """Queries over `index.sqlite`."""

    def __init__(self, path: Path) -> None:
        """Open or create; raises as `runtime.sqlite.open_database`."""
        self._connection = open_database(path, _MIGRATIONS)
        self._connection.execute("PRAGMA synchronous = NORMAL")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def sync(self) -> None:
        """Put every committed transaction on disk."""
        self._connection.execute("PRAGMA wal_checkpoint(FULL)").fetchall()

    def add_session(
        self, session: str, device_key: bytes, epoch: str, *, opened_at: int, is_open: bool
    ) -> None:
        """Record a session; its owner is made if new. Idempotent."""
        with self._connection:
            self._connection.execute(
                "INSERT OR IGNORE INTO owner (device_key, epoch) VALUES (?, ?)", (device_key, epoch)
            )
            owner = self.owner(device_key, epoch)
            row = (session, owner, opened_at, is_open)
            self._connection.execute("INSERT OR IGNORE INTO session VALUES (?, ?, ?, ?)", row)

    def close_session(self, session: str) -> None:
        """Note that a session ended in order."""
        self._connection.execute("UPDATE session SET open = 0 WHERE session = ?", (session,))

    def mark_interrupted(self) -> None:
        """Note that the packs of sessions that did not end in order are indexed now; their lease goes on."""
        self._connection.execute("UPDATE session SET open = 2 WHERE open = 1")

    def has_open_sessions(self) -> bool:
        """Say whether some session did not end in order: packs may then be missing from the index."""
        row = self._connection.execute("SELECT EXISTS (SELECT 1 FROM session WHERE open = 1)").fetchone()
        return bool(row[0])

    def owner(self, device_key: bytes, epoch: str) -> int:
        """Return the number of an owner, 0 if it never wrote."""
        query = "SELECT id FROM owner WHERE device_key = ? AND epoch = ?"
        row = self._connection.execute(query, (device_key, epoch)).fetchone()
        return 0 if row is None else int(row[0])

    def session_owner(self, session: str) -> tuple[int, bytes] | None:
        """Return (owner, device key) of a session."""
        query = "SELECT owner, device_key FROM session JOIN owner ON owner.id = owner WHERE session = ?"
        row = self._connection.execute(query, (session,)).fetchone()
        return None if row is None else (int(row[0]), bytes(row[1]))

    def add_pack(self, name: str, trailer: Trailer, size_bytes: int) -> None:
        """Record a pack whose session is known; a chunk that is already elsewhere stays there."""
        session = trailer.session.hex()
        found = self.session_owner(session)
        if found is None:
            raise KeyError(session)
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            query = "INSERT INTO pack (name, session, size_bytes) VALUES (?, ?, ?)"
            pack = self._connection.execute(query, (name, session, size_bytes)).lastrowid
            items = sorted(trailer.items, key=lambda item: item.chunk)
            rows = [(found[0], item.chunk, pack, item.offset, item.length) for item in items]
            self._connection.executemany("INSERT OR IGNORE INTO chunk VALUES (?, ?, ?, ?, ?)", rows)
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            self._connection.rollback()
            raise

    def has_pack(self, name: str) -> bool:
        """Say whether a pack is recorded."""
        return self._connection.execute("SELECT 1 FROM pack WHERE name = ?", (name,)).fetchone() is not None

    def have(self, owner: int, ids: Sequence[bytes]) -> list[bool]:
        """Say for each chunk whether this owner has it here."""
        query = "SELECT 1 FROM chunk WHERE owner = ? AND id = ?"
        return [self._connection.execute(query, (owner, chunk)).fetchone() is not None for chunk in ids]

    def pack_of(self, owner: int, chunk: bytes) -> PackRow | None:
        """Return the pack of a chunk."""
        query = (
            "SELECT pack.id, name, size_bytes FROM chunk JOIN pack ON pack.id = chunk.pack "
            "WHERE chunk.owner = ? AND chunk.id = ?"
        )
        row = self._connection.execute(query, (owner, chunk)).fetchone()
        return None if row is None else PackRow(*row)

    def locate(self, owner: int, ids: Sequence[bytes]) -> list[Location | None]:
        """Say where this owner's frame of each chunk is, whatever others have under the same ID."""
        query = (
            "SELECT name, start, length FROM chunk JOIN pack ON pack.id = chunk.pack "
            "WHERE chunk.owner = ? AND chunk.id = ?"
        )
        rows = (self._connection.execute(query, (owner, chunk)).fetchone() for chunk in ids)
        return [None if row is None else Location(*row) for row in rows]

    def add_generation(self, row: GenerationRow) -> None:
        """Record a generation; idempotent. What its owner's interrupted sessions left is now needed or dead."""
        values = attrs.astuple(row)
        self._connection.execute("UPDATE session SET open = 0 WHERE open = 2 AND owner = ?", (row.owner,))
        self._connection.execute("INSERT OR REPLACE INTO generation VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def remove_generation(self, generation: str) -> None:
        """Forget a generation."""
        self._connection.execute("DELETE FROM generation WHERE generation = ?", (generation,))

    def generations(self, backup_set: str | None = None) -> list[GenerationRow]:
        """List generations, of one backup set or all, by device and sequence."""
        query = "SELECT * FROM generation WHERE ?1 IS NULL OR backup_set = ?1 ORDER BY owner, sequence"
        return [GenerationRow(*row) for row in self._connection.execute(query, (backup_set,))]

    def generation(self, backup_set: str, generation: str) -> GenerationRow | None:
        """Return one generation of a backup set."""
        query = "SELECT * FROM generation WHERE backup_set = ? AND generation = ?"
        row = self._connection.execute(query, (backup_set, generation)).fetchone()
        return None if row is None else GenerationRow(*row)

    def device_generations(self, backup_set: str, device_key: bytes) -> list[GenerationRow]:
        """List one device's generations of a set by sequence."""
        query = (
            "SELECT generation.* FROM generation JOIN owner ON owner.id = generation.owner "
            "WHERE backup_set = ? AND device_key = ? ORDER BY sequence"
        )
        return [GenerationRow(*row) for row in self._connection.execute(query, (backup_set, device_key))]

    def mark_live(self, owner: int, ids: Iterable[bytes]) -> None:
        """Add chunks to the table of live ones."""
        self._connection.executemany("INSERT OR IGNORE INTO live VALUES (?, ?)", ((c, owner) for c in ids))

    def begin(self) -> None:
        """Begin a transaction; `clear_live` and `mark_live` belong into one."""
        self._connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """End the transaction."""
        self._connection.execute("COMMIT")

    def clear_live(self) -> None:
        """Empty the table of live chunks."""
        self._connection.execute("DELETE FROM live")

    def dead_packs(self, *, opened_before: int) -> list[tuple[int, str]]:
        """Return (number, name) of packs without a live chunk whose session is closed or opened before that time."""
        query = (
            "SELECT pack.id, pack.name FROM pack JOIN session ON session.session = pack.session "
            "WHERE (session.open = 0 OR session.opened_at < ?) AND pack.id NOT IN ("
            "SELECT chunk.pack FROM chunk JOIN live ON live.owner = chunk.owner AND live.id = chunk.id)"
        )
        return [
            (int(number), str(name)) for number, name in self._connection.execute(query, (opened_before,))
        ]

    def remove_packs(self, numbers: Sequence[int]) -> None:
        """Forget packs and their chunks."""
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("DELETE FROM pack WHERE id = ?", [(number,) for number in numbers])
        self._connection.execute("DELETE FROM chunk WHERE pack NOT IN (SELECT id FROM pack)")
        self._connection.execute("COMMIT")
