"""Rows shared by the storage stores: the contract's lock, its quota, its protected packs.

Rules
- Whoever changes used, reserved or in-flight bytes holds the contract's row lock (`lock_contract`); on SQLite the
  write transaction is the lock. So the sum is exact at every commit, under any number of writers.
- `used_bytes` = sum of the sizes of live packs, kept in step by every change of state (tests compare both).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import sqlalchemy as sa

from carrier.engines.sql.database import SqlRow
from carrier.engines.sql.schema import (
    device,
    line,
    pack,
    session,
    session_pack,
    storage_contract,
    storage_entitlement,
    storage_line,
    upload,
)
from carrier.lines.domain import FOREVER_S
from carrier.lines.tables import AccessType, Region
from carrier.storage import facts
from carrier.storage.domain import BoundLine, Entitlement, QuotaFacts, decide_capacity
from wire.ids import ContractId
from wire.storage import ID_BYTES

IDS_PER_QUERY: Final = 500
"""Below SQLite's limit of 999 variables in old builds."""


def batches(ids: Sequence[bytes] | bytes) -> Iterator[Sequence[bytes]]:
    """Cut IDs, given as a sequence or one after another in bytes, into lists that fit one query."""
    if isinstance(ids, bytes):
        step = IDS_PER_QUERY * ID_BYTES
        for start in range(0, len(ids), step):
            part = ids[start : start + step]
            yield [part[at : at + ID_BYTES] for at in range(0, len(part), ID_BYTES)]
        return
    for start in range(0, len(ids), IDS_PER_QUERY):
        yield ids[start : start + IDS_PER_QUERY]


def lock_contract(connection: sa.Connection, contract: ContractId) -> SqlRow | None:
    """Return the contract's row, locked until the transaction ends."""
    query = sa.select(storage_contract).where(storage_contract.c.contract == contract.text).with_for_update()
    return connection.execute(query).first()


def contract_runs(connection: sa.Connection, contract: ContractId) -> bool:
    """Say whether the contract is open."""
    query = sa.select(storage_contract.c.ended_at).where(storage_contract.c.contract == contract.text)
    return connection.execute(query).scalar() == FOREVER_S


def lines_of(connection: sa.Connection, contract: ContractId, now_s: int) -> frozenset[int]:
    """Return the lines bound to the contract now (X-03)."""
    query = sa.select(storage_line.c.line_id).where(
        storage_line.c.contract == contract.text,
        storage_line.c.valid_from <= now_s,
        storage_line.c.valid_to > now_s,
    )
    return frozenset(connection.execute(query).scalars())


def session_may_write(connection: sa.Connection, given: facts.SessionFacts, now_s: int) -> SqlRow | None:
    """Return the contract's locked row if session, device and contract are still good; decided under the lock."""
    contract = lock_contract(connection, given.contract)
    row = connection.execute(
        sa.select(session.c.closed_at, session.c.lease_until, device.c.state)
        .join_from(session, device)
        .where(session.c.session == given.session.text)
    ).first()
    good = (
        contract is not None
        and row is not None
        and contract.ended_at > now_s
        and row.closed_at > now_s
        and row.lease_until > now_s
        and row.state == facts.DeviceState.ACTIVE.value
    )
    return contract if good else None


def read_quota(
    connection: sa.Connection, contract: ContractId, plan: str, used_bytes: int, own: str | None, now_s: int
) -> QuotaFacts:
    """Return the quota facts of a contract; `own` names the session whose reservation is counted apart."""
    reserving = sa.select(session.c.session, session.c.reserved_bytes).where(
        session.c.contract == contract.text,
        session.c.reserved_bytes > 0,
        session.c.closed_at > now_s,
        session.c.lease_until > now_s,
    )
    reserved = {row.session: row.reserved_bytes for row in connection.execute(reserving)}
    in_flight = sa.select(sa.func.coalesce(sa.func.sum(upload.c.size_bytes), 0)).where(
        upload.c.contract == contract.text, upload.c.drop_at > now_s
    )
    return QuotaFacts(
        limit_bytes=_capacity(connection, contract, plan, now_s),
        used_bytes=used_bytes,
        in_flight_bytes=int(connection.execute(in_flight).scalar_one()),
        reserved_bytes=sum(reserved.values()),
        own_bytes=0 if own is None else reserved.get(own, 0),
    )


def add_used(connection: sa.Connection, contract: ContractId, change_bytes: int) -> None:
    """Change the used bytes of a locked contract."""
    connection.execute(
        sa.update(storage_contract)
        .where(storage_contract.c.contract == contract.text)
        .values(used_bytes=storage_contract.c.used_bytes + change_bytes)
    )


def revive(
    connection: sa.Connection,
    contract: SqlRow,
    given: facts.SessionFacts,
    packs: Sequence[SqlRow],
    now_s: int,
) -> set[int]:
    """Make condemned packs live again while quota or the session's reservation has room.

    `packs` have `pack_id`, `state`, `size_bytes`; `contract` is the locked row. Returns the IDs of packs that are live
    now.
    """
    live = {row.pack_id for row in packs if row.state == "live"}
    condemned = [row for row in packs if row.state == "condemned"]
    if not condemned:
        return live
    used = connection.execute(
        sa.select(storage_contract.c.used_bytes).where(storage_contract.c.contract == contract.contract)
    ).scalar_one()
    amount = read_quota(connection, given.contract, contract.plan, used, given.session.text, now_s)
    free, own = amount.free_bytes, amount.own_bytes
    for row in condemned:
        from_own = max(0, row.size_bytes - free)
        if from_own > own:
            continue
        # `claim_condemned` may have taken it since it was read: it locks the pack's row, not the contract's.
        revived = connection.execute(
            sa.update(pack)
            .where(pack.c.pack_id == row.pack_id, pack.c.state == "condemned")
            .values(state="live", changed_at=now_s)
        )
        if not revived.rowcount:
            continue
        free, own = free - row.size_bytes + from_own, own - from_own
        live.add(row.pack_id)
        add_used(connection, given.contract, row.size_bytes)
    if own != amount.own_bytes:
        connection.execute(
            sa.update(session).where(session.c.session == given.session.text).values(reserved_bytes=own)
        )
    return live


def protect(connection: sa.Connection, given: facts.SessionFacts, pack_ids: Iterable[int]) -> None:
    """Let the session's lease protect these packs."""
    wanted = set(pack_ids)
    if not wanted:
        return
    already = set(
        connection.execute(
            sa.select(session_pack.c.pack_id).where(session_pack.c.session == given.session.text)
        ).scalars()
    )
    rows = [{"pack_id": pack_id, "session": given.session.text} for pack_id in sorted(wanted - already)]
    if rows:
        connection.execute(sa.insert(session_pack), rows)


def _capacity(connection: sa.Connection, contract: ContractId, plan: str, now_s: int) -> int:
    entitlements = connection.execute(
        sa.select(storage_entitlement).where(storage_entitlement.c.contract == contract.text)
    )
    bound = connection.execute(
        sa.select(
            line.c.region,
            line.c.access_type,
            line.c.ended_at,
            storage_line.c.valid_from,
            storage_line.c.valid_to,
        )
        .join_from(storage_line, line)
        .where(storage_line.c.contract == contract.text)
    )
    return decide_capacity(
        plan,
        [Entitlement(row.service, row.category, row.valid_from, row.valid_to) for row in entitlements],
        [
            BoundLine(
                Region(row.region),
                AccessType(row.access_type),
                row.valid_from,
                min(row.valid_to, row.ended_at),
            )
            for row in bound
        ],
        now_s,
    )
