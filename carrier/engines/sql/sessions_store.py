"""`SessionStore` in SQL: nonces, sessions, leases, opening reservations."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from carrier.engines.sql import quota
from carrier.engines.sql.database import Database, SqlRow
from carrier.engines.sql.schema import device, generation, nonce, session, storage_contract
from carrier.lines.domain import FOREVER_S
from carrier.storage import facts
from carrier.storage import outcomes as out
from carrier.storage.domain import decide_opening_reservation
from wire.ids import BackupSetName, ContractId, RandomId


class SqlSessionStore:
    """See `carrier.storage.ports.SessionStore`."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def use_nonce(self, signer: bytes, spent: RandomId, drop_at: int) -> bool:
        """See SessionStore."""
        try:
            with self.database.write() as connection:
                connection.execute(sa.insert(nonce).values(signer=signer, nonce=spent.text, drop_at=drop_at))
        except IntegrityError:
            return False
        return True

    def open_session(
        self, new: facts.NewSession, now_s: int
    ) -> out.SessionGranted | out.SessionConflict | out.ContractOver:
        """See SessionStore."""
        with self.database.write() as connection:
            contract = quota.lock_contract(connection, new.contract)
            if contract is None or contract.ended_at <= now_s:
                return out.ContractOver()
            same = connection.execute(sa.select(session).where(session.c.session == new.session.text)).first()
            if same is not None and not _is_repeat(same, new):
                return out.SessionConflict()
            if same is None:
                _insert(connection, new, now_s)
            else:
                connection.execute(
                    sa.update(session)
                    .where(session.c.session == new.session.text)
                    .values(
                        token_sha256=new.token_sha256,
                        gateway_key=new.gateway_key,
                        lease_until=new.lease_until,
                    )
                )
            reserved = _move_reservation(connection, contract, new, now_s) if new.header else 0
            amount = quota.read_quota(
                connection, new.contract, contract.plan, contract.used_bytes, None, now_s
            )
            return out.SessionGranted(
                session=new.session,
                lease_until=new.lease_until,
                limit_bytes=amount.limit_bytes,
                used_bytes=amount.used_bytes,
                reserved_bytes=reserved,
                head=read_head(connection, new.device, new.backup_set),
            )

    def find_session(self, token_sha256: bytes, now_s: int) -> facts.SessionFacts | None:
        """See SessionStore."""
        query = (
            sa.select(session, device.c.state, storage_contract.c.ended_at)
            .join_from(session, device, session.c.device == device.c.device)
            .join(storage_contract, session.c.contract == storage_contract.c.contract)
            .where(session.c.token_sha256 == token_sha256)
        )
        with self.database.read() as connection:
            row = connection.execute(query).first()
            if row is None:
                return None
            contract = ContractId.parse(row.contract)
            return facts.SessionFacts(
                session=RandomId.parse(row.session),
                contract=contract,
                device=row.device,
                backup_set=BackupSetName.parse(row.backup_set),
                mode=facts.Mode(row.mode),
                epoch=row.epoch,
                gateway_key=row.gateway_key,
                lease_until=row.lease_until,
                closed=row.closed_at <= now_s,
                device_state=facts.DeviceState(row.state),
                contract_runs=row.ended_at > now_s,
                lines=quota.lines_of(connection, contract, now_s),
            )

    def renew_session(self, renewed: RandomId, lease_until: int) -> None:
        """See SessionStore."""
        with self.database.write() as connection:
            connection.execute(
                sa.update(session)
                .where(session.c.session == renewed.text, session.c.lease_until < lease_until)
                .values(lease_until=lease_until)
            )

    def close_session(self, closed: RandomId, now_s: int) -> None:
        """See SessionStore."""
        with self.database.write() as connection:
            connection.execute(
                sa.update(session)
                .where(session.c.session == closed.text, session.c.closed_at > now_s)
                .values(closed_at=now_s, reserved_bytes=0)
            )


def read_head(
    connection: sa.Connection, device_key: bytes, backup_set: BackupSetName
) -> tuple[int, bytes] | None:
    """Return (sequence, root hash) of a device's newest generation in a backup set, expired ones included."""
    row = connection.execute(
        sa.select(generation.c.sequence, generation.c.root_sha256)
        .where(generation.c.device == device_key, generation.c.backup_set == backup_set.text)
        .order_by(generation.c.sequence.desc())
        .limit(1)
    ).first()
    return None if row is None else (row.sequence, row.root_sha256)


def _is_repeat(row: SqlRow, new: facts.NewSession) -> bool:
    return bool(
        (row.device, row.contract, row.header, row.backup_set)
        == (new.device, new.contract.text, new.header, new.backup_set.text)
        and row.closed_at == FOREVER_S
        and new.header
    )


def _insert(connection: sa.Connection, new: facts.NewSession, now_s: int) -> None:
    connection.execute(
        sa.insert(session).values(
            session=new.session.text,
            token_sha256=new.token_sha256,
            contract=new.contract.text,
            device=new.device,
            backup_set=new.backup_set.text,
            mode=new.mode.value,
            epoch=new.epoch,
            header=new.header,
            gateway_key=new.gateway_key,
            opened_at=now_s,
            lease_until=new.lease_until,
            closed_at=FOREVER_S,
            reserved_bytes=0,
        )
    )


def _move_reservation(connection: sa.Connection, contract: SqlRow, new: facts.NewSession, now_s: int) -> int:
    """Give the reservation of the device's earlier sessions of this backup set to the new one.

    An agent that starts again after a crash would otherwise leave one step reserved per crash for 14 days.
    """
    connection.execute(
        sa.update(session)
        .where(session.c.device == new.device, session.c.backup_set == new.backup_set.text)
        .values(reserved_bytes=0)
    )
    amount = quota.read_quota(connection, new.contract, contract.plan, contract.used_bytes, None, now_s)
    reserved = decide_opening_reservation(amount)
    connection.execute(
        sa.update(session).where(session.c.session == new.session.text).values(reserved_bytes=reserved)
    )
    return reserved
