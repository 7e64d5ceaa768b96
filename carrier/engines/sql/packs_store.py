"""`PackStore` in SQL: uploads, packs, the chunk index.

States: live → condemned → deleting → gone. A pack is *usable* while live or condemned; one device has at most one
usable pack of a name (unique index). Only `condemned` can be revived, in the transaction that needs it.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from carrier.engines.sql import quota
from carrier.engines.sql.database import Database, SqlRow
from carrier.engines.sql.schema import chunk, generation, pack, session, upload
from carrier.storage import facts
from carrier.storage import outcomes as out
from carrier.storage.domain import decide_reservation
from carrier.storage.tables import UPLOAD_LIFE_S
from wire.ids import ContractId, RandomId

_USABLE = pack.c.state.in_(("live", "condemned"))


class SqlPackStore:
    """See `carrier.storage.ports.PackStore`."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def begin_upload(
        self, given: facts.SessionFacts, wanted: facts.Upload, now_s: int
    ) -> out.UploadGranted | out.PackStored | out.QuotaFull | out.SessionStopped:
        """See PackStore."""
        with self.database.write() as connection:
            contract = quota.session_may_write(connection, given, now_s)
            if contract is None:
                return out.SessionStopped()
            found = _usable(connection, given, [wanted.sha256])
            live = quota.revive(connection, contract, given, found, now_s)
            if live:
                quota.protect(connection, given, live)
                return out.PackStored(new=False)
            amount = quota.read_quota(
                connection, given.contract, contract.plan, contract.used_bytes, given.session.text, now_s
            )
            reserved = decide_reservation(amount, wanted.size_bytes)
            if found or reserved is None:
                return out.QuotaFull(wanted.size_bytes, amount.limit_bytes, amount.used_bytes)
            connection.execute(
                sa.update(session)
                .where(session.c.session == given.session.text)
                .values(reserved_bytes=reserved)
            )
            connection.execute(
                sa.insert(upload).values(
                    incarnation=wanted.incarnation.text,
                    session=given.session.text,
                    contract=given.contract.text,
                    sha256=wanted.sha256,
                    size_bytes=wanted.size_bytes,
                    drop_at=now_s + UPLOAD_LIFE_S,
                )
            )
            return out.UploadGranted(reserved)

    def finish_upload(
        self, given: facts.SessionFacts, done: facts.Upload, facts_of_pack: facts.PackFacts, now_s: int
    ) -> out.PackStored | out.PackForeign | out.UploadLapsed | out.SessionStopped:
        """See PackStore."""
        with self.database.write() as connection:
            contract = quota.session_may_write(connection, given, now_s)
            if contract is None:
                return out.SessionStopped()
            if not _is_own(connection, given, facts_of_pack):
                return out.PackForeign()
            taken = connection.execute(
                sa.delete(upload).where(
                    upload.c.incarnation == done.incarnation.text, upload.c.drop_at > now_s
                )
            )
            if not taken.rowcount:
                return out.UploadLapsed()
            found = _usable(connection, given, [done.sha256])
            live = quota.revive(connection, contract, given, found, now_s)
            if found and not live:
                return out.UploadLapsed()
            if not live:
                live = {insert_pack(connection, given.contract, given.epoch, done, facts_of_pack, now_s)}
                quota.protect(connection, given, live)
                return out.PackStored(new=True)
            quota.protect(connection, given, live)
            return out.PackStored(new=False)

    def drop_upload(self, failed: facts.Upload) -> None:
        """See PackStore."""
        with self.database.write() as connection:
            connection.execute(sa.delete(upload).where(upload.c.incarnation == failed.incarnation.text))

    def protect_chunks(self, given: facts.SessionFacts, chunks: Sequence[bytes], now_s: int) -> bytes:
        """See PackStore."""
        with self.database.write() as connection:
            contract = quota.session_may_write(connection, given, now_s)
            if contract is None:
                return bytes(len(chunks))
            places = find_chunks(connection, given, chunks)
            packs = {row.pack_id: row for row in places.values()}
            live = quota.revive(connection, contract, given, list(packs.values()), now_s)
            quota.protect(connection, given, live)
            return bytes(name in places and places[name].pack_id in live for name in chunks)

    def protect_packs(self, given: facts.SessionFacts, packs: Sequence[bytes], now_s: int) -> bytes:
        """See PackStore."""
        with self.database.write() as connection:
            contract = quota.session_may_write(connection, given, now_s)
            if contract is None:
                return bytes(len(packs))
            rows = _usable(connection, given, packs)
            live = quota.revive(connection, contract, given, rows, now_s)
            quota.protect(connection, given, live)
            names = {row.sha256 for row in rows if row.pack_id in live}
            return bytes(name in names for name in packs)

    def locate(
        self, contract: ContractId, name: RandomId, chunks: Sequence[bytes]
    ) -> list[tuple[bytes, int, int] | None] | None:
        """See PackStore."""
        places: dict[bytes, tuple[bytes, int, int]] = {}
        owner_query = sa.select(generation.c.device, generation.c.epoch).where(
            generation.c.contract == contract.text,
            generation.c.generation == name.text,
            generation.c.state != "gone",
        )
        with self.database.read() as connection:
            owner = connection.execute(owner_query).first()
            if owner is None:
                return None
            for some in quota.batches(chunks):
                rows = connection.execute(
                    sa.select(chunk.c.chunk_id, chunk.c.offset_bytes, chunk.c.length_bytes, pack.c.sha256)
                    .join_from(chunk, pack)
                    .where(
                        chunk.c.chunk_id.in_(some),
                        pack.c.device == owner.device,
                        pack.c.epoch == owner.epoch,
                        pack.c.state == "live",
                    )
                    .order_by(pack.c.pack_id.desc())
                )
                for row in rows:
                    places[row.chunk_id] = (row.sha256, row.offset_bytes, row.length_bytes)
        return [places.get(wanted) for wanted in chunks]

    def find_pack(self, contract: ContractId, sha256: bytes) -> facts.StoredPack | None:
        """See PackStore."""
        query = sa.select(pack).where(
            pack.c.contract == contract.text, pack.c.sha256 == sha256, pack.c.state == "live"
        )
        with self.database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else stored_pack(row)


def stored_pack(row: SqlRow) -> facts.StoredPack:
    """Return the value of a pack row."""
    return facts.StoredPack(
        row.pack_id, ContractId.parse(row.contract), row.sha256, row.incarnation, row.size_bytes
    )


def insert_pack(
    connection: sa.Connection,
    contract: ContractId,
    epoch: str,
    done: facts.Upload,
    of_pack: facts.PackFacts,
    now_s: int,
    *,
    protected_until: int = 0,
) -> int:
    """Insert a live pack with its index rows, count it, and return its ID; the contract is locked."""
    result = connection.execute(
        sa.insert(pack).values(
            contract=contract.text,
            device=of_pack.device,
            epoch=epoch,
            sha256=done.sha256,
            incarnation=done.incarnation.text,
            size_bytes=done.size_bytes,
            state="live",
            stored_at=now_s,
            changed_at=now_s,
            protected_until=protected_until,
        )
    )
    key = result.inserted_primary_key
    assert key is not None  # noqa: S101 - one row was inserted: drivers always give its key
    insert_chunks(connection, key.pack_id, of_pack)
    quota.add_used(connection, contract, done.size_bytes)
    return int(key.pack_id)


def insert_chunks(connection: sa.Connection, pack_id: int, of_pack: facts.PackFacts) -> None:
    """Insert the index rows of a pack."""
    connection.execute(
        sa.insert(chunk),
        [
            {"pack_id": pack_id, "chunk_id": name, "offset_bytes": offset, "length_bytes": length}
            for name, offset, length in of_pack.chunks
        ],
    )


def find_chunks(
    connection: sa.Connection, given: facts.SessionFacts, chunks: Sequence[bytes]
) -> dict[bytes, SqlRow]:
    """Return for each chunk one usable pack of the session's device and epoch: the oldest live one, if any is."""
    places: dict[bytes, SqlRow] = {}
    for some in quota.batches(chunks):
        rows = connection.execute(
            sa.select(chunk.c.chunk_id, pack.c.pack_id, pack.c.state, pack.c.size_bytes)
            .join_from(chunk, pack)
            .where(
                chunk.c.chunk_id.in_(some),
                pack.c.device == given.device,
                pack.c.epoch == given.epoch,
                _USABLE,
            )
            .order_by(pack.c.state.desc(), pack.c.pack_id)
        )
        for row in rows:
            places.setdefault(row.chunk_id, row)
    return places


def _usable(connection: sa.Connection, given: facts.SessionFacts, names: Sequence[bytes]) -> list[SqlRow]:
    found: list[SqlRow] = []
    for some in quota.batches(names):
        found += connection.execute(
            sa.select(pack.c.pack_id, pack.c.state, pack.c.size_bytes, pack.c.sha256).where(
                pack.c.device == given.device, pack.c.sha256.in_(some), _USABLE
            )
        )
    return found


def _is_own(connection: sa.Connection, given: facts.SessionFacts, of_pack: facts.PackFacts) -> bool:
    """Say whether the trailer names this device and one of its sessions of this epoch."""
    made_in = connection.execute(
        sa.select(session.c.session).where(
            session.c.session == of_pack.session.text,
            session.c.device == given.device,
            session.c.epoch == given.epoch,
        )
    ).first()
    return of_pack.device == given.device and made_in is not None
