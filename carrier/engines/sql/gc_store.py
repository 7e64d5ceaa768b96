"""`GcStore` in SQL: key-less expiry and removal, scrubbing and rebuilding (design §6.7).

Why nothing referenced is ever deleted: a pack leaves *live* only in `condemn`, under the lock of its contract, and only
if no generation refers to it (a generation in the trash still does) and no open session protects it. A commit takes the
same lock: it comes before (then the pack is referenced) or after (then it revives the pack, or, once *deleting*,
answers "missing"). *deleting* drops the index rows in the same transaction, so nobody finds the pack again; only then is
the blob removed. Its object key holds a random incarnation, so a new upload of the same bytes has another key.
"""

from __future__ import annotations

import sqlalchemy as sa

from carrier.engines.sql import quota
from carrier.engines.sql.database import Database
from carrier.engines.sql.packs_store import insert_chunks, insert_pack, stored_pack
from carrier.engines.sql.schema import (
    chunk,
    device,
    generation,
    generation_pack,
    nonce,
    pack,
    session,
    session_pack,
    storage_contract,
    upload,
)
from carrier.storage import facts
from carrier.storage import outcomes as out
from carrier.storage.tables import CONDEMNED_S, REBUILT_PROTECTION_S, TRASH_S
from wire.ids import ContractId, RandomId


class SqlGcStore:
    """See `carrier.storage.ports.GcStore`."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def expire_trash(self, now_s: int, *, dry_run: bool) -> int:
        """See GcStore."""
        over = sa.and_(generation.c.state == "trash", generation.c.trashed_at + TRASH_S <= now_s)
        with self.database.write() as connection:
            names = connection.execute(sa.select(generation.c.generation).where(over)).scalars().all()
            if dry_run:
                return len(names)
            for name in names:
                connection.execute(sa.delete(generation_pack).where(generation_pack.c.generation == name))
                connection.execute(
                    sa.update(generation).where(generation.c.generation == name).values(state="gone")
                )
            return len(names)

    def condemn(self, now_s: int, *, dry_run: bool) -> list[facts.StoredPack]:
        """See GcStore. One transaction per contract."""
        with self.database.read() as connection:
            contracts = connection.execute(sa.select(storage_contract.c.contract)).scalars().all()
        found: list[facts.StoredPack] = []
        for name in contracts:
            found += self._condemn_one(ContractId.parse(name), now_s, dry_run=dry_run)
        return found

    def _condemn_one(self, contract: ContractId, now_s: int, *, dry_run: bool) -> list[facts.StoredPack]:
        with self.database.write() as connection:
            quota.lock_contract(connection, contract)
            mine = sa.and_(pack.c.contract == contract.text, pack.c.state == "live")
            query = sa.select(pack).where(mine, _unneeded(now_s))
            packs = [stored_pack(row) for row in connection.execute(query)]
            if dry_run or not packs:
                return packs
            for item in packs:
                connection.execute(
                    sa.update(pack)
                    .where(pack.c.pack_id == item.pack_id)
                    .values(state="condemned", changed_at=now_s)
                )
            quota.add_used(connection, contract, -sum(item.size_bytes for item in packs))
            return packs

    def claim_condemned(self, now_s: int, *, dry_run: bool) -> list[facts.StoredPack]:
        """See GcStore."""
        old = sa.and_(pack.c.state == "condemned", pack.c.changed_at + CONDEMNED_S <= now_s)
        ripe = sa.and_(old, _unneeded(now_s))  # a second look: nothing needed may ever get here
        with self.database.write() as connection:
            query = sa.select(pack).where(sa.or_(ripe, pack.c.state == "deleting")).with_for_update()
            packs = [stored_pack(row) for row in connection.execute(query)]
            if dry_run:
                return packs
            for item in packs:
                same = pack.c.pack_id == item.pack_id
                connection.execute(sa.update(pack).where(same).values(state="deleting", changed_at=now_s))
                connection.execute(sa.delete(chunk).where(chunk.c.pack_id == item.pack_id))
                connection.execute(sa.delete(session_pack).where(session_pack.c.pack_id == item.pack_id))
            return packs

    def mark_gone(self, pack_id: int, now_s: int) -> None:
        """See GcStore."""
        with self.database.write() as connection:
            connection.execute(
                sa.update(pack)
                .where(pack.c.pack_id == pack_id, pack.c.state == "deleting")
                .values(state="gone", changed_at=now_s)
            )

    def drop_stale(self, now_s: int) -> None:
        """See GcStore."""
        over = sa.or_(session.c.lease_until <= now_s, session.c.closed_at <= now_s)
        with self.database.write() as connection:
            connection.execute(sa.delete(nonce).where(nonce.c.drop_at <= now_s))
            connection.execute(sa.delete(upload).where(upload.c.drop_at <= now_s))
            connection.execute(
                sa.update(session).where(over, session.c.reserved_bytes > 0).values(reserved_bytes=0)
            )

    def known_incarnations(self) -> set[str]:
        """See GcStore."""
        with self.database.read() as connection:
            packs = connection.execute(sa.select(pack.c.incarnation).where(pack.c.state != "gone")).scalars()
            uploads = connection.execute(sa.select(upload.c.incarnation)).scalars()
            return {*packs, *uploads}

    def live_packs(self) -> list[facts.StoredPack]:
        """See GcStore."""
        with self.database.read() as connection:
            rows = connection.execute(sa.select(pack).where(pack.c.state == "live").order_by(pack.c.pack_id))
            return [stored_pack(row) for row in rows]

    def generations_of(self, pack_id: int) -> list[RandomId]:
        """See GcStore."""
        query = sa.select(generation_pack.c.generation).where(generation_pack.c.pack_id == pack_id)
        with self.database.read() as connection:
            return [RandomId.parse(name) for name in connection.execute(query).scalars()]

    def rebuild_pack(
        self, contract: ContractId, incarnation: str, sha256: bytes, of_pack: facts.PackFacts, now_s: int
    ) -> out.Rebuilt:
        """See GcStore."""
        with self.database.write() as connection:
            quota.lock_contract(connection, contract)
            row = connection.execute(sa.select(pack).where(pack.c.incarnation == incarnation)).first()
            if row is not None:
                if row.state not in {"live", "condemned"}:
                    return out.Rebuilt.ON_ITS_WAY_OUT
                connection.execute(sa.delete(chunk).where(chunk.c.pack_id == row.pack_id))
                insert_chunks(connection, row.pack_id, of_pack)
                return out.Rebuilt.REFRESHED
            epoch = connection.execute(
                sa.select(session.c.epoch)
                .join_from(session, device)
                .where(
                    session.c.session == of_pack.session.text,
                    session.c.device == of_pack.device,
                    device.c.contract == contract.text,
                )
            ).scalar()
            if epoch is None:
                return out.Rebuilt.DEVICE_UNKNOWN
            twin = sa.select(pack.c.pack_id).where(
                pack.c.device == of_pack.device,
                pack.c.sha256 == sha256,
                pack.c.state.in_(("live", "condemned")),
            )
            if connection.execute(twin).first() is not None:
                return out.Rebuilt.ON_ITS_WAY_OUT
            insert_pack(
                connection,
                contract,
                epoch,
                facts.Upload(RandomId.parse(incarnation), sha256, of_pack.size_bytes),
                of_pack,
                now_s,
                protected_until=now_s + REBUILT_PROTECTION_S,
            )
            return out.Rebuilt.ADDED


def _unneeded(now_s: int) -> sa.ColumnElement[bool]:
    """Referred to by no generation, protected by no open session and by no rebuild."""
    referred = sa.exists().where(generation_pack.c.pack_id == pack.c.pack_id)
    protected = (
        sa.exists()
        .where(session_pack.c.pack_id == pack.c.pack_id)
        .where(session.c.session == session_pack.c.session)
        .where(session.c.closed_at > now_s, session.c.lease_until > now_s)
    )
    return sa.and_(pack.c.protected_until <= now_s, ~referred, ~protected)
