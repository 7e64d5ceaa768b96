"""`GenerationStore` in SQL: the commit of a generation, and reading generations back.

Steps of a commit across blob store and database, and why a crash at any of them loses nothing acknowledged:
 1. Each pack's blob was published (fsync, rename, fsync of the directory) before its row became *live*
    (`services/packs.py`): a live row always has its whole blob. Crash here: packs nobody refers to; GC takes them.
 2. One write transaction, holding the contract's lock:
    a. session, device and contract are still good; the same root committed before returns its receipt;
    b. the root continues the newest generation of device and backup set;
    c. every reference is in a usable pack of this device and epoch; condemned ones are revived here, so that no
       collector that runs between can take them (it needs the same lock, and finds them referenced);
    d. the generation, its pack references and the signed receipt are inserted; surplus ones go to the trash.
    Crash before the commit record is synced: no generation, no receipt was sent; the NAS commits again.
 3. The receipt is sent only after the transaction is durable (synchronous=FULL). Crash between: the NAS repeats
    the commit and gets the same bytes by (a).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import sqlalchemy as sa

from carrier.engines.sql import quota
from carrier.engines.sql.database import Database, SqlRow
from carrier.engines.sql.packs_store import find_chunks
from carrier.engines.sql.schema import generation, generation_pack, session
from carrier.engines.sql.sessions_store import read_head
from carrier.lines.domain import FOREVER_S
from carrier.storage import facts
from carrier.storage import outcomes as out
from carrier.storage.domain import KeptGeneration, decide_dropped
from carrier.storage.tables import MISSING_LISTED_MAX, TRASH_S
from wire.ids import BackupSetName, ContractId, RandomId
from wire.storage import ID_BYTES, Receipt

CommitRefusal = out.ChunksMissing | out.ParentMismatch | out.CommitConflict | out.SessionStopped


class SqlGenerationStore:
    """See `carrier.storage.ports.GenerationStore`."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def commit(
        self, given: facts.SessionFacts, claim: facts.CommitClaim, signer: facts.ReceiptMaker, now_s: int
    ) -> out.Committed | CommitRefusal:
        """See GenerationStore."""
        with self.database.write() as connection:
            contract = quota.session_may_write(connection, given, now_s)
            if contract is None:
                return out.SessionStopped()
            before = _check_place(connection, given, claim)
            if before is not None:
                return before
            packs = _require_live(connection, contract, given, claim.refs, now_s)
            if isinstance(packs, out.ChunksMissing):
                connection.rollback()
                return packs
            name = RandomId.from_bytes(secrets.token_bytes(16))
            receipt = _make_receipt(given, claim, name, packs, signer, now_s)
            _insert(connection, given, claim, name, packs, receipt, now_s)
            dropped = _drop_surplus(connection, given, now_s)
            return out.Committed(receipt, name, new=True, dropped=dropped)

    def list_generations(self, contract: ContractId, backup_set: BackupSetName) -> list[facts.GenerationRow]:
        """See GenerationStore."""
        query = (
            sa.select(generation)
            .where(
                generation.c.contract == contract.text,
                generation.c.backup_set == backup_set.text,
                generation.c.state != "gone",
            )
            .order_by(generation.c.received_at, generation.c.sequence)
        )
        with self.database.read() as connection:
            return [_generation(row) for row in connection.execute(query)]

    def find_generation(self, contract: ContractId, name: RandomId) -> facts.GenerationRow | None:
        """See GenerationStore."""
        query = sa.select(generation).where(
            generation.c.contract == contract.text,
            generation.c.generation == name.text,
            generation.c.state != "gone",
        )
        with self.database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else _generation(row)

    def find_header(self, contract: ContractId, name: RandomId) -> bytes | None:
        """See GenerationStore."""
        query = sa.select(session.c.header).where(
            session.c.contract == contract.text, session.c.session == name.text, session.c.mode == "append"
        )
        with self.database.read() as connection:
            return connection.execute(query).scalar()


def _check_place(
    connection: sa.Connection, given: facts.SessionFacts, claim: facts.CommitClaim
) -> out.Committed | out.CommitConflict | out.ParentMismatch | None:
    """Steps a and b: a repetition, or a root that does not continue the chain."""
    same = connection.execute(
        sa.select(generation).where(
            generation.c.device == given.device,
            generation.c.backup_set == given.backup_set.text,
            generation.c.root_sha256 == claim.root_sha256,
        )
    ).first()
    if same is not None:
        if same.refs_sha256 != claim.refs_sha256:
            return out.CommitConflict()
        return out.Committed(same.receipt, RandomId.parse(same.generation), new=False)
    head = read_head(connection, given.device, given.backup_set)
    sequence, root_sha256 = head or (0, None)
    if claim.sequence != sequence + 1 or claim.parent_sha256 != root_sha256:
        return out.ParentMismatch(sequence, root_sha256)
    return None


def _require_live(
    connection: sa.Connection, contract: SqlRow, given: facts.SessionFacts, refs: bytes, now_s: int
) -> list[SqlRow] | out.ChunksMissing:
    """Step c: the packs that hold every reference, all live now, or what is missing.

    Memory grows with packs, not with chunks: references are looked up in batches and only counted.
    """
    packs: dict[int, SqlRow] = {}
    found = 0
    for names in quota.batches(refs):
        places = find_chunks(connection, given, names)
        packs.update((row.pack_id, row) for row in places.values())
        found += len(places)
    live = quota.revive(connection, contract, given, list(packs.values()), now_s)
    if found * ID_BYTES == len(refs) and len(live) == len(packs):
        return list(packs.values())
    missing: list[bytes] = []
    count = 0
    for names in quota.batches(refs):
        places = find_chunks(connection, given, names)
        gone = [name for name in names if name not in places or places[name].pack_id not in live]
        count += len(gone)
        missing += gone[: MISSING_LISTED_MAX - len(missing)]
    return out.ChunksMissing(tuple(missing), count)


def _make_receipt(
    given: facts.SessionFacts,
    claim: facts.CommitClaim,
    name: RandomId,
    packs: Sequence[SqlRow],
    signer: facts.ReceiptMaker,
    now_s: int,
) -> bytes:
    return signer(
        Receipt(
            contract=given.contract.text,
            device=given.device.hex(),
            backup_set=given.backup_set.text,
            epoch=given.epoch,
            sequence=claim.sequence,
            generation=name.text,
            root_sha256=claim.root_sha256.hex(),
            refs_sha256=claim.refs_sha256.hex(),
            packs=len(packs),
            stored_bytes=sum(row.size_bytes for row in packs),
            received_at=now_s,
            keep_until=now_s + TRASH_S,
            receipt_key="",
        )
    )


def _insert(
    connection: sa.Connection,
    given: facts.SessionFacts,
    claim: facts.CommitClaim,
    name: RandomId,
    packs: Sequence[SqlRow],
    receipt: bytes,
    now_s: int,
) -> None:
    connection.execute(
        sa.insert(generation).values(
            generation=name.text,
            contract=given.contract.text,
            device=given.device,
            backup_set=given.backup_set.text,
            epoch=given.epoch,
            sequence=claim.sequence,
            session=given.session.text,
            root_sha256=claim.root_sha256,
            refs_sha256=claim.refs_sha256,
            root=claim.root,
            receipt=receipt,
            stored_bytes=sum(row.size_bytes for row in packs),
            received_at=now_s,
            trashed_at=FOREVER_S,
            state="kept",
        )
    )
    if packs:
        rows = [{"pack_id": row.pack_id, "generation": name.text} for row in packs]
        connection.execute(sa.insert(generation_pack), rows)


def _drop_surplus(connection: sa.Connection, given: facts.SessionFacts, now_s: int) -> tuple[str, ...]:
    """Move what retention drops into the trash; references stay, so no byte is lost for 30 days."""
    kept = connection.execute(
        sa.select(generation.c.generation, generation.c.sequence, generation.c.received_at).where(
            generation.c.device == given.device,
            generation.c.backup_set == given.backup_set.text,
            generation.c.state == "kept",
        )
    )
    dropped = decide_dropped([KeptGeneration(*row) for row in kept])
    if dropped:
        connection.execute(
            sa.update(generation)
            .where(generation.c.generation.in_(dropped))
            .values(state="trash", trashed_at=now_s)
        )
    return dropped


def _generation(row: SqlRow) -> facts.GenerationRow:
    return facts.GenerationRow(
        generation=RandomId.parse(row.generation),
        device=row.device,
        sequence=row.sequence,
        root_sha256=row.root_sha256,
        root=row.root,
        receipt=row.receipt,
        received_at=row.received_at,
        trashed_at=row.trashed_at,
        in_trash=row.state == "trash",
        stored_bytes=row.stored_bytes,
    )
