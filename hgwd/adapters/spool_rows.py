"""The spool's rows: which pack of which session lies here, and in which state (SQLite, synchronous=FULL).

Rules
- A pack belongs to one device and one session; when the device asks for it in a newer session, the row moves.
- All functions block and run inside the transaction of `Database.run` or `Database.read`.
- **The session token is kept in clear** (database file 0600), because packs must be forwarded after a restart, when the
  NAS may be off. What it opens: appending packs to one session of one device from this line. It cannot read, list,
  delete or shorten anything (protocols §3), it dies with the session's lease, and whoever reads this flash holds the
  gateway's device key as well.
"""

from __future__ import annotations

import sqlite3
from typing import Final

import attrs

from hgwd.core.spool import STORED_ROWS_MAX, PackState

MIGRATIONS: Final = (
    """
    CREATE TABLE session (
      session TEXT PRIMARY KEY, device TEXT NOT NULL, token TEXT NOT NULL, opened_at_s INTEGER NOT NULL,
      over_reason TEXT, over_at_s INTEGER
    ) WITHOUT ROWID;
    CREATE TABLE pack (
      number INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL, pack TEXT NOT NULL, session TEXT NOT NULL,
      size_bytes INTEGER NOT NULL, state INTEGER NOT NULL, reason TEXT, accepted_at_s REAL NOT NULL,
      changed_at_s REAL NOT NULL, UNIQUE (device, pack)
    );
    CREATE INDEX pack_by_state ON pack (state, number);
    CREATE INDEX pack_by_session ON pack (session, state);
    CREATE INDEX pack_by_name ON pack (pack);
    CREATE TABLE lan_device (
      device TEXT PRIMARY KEY, name TEXT NOT NULL, token_sha256 BLOB NOT NULL UNIQUE, device_key BLOB NOT NULL,
      paired_at_s INTEGER NOT NULL, revoked_at_s INTEGER, last_stored_at_s INTEGER, last_durable_at_s INTEGER
    ) WITHOUT ROWID;
    """,
)

_PACK_COLUMNS = "number, device, pack, session, size_bytes, state, reason, accepted_at_s"
_HERE = (PackState.SPOOLED, PackState.REJECTED)


@attrs.frozen
class SessionRow:
    """A session that was opened through this gateway."""

    session: str
    device: str
    token: str = attrs.field(repr=False)
    over_reason: str | None


@attrs.frozen
class PackRow:
    """A pack this gateway has acknowledged; `accepted_at_s` is unix time."""

    number: int
    device: str
    pack: str
    session: str
    size_bytes: int
    state: PackState
    reason: str | None
    accepted_at_s: float


@attrs.frozen
class SpoolTotals:
    """What lies here now."""

    spooled_packs: int
    spooled_bytes: int
    rejected_packs: int
    rejected_bytes: int
    lost_packs: int
    oldest_spooled_at_s: float | None


def put_session(db: sqlite3.Connection, session: str, device: str, token: str, now_s: float) -> None:
    """Remember a session the service has just opened; the service's word replaces an older row."""
    db.execute(
        "INSERT INTO session (session, device, token, opened_at_s) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (session) DO UPDATE SET device = excluded.device, token = excluded.token, "
        "over_reason = NULL, over_at_s = NULL",
        (session, device, token, int(now_s)),
    )


def get_session(db: sqlite3.Connection, session: str) -> SessionRow | None:
    """Return the session, or None when it was not opened here (or the flash is new)."""
    row = db.execute(
        "SELECT session, device, token, over_reason FROM session WHERE session = ?", (session,)
    ).fetchone()
    return SessionRow(*row) if row is not None else None


def end_session(db: sqlite3.Connection, session: str, reason: str, now_s: float) -> None:
    """Mark a session over; its packs stay until the device asks for them in a new one."""
    db.execute(
        "UPDATE session SET over_reason = ?, over_at_s = ? WHERE session = ? AND over_at_s IS NULL",
        (reason, int(now_s), session),
    )


def drop_session(db: sqlite3.Connection, session: str) -> list[str]:
    """Forget a session and its packs (the NAS has acknowledged); return pack names whose files may go."""
    names = [row[0] for row in db.execute("SELECT pack FROM pack WHERE session = ?", (session,))]
    db.execute("DELETE FROM pack WHERE session = ?", (session,))
    db.execute("DELETE FROM session WHERE session = ?", (session,))
    return unreferenced(db, names)


def put_pack(
    db: sqlite3.Connection, device: str, session: str, pack: str, size_bytes: int, now_s: float
) -> None:
    """Add the row that makes a pack *spooled*; on return it is committed to flash."""
    db.execute(
        "INSERT INTO pack (device, pack, session, size_bytes, state, accepted_at_s, changed_at_s) "
        "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device, pack) DO UPDATE SET session = excluded.session, "
        "size_bytes = excluded.size_bytes, state = excluded.state, reason = NULL, "
        "accepted_at_s = excluded.accepted_at_s, changed_at_s = excluded.changed_at_s",
        (device, pack, session, size_bytes, PackState.SPOOLED, now_s, now_s),
    )


def get_pack(db: sqlite3.Connection, device: str, pack: str) -> PackRow | None:
    """Return the device's pack, or None."""
    rows = _packs(db, "device = ? AND pack = ?", (device, pack))
    return rows[0] if rows else None


def move_pack(db: sqlite3.Connection, number: int, session: str) -> None:
    """Let a pack that lies here belong to `session` from now on."""
    db.execute(
        "UPDATE pack SET session = ? WHERE number = ? AND state = ?", (session, number, PackState.SPOOLED)
    )


def set_state(
    db: sqlite3.Connection, number: int, state: PackState, reason: str | None, now_s: float
) -> list[str]:
    """Change a pack's state; return the names whose files may go (it is no longer here for anybody)."""
    db.execute(
        "UPDATE pack SET state = ?, reason = ?, changed_at_s = ? WHERE number = ?",
        (state, reason, now_s, number),
    )
    row = db.execute("SELECT pack, device FROM pack WHERE number = ?", (number,)).fetchone()
    if row is None:
        return []  # its session was ended while it was being sent
    pack, device = row
    if state is PackState.STORED:
        db.execute("UPDATE lan_device SET last_stored_at_s = ? WHERE device = ?", (int(now_s), device))
        db.execute(
            "DELETE FROM pack WHERE state = ? AND number <= (SELECT max(number) FROM pack) - ?",
            (PackState.STORED, STORED_ROWS_MAX),
        )
    return unreferenced(db, [pack])


def next_to_forward(
    db: sqlite3.Connection, busy: frozenset[int], held_sessions: frozenset[str]
) -> tuple[PackRow, SessionRow] | None:
    """Return the oldest pack that may go now: session not over, not held, not being sent already."""
    for row in _packs(
        db,
        "state = ? AND session IN (SELECT session FROM session WHERE over_at_s IS NULL) "
        "ORDER BY number LIMIT ?",
        (PackState.SPOOLED, -1 if held_sessions else len(busy) + 1),
    ):
        if row.number in busy or row.session in held_sessions:
            continue
        session = get_session(db, row.session)
        if session is not None:
            return row, session
    return None


def states_of(
    db: sqlite3.Connection, device: str, session: str, packs: list[str], sending: frozenset[int]
) -> tuple[list[PackState], bool]:
    """Return the state of each pack for `session`, and whether packs of an older session were moved to it."""
    answers, moved = [], False
    for pack in packs:
        row = get_pack(db, device, pack)
        if row is None or (row.session != session and row.state is not PackState.SPOOLED):
            answers.append(PackState.UNKNOWN)
            continue
        if row.session != session and row.number not in sending:
            move_pack(db, row.number, session)
            moved = True
        answers.append(row.state)
    return answers, moved


def count_waiting(db: sqlite3.Connection, session: str) -> int:
    """Return the number of the session's packs that are spooled and not stored yet."""
    query = "SELECT count(*) FROM pack WHERE session = ? AND state = ?"
    return int(db.execute(query, (session, PackState.SPOOLED)).fetchone()[0])


def packs_here(db: sqlite3.Connection) -> list[PackRow]:
    """Return every pack whose bytes should lie here."""
    return _packs(db, "state IN (?, ?)", _HERE)


def stale_packs(
    db: sqlite3.Connection, rejected_before_s: float, over_before_s: float
) -> tuple[list[PackRow], list[PackRow]]:
    """Return (rejected long ago: may be freed; session over long ago: become rejected)."""
    freed = _packs(db, "state = ? AND changed_at_s < ?", (PackState.REJECTED, rejected_before_s))
    over = _packs(
        db,
        "state = ? AND session IN (SELECT session FROM session WHERE over_at_s < ?)",
        (PackState.SPOOLED, over_before_s),
    )
    return freed, over


def forget_sessions(db: sqlite3.Connection, opened_before_s: float) -> int:
    """Forget old sessions of which nothing lies here; return how many."""
    return db.execute(
        "DELETE FROM session WHERE opened_at_s < ? AND session NOT IN (SELECT session FROM pack WHERE state IN (?, ?))",
        (int(opened_before_s), *_HERE),
    ).rowcount


def forget_pack(db: sqlite3.Connection, number: int) -> list[str]:
    """Delete a row; return the names whose files may go."""
    rows = db.execute("DELETE FROM pack WHERE number = ? RETURNING pack", (number,)).fetchall()
    return unreferenced(db, [row[0] for row in rows])


def used_bytes(db: sqlite3.Connection) -> dict[str, int]:
    """Return bytes lying here, per device."""
    query = "SELECT device, sum(size_bytes) FROM pack WHERE state IN (?, ?) GROUP BY device"
    return dict(db.execute(query, _HERE).fetchall())


def totals(db: sqlite3.Connection) -> SpoolTotals:
    """Return what status and metrics show."""
    counted = {
        row[0]: row[1:]
        for row in db.execute(
            "SELECT state, count(*), sum(size_bytes), min(accepted_at_s) FROM pack WHERE state <> ? GROUP BY state",
            (PackState.STORED,),
        )
    }
    nothing = (0, 0, None)
    spooled_packs, spooled_bytes, oldest_at_s = counted.get(PackState.SPOOLED, nothing)
    rejected_packs, rejected_bytes, _ = counted.get(PackState.REJECTED, nothing)
    lost_packs = counted.get(PackState.UNKNOWN, nothing)[0]
    return SpoolTotals(spooled_packs, spooled_bytes, rejected_packs, rejected_bytes, lost_packs, oldest_at_s)


def unreferenced(db: sqlite3.Connection, names: list[str]) -> list[str]:
    """Return those of `names` that no row needs any more."""
    query = "SELECT 1 FROM pack WHERE pack = ? AND state IN (?, ?) LIMIT 1"
    return [name for name in names if db.execute(query, (name, *_HERE)).fetchone() is None]


def _packs(db: sqlite3.Connection, where: str, values: tuple[object, ...]) -> list[PackRow]:
    query = f"SELECT {_PACK_COLUMNS} FROM pack WHERE {where}"  # noqa: S608 - both constant text
    return [
        PackRow(row[0], row[1], row[2], row[3], row[4], PackState(row[5]), row[6], row[7])
        for row in db.execute(query, values)
    ]
