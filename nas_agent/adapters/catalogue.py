"""What the NAS remembers about one backup set at one target: a SQLite file and the entry cache beside it.

Rules
- Losing it costs reading (and asking "have"), never data: everything here can be made again from source and store.
- A chunk is listed once its pack was acknowledged (spooled or stored); so an interrupted run sends at most one pack again.
- `pending` is written before a commit is sent and promoted when its receipt was verified; in between, a crash leaves
  enough to ask for the same receipt again.
- WAL with synchronous=NORMAL for chunk rows (a power cut may forget the last ones: then "have" knows); `pending` and
  `durable` are synced. Blocking, usable from several threads (one lock). No secrets are stored here.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from nas_agent.adapters.entry_cache import EntryCacheWriter, read_entry_cache
from nas_agent.core.change import Remembered
from nas_agent.ports import PACK_SPOOLED
from runtime.sqlite import open_database
from wire.vault.entry import Span

REFS_BUFFERED_MAX: Final = 8192
REFS_PER_BLOCK: Final = 2048
_MIGRATIONS: Final = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE chunk (id BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
    CREATE TABLE distrusted (id BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
    CREATE TABLE pack (name TEXT PRIMARY KEY, state INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE ref (id BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
    CREATE TABLE link (number INTEGER PRIMARY KEY, content BLOB NOT NULL) STRICT;
    """,
)

LinkContent = tuple[int, tuple[tuple[int, int], ...], int, tuple[Span, ...]]
"""Size, holes, ctime to remember, content."""


class KnownGeneration(msgspec.Struct, frozen=True, kw_only=True):
    """A generation this NAS made. `root` and `receipt` are base64 of the signed blobs; `cache` a file name."""

    sequence: int
    root_sha256: str
    root: str
    cache: str
    generation: str = ""
    receipt: str | None = None

    @property
    def root_blob(self) -> bytes:
        """The signed root."""
        return base64.b64decode(self.root)

    @property
    def receipt_blob(self) -> bytes | None:
        """The signed receipt; None from a directory, or before the commit."""
        return None if self.receipt is None else base64.b64decode(self.receipt)


class SortedRefs:
    """The references of the run in SQLite, as `ports.Refs`."""

    def __init__(self, catalogue: Catalogue) -> None:
        """Walk once for count and hash; blocking."""
        self._catalogue = catalogue
        digest, count = hashlib.sha256(), 0
        for block in self.blocks():
            digest.update(block)
            count += len(block) // 32
        self._count, self._sha256 = count, digest.hexdigest()

    @property
    def count(self) -> int:
        """See `ports.Refs`."""
        return self._count

    @property
    def sha256(self) -> str:
        """See `ports.Refs`."""
        return self._sha256

    def blocks(self) -> Iterator[bytes]:
        """See `ports.Refs`."""
        last = b""
        while block := self._catalogue.refs_after(last):
            yield b"".join(block)
            last = block[-1]


class Catalogue:
    """Open one with `Catalogue.open`; see the module for the rules."""

    def __init__(self, directory: Path, connection: sqlite3.Connection) -> None:
        """Take over an open connection."""
        self._directory = directory
        self._connection = connection
        self._lock = threading.Lock()
        self._refs: set[bytes] = set()
        self._distrusting = False
        self._writer: EntryCacheWriter | None = None
        self._cache_name = ""

    @classmethod
    def open(cls, directory: Path, *, epoch: str) -> Catalogue:
        """Open or create the catalogue in an existing directory; blocking.

        Args:
            directory: one per backup set and target.
            epoch: of the device's keys; a catalogue of another epoch is emptied, its chunk IDs mean nothing now.

        Raises `CorruptDataError`, `Unavailable` or `LocalError` as `runtime.sqlite.open_database`.
        """
        connection = open_database(directory / "catalogue.sqlite", _MIGRATIONS)
        connection.execute("PRAGMA synchronous = NORMAL")
        catalogue = cls(directory, connection)
        if catalogue._get("epoch") != epoch.encode():
            catalogue._reset(epoch)
        return catalogue

    @property
    def durable(self) -> KnownGeneration | None:
        """The newest generation whose receipt this NAS has verified."""
        return self._generation("durable")

    @property
    def pending(self) -> KnownGeneration | None:
        """A generation whose commit was sent, but whose receipt was not seen."""
        return self._generation("pending")

    @property
    def unfinished(self) -> bool:
        """Whether a run began and no generation came of it."""
        return self._get("unfinished") is not None

    def begin_run(self) -> None:
        """Forget references and links of earlier runs and start a new entry cache."""
        self.end_run()
        with self._lock:
            self._refs.clear()
            self._connection.execute("BEGIN IMMEDIATE")
            for table in ("ref", "link"):
                self._connection.execute(f"DELETE FROM {table}")  # noqa: S608 - two fixed names
            self._put("unfinished", b"1")
            self._connection.execute("COMMIT")
            row = self._connection.execute("SELECT EXISTS (SELECT 1 FROM distrusted)").fetchone()
            self._distrusting = bool(row[0])
        self._remove_caches()
        self._cache_name = f"entries-{secrets.token_hex(8)}.cache"
        self._writer = EntryCacheWriter(self._directory / self._cache_name)

    def end_run(self) -> None:
        """Drop the entry cache of a run that did not come to a commit."""
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None

    def parent_lines(self) -> Iterator[Remembered]:
        """Yield the entries of the durable generation in manifest order."""
        durable = self.durable
        return iter(()) if durable is None else read_entry_cache(self._directory / durable.cache)

    def remember(self, line: Remembered) -> None:
        """Append one entry of the run to its cache."""
        if self._writer is None:
            raise RuntimeError("remember: no run was begun")
        self._writer.add(line)

    def is_known(self, chunk: bytes) -> bool:
        """Say whether the chunk was acknowledged by the target and not reported missing since."""
        with self._lock:
            row = self._connection.execute("SELECT 1 FROM chunk WHERE id = ?", (chunk,)).fetchone()
        return row is not None

    def is_trusted(self, content: Iterable[Span]) -> bool:
        """Say whether none of these chunks was reported missing by the store."""
        if not self._distrusting:
            return True
        with self._lock:
            query = "SELECT 1 FROM distrusted WHERE id = ?"
            return not any(self._connection.execute(query, (span.chunk,)).fetchone() for span in content)

    def add_chunks(self, chunks: Iterable[bytes], *, spooled_pack: str | None = None) -> None:
        """Record chunks the target acknowledged; name the pack if it is only spooled."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            rows = [(chunk,) for chunk in sorted(chunks)]
            self._connection.executemany("INSERT OR IGNORE INTO chunk VALUES (?)", rows)
            self._connection.executemany("DELETE FROM distrusted WHERE id = ?", rows)
            if spooled_pack is not None:
                query = "INSERT OR IGNORE INTO pack VALUES (?, ?)"
                self._connection.execute(query, (spooled_pack, PACK_SPOOLED))
            self._connection.execute("COMMIT")

    def distrust(self, chunks: Iterable[bytes]) -> None:
        """Forget chunks the store reported missing; files that need them are read again."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            rows = [(chunk,) for chunk in chunks]
            self._connection.executemany("DELETE FROM chunk WHERE id = ?", rows)
            self._connection.executemany("INSERT OR IGNORE INTO distrusted VALUES (?)", rows)
            self._connection.execute("COMMIT")

    def spooled_packs(self, limit: int) -> tuple[str, ...]:
        """Return at most `limit` names of packs that were spooled and not yet seen stored."""
        with self._lock:
            rows = self._connection.execute("SELECT name FROM pack LIMIT ?", (limit,)).fetchall()
        return tuple(name for (name,) in rows)

    def forget_packs(self, names: Iterable[str]) -> None:
        """Drop packs from the list of spooled ones: they are stored now (or rejected)."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("DELETE FROM pack WHERE name = ?", [(name,) for name in names])
            self._connection.execute("COMMIT")

    def add_ref(self, chunk: bytes) -> None:
        """Note that the generation needs this chunk; repeating is cheap."""
        if chunk in self._refs:
            return
        self._refs.add(chunk)
        if len(self._refs) >= REFS_BUFFERED_MAX:
            self._flush_refs()

    def refs(self) -> SortedRefs:
        """Return the references of the run so far."""
        self._flush_refs()
        return SortedRefs(self)

    def refs_after(self, last: bytes) -> list[bytes]:
        """Return the next references in order behind `last`."""
        with self._lock:
            query = "SELECT id FROM ref WHERE id > ? ORDER BY id LIMIT ?"
            rows = self._connection.execute(query, (last, REFS_PER_BLOCK)).fetchall()
        return [chunk for (chunk,) in rows]

    def put_link(self, group: int, content: LinkContent) -> None:
        """Remember the content of a hard-link group, so that its other names are not read."""
        with self._lock:
            row = (_signed(group), msgspec.msgpack.encode(content))
            self._connection.execute("INSERT OR REPLACE INTO link VALUES (?, ?)", row)

    def get_link(self, group: int) -> LinkContent | None:
        """Return the content of a hard-link group seen before in this run."""
        with self._lock:
            query = "SELECT content FROM link WHERE number = ?"
            row = self._connection.execute(query, (_signed(group),)).fetchone()
        return None if row is None else msgspec.msgpack.decode(row[0], type=LinkContent)

    def save_pending(self, *, sequence: int, root_sha256: str, root_blob: bytes) -> None:
        """Make the generation about to be committed survive a crash, with cache and references."""
        if self._writer is None:
            raise RuntimeError("save_pending: no run was begun")
        self._writer.finish()
        self._writer = None
        known = KnownGeneration(
            sequence=sequence,
            root_sha256=root_sha256,
            root=base64.b64encode(root_blob).decode(),
            cache=self._cache_name,
        )
        self._in_synced_transaction({"pending": msgspec.json.encode(known)})

    def promote(self, generation: str, receipt: bytes | None) -> None:
        """Make the pending generation the durable one; its receipt was verified."""
        pending = self.pending
        if pending is None:
            raise RuntimeError("promote: nothing is pending")
        text = None if receipt is None else base64.b64encode(receipt).decode()
        durable = msgspec.structs.replace(pending, generation=generation, receipt=text)
        self._in_synced_transaction(
            {"durable": msgspec.json.encode(durable), "pending": None, "unfinished": None}
        )
        self._remove_caches()

    def drop_pending(self) -> None:
        """Forget a pending generation that the store does not have."""
        self._in_synced_transaction({"pending": None})

    def close(self) -> None:
        """Close files; the run's cache is dropped unless it was saved."""
        self.end_run()
        with self._lock:
            self._connection.close()

    def _generation(self, key: str) -> KnownGeneration | None:
        value = self._get(key)
        return None if value is None else msgspec.json.decode(value, type=KnownGeneration)

    def _flush_refs(self) -> None:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            rows = [(chunk,) for chunk in sorted(self._refs)]
            self._connection.executemany("INSERT OR IGNORE INTO ref VALUES (?)", rows)
            self._connection.execute("COMMIT")
            self._refs.clear()

    def _get(self, key: str) -> bytes | None:
        with self._lock:
            row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def _put(self, key: str, value: bytes | None) -> None:
        if value is None:
            self._connection.execute("DELETE FROM meta WHERE key = ?", (key,))
        else:
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _in_synced_transaction(self, values: dict[str, bytes | None]) -> None:
        with self._lock:
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("BEGIN IMMEDIATE")
            for key, value in values.items():
                self._put(key, value)
            self._connection.execute("COMMIT")
            self._connection.execute("PRAGMA synchronous = NORMAL")

    def _reset(self, epoch: str) -> None:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            for table in ("meta", "chunk", "distrusted", "pack", "ref", "link"):
                self._connection.execute(f"DELETE FROM {table}")  # noqa: S608 - fixed names
            self._put("epoch", epoch.encode())
            self._connection.execute("COMMIT")

    def _remove_caches(self) -> None:
        kept = {known.cache for known in (self.durable, self.pending) if known is not None}
        for path in self._directory.glob("entries-*.cache"):
            if path.name not in kept:
                path.unlink(missing_ok=True)


def _signed(group: int) -> int:
    """Map 64-bit group numbers to what SQLite can hold."""
    return group - (1 << 64) if group >= 1 << 63 else group
