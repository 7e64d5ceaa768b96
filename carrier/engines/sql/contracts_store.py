"""`ContractStore` in SQL: contracts, their lines, codes, entitlements, devices."""

from __future__ import annotations

import sqlalchemy as sa

from carrier.engines.sql import quota
from carrier.engines.sql.database import Database
from carrier.engines.sql.schema import (
    device,
    enrolment_code,
    generation,
    line,
    pack,
    storage_contract,
    storage_entitlement,
    storage_line,
)
from carrier.lines.domain import FOREVER_S
from carrier.storage import facts
from carrier.storage import outcomes as out
from carrier.storage.tables import DEVICES_MAX
from wire.ids import ContractId, CustomerId


class SqlContractStore:
    """See `carrier.storage.ports.ContractStore`."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add_contract(
        self, contract: ContractId, plan: str, customer_id: CustomerId, code: facts.Code, now_s: int
    ) -> out.ContractAdded | out.ContractTaken | out.LineMissing:
        """See ContractStore."""
        with self.database.write() as connection:
            line_id = _running_line(connection, customer_id)
            if line_id is None:
                return out.LineMissing(customer_id)
            taken = sa.select(storage_contract.c.plan).where(storage_contract.c.contract == contract.text)
            if connection.execute(taken).first() is not None:
                return out.ContractTaken(contract)
            connection.execute(
                sa.insert(storage_contract).values(
                    contract=contract.text, plan=plan, opened_at=now_s, ended_at=FOREVER_S
                )
            )
            _insert_line(connection, contract, line_id, now_s)
            _insert_code(connection, contract, code)
            return out.ContractAdded(contract, line_id)

    def add_code(self, contract: ContractId, code: facts.Code) -> bool:
        """See ContractStore."""
        with self.database.write() as connection:
            if not quota.contract_runs(connection, contract):
                return False
            _insert_code(connection, contract, code)
            return True

    def end_contract(self, contract: ContractId, now_s: int) -> bool:
        """See ContractStore."""
        with self.database.write() as connection:
            ended = connection.execute(
                sa.update(storage_contract)
                .where(storage_contract.c.contract == contract.text, storage_contract.c.ended_at > now_s)
                .values(ended_at=now_s)
            )
            return ended.rowcount == 1

    def bind_line(self, contract: ContractId, customer_id: CustomerId, now_s: int) -> bool:
        """See ContractStore."""
        with self.database.write() as connection:
            line_id = _running_line(connection, customer_id)
            if line_id is None or not quota.contract_runs(connection, contract):
                return False
            if line_id in quota.lines_of(connection, contract, now_s):
                return False
            _insert_line(connection, contract, line_id, now_s)
            return True

    def unbind_line(self, customer_id: CustomerId, now_s: int) -> int:
        """See ContractStore."""
        of_customer = sa.select(line.c.line_id).where(line.c.customer_id == customer_id.text)
        with self.database.write() as connection:
            return connection.execute(
                sa.update(storage_line)
                .where(storage_line.c.line_id.in_(of_customer), storage_line.c.valid_to > now_s)
                .values(valid_to=now_s)
            ).rowcount

    def set_entitlement(
        self, contract: ContractId, service: str, category: str, valid_from: int, valid_to: int
    ) -> bool:
        """See ContractStore."""
        key = {"contract": contract.text, "service": service, "category": category, "valid_from": valid_from}
        same = sa.and_(*(storage_entitlement.c[name] == value for name, value in key.items()))
        with self.database.write() as connection:
            if not quota.contract_runs(connection, contract):
                return False
            changed = connection.execute(sa.update(storage_entitlement).where(same).values(valid_to=valid_to))
            if not changed.rowcount:
                connection.execute(sa.insert(storage_entitlement).values(**key, valid_to=valid_to))
            return True

    def set_device_state(self, device_key: bytes, state: facts.DeviceState, now_s: int) -> bool:
        """See ContractStore."""
        with self.database.write() as connection:
            changed = connection.execute(
                sa.update(device)
                .where(device.c.device == device_key, device.c.state != facts.DeviceState.REVOKED.value)
                .values(state=state.value, changed_at=now_s)
            )
            return changed.rowcount == 1

    def find_device(self, device_key: bytes, now_s: int) -> facts.DeviceFacts | None:
        """See ContractStore."""
        query = (
            sa.select(device, storage_contract.c.sign_key, storage_contract.c.ended_at)
            .join_from(device, storage_contract)
            .where(device.c.device == device_key)
        )
        with self.database.read() as connection:
            row = connection.execute(query).first()
            if row is None:
                return None
            contract = ContractId.parse(row.contract)
            return facts.DeviceFacts(
                device=row.device,
                contract=contract,
                state=facts.DeviceState(row.state),
                contract_runs=row.ended_at > now_s,
                sign_key=row.sign_key,
                lines=quota.lines_of(connection, contract, now_s),
            )

    def enrol_device(
        self, claim: facts.DeviceClaim, line_id: int, now_s: int
    ) -> out.DeviceAdded | out.DeviceRefused:
        """See ContractStore."""
        with self.database.write() as connection:
            contract = quota.lock_contract(connection, claim.contract)
            if contract is None or contract.ended_at <= now_s:
                return out.DeviceRefused("contract unknown or over")
            if line_id not in quota.lines_of(connection, claim.contract, now_s):
                return out.DeviceRefused("line is not the contract's")
            code = connection.execute(
                sa.select(enrolment_code).where(
                    enrolment_code.c.code_sha256 == claim.code_sha256,
                    enrolment_code.c.contract == claim.contract.text,
                )
            ).first()
            if code is None or (code.used_by is None and code.valid_to <= now_s):
                return out.DeviceRefused("no such code, or it is over")
            if contract.sign_key is not None and (contract.sign_key, contract.box_key) != (
                claim.sign_key,
                claim.box_key,
            ):
                return out.DeviceRefused("contract keys differ from those pinned at the first enrolment")
            if code.used_by is not None:
                return _repeat(connection, claim, code.used_by)
            return _spend_code(connection, claim, now_s)

    def read_usage(self, contract: ContractId, now_s: int) -> out.Usage | None:
        """See ContractStore."""
        with self.database.read() as connection:
            row = connection.execute(
                sa.select(storage_contract).where(storage_contract.c.contract == contract.text)
            ).first()
            if row is None:
                return None
            amount = quota.read_quota(connection, contract, row.plan, row.used_bytes, None, now_s)
            counts = connection.execute(
                sa.select(generation.c.state, sa.func.count().label("how_many"))
                .where(generation.c.contract == contract.text)
                .group_by(generation.c.state)
            )
            states = {row.state: int(row.how_many) for row in counts}
            live = sa.and_(pack.c.contract == contract.text, pack.c.state == "live")
            return out.Usage(
                contract=contract,
                plan=row.plan,
                limit_bytes=amount.limit_bytes,
                used_bytes=amount.used_bytes,
                in_flight_bytes=amount.in_flight_bytes,
                reserved_bytes=amount.reserved_bytes,
                packs=connection.execute(sa.select(sa.func.count()).where(live)).scalar_one(),
                generations=states.get("kept", 0),
                trashed=states.get("trash", 0),
                devices=_count_devices(connection, contract),
            )


def _running_line(connection: sa.Connection, customer_id: CustomerId) -> int | None:
    return connection.execute(
        sa.select(line.c.line_id).where(line.c.customer_id == customer_id.text, line.c.ended_at == FOREVER_S)
    ).scalar()


def _insert_line(connection: sa.Connection, contract: ContractId, line_id: int, now_s: int) -> None:
    """Bind from now on; a binding that ended in this very second is opened again."""
    row = {"contract": contract.text, "line_id": line_id, "valid_from": now_s}
    same = sa.and_(*(storage_line.c[name] == value for name, value in row.items()))
    again = connection.execute(sa.update(storage_line).where(same).values(valid_to=FOREVER_S))
    if not again.rowcount:
        connection.execute(sa.insert(storage_line).values(**row, valid_to=FOREVER_S))


def _insert_code(connection: sa.Connection, contract: ContractId, code: facts.Code) -> None:
    connection.execute(
        sa.insert(enrolment_code).values(
            code_sha256=code.sha256, contract=contract.text, valid_to=code.valid_to
        )
    )


def _count_devices(connection: sa.Connection, contract: ContractId) -> int:
    query = sa.select(sa.func.count()).where(
        device.c.contract == contract.text, device.c.state != facts.DeviceState.REVOKED.value
    )
    return int(connection.execute(query).scalar_one())


def _repeat(
    connection: sa.Connection, claim: facts.DeviceClaim, used_by: bytes
) -> out.DeviceAdded | out.DeviceRefused:
    known = connection.execute(
        sa.select(device.c.state).where(
            device.c.device == claim.device,
            device.c.contract == claim.contract.text,
            device.c.cert == claim.cert,
        )
    ).scalar()
    if used_by == claim.device and known == facts.DeviceState.ACTIVE.value:
        return out.DeviceAdded(claim.device, first=False)
    return out.DeviceRefused("code was spent")


def _spend_code(
    connection: sa.Connection, claim: facts.DeviceClaim, now_s: int
) -> out.DeviceAdded | out.DeviceRefused:
    if _count_devices(connection, claim.contract) >= DEVICES_MAX:
        return out.DeviceRefused(f"contract has {DEVICES_MAX} devices (AZK-14)")
    if (
        connection.execute(sa.select(device.c.state).where(device.c.device == claim.device)).first()
        is not None
    ):
        return out.DeviceRefused("device key is enrolled already")
    connection.execute(
        sa.update(enrolment_code)
        .where(enrolment_code.c.code_sha256 == claim.code_sha256)
        .values(used_by=claim.device)
    )
    connection.execute(
        sa.update(storage_contract)
        .where(storage_contract.c.contract == claim.contract.text)
        .values(sign_key=claim.sign_key, box_key=claim.box_key)
    )
    connection.execute(
        sa.insert(device).values(
            device=claim.device,
            contract=claim.contract.text,
            cert=claim.cert,
            state=facts.DeviceState.ACTIVE.value,
            enrolled_at=now_s,
            changed_at=now_s,
        )
    )
    return out.DeviceAdded(claim.device, first=True)
