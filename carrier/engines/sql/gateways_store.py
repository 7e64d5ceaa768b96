"""Gateway contracts, enrolments and alarms in SQL: the gateway half of `LineStore`.

An enrolment is decided inside one write transaction by `decide_enrolment` (pure); whatever it refuses leaves an
alarm row and changes nothing else. Alarm rows are counted per (line, serial, kind), so a host that knocks all night
fills one row.
"""

from __future__ import annotations

import sqlalchemy as sa

from carrier.engines.sql.database import Database, SqlRow
from carrier.engines.sql.schema import gateway_alarm, gateway_contract, gateway_enrolment, line, line_change
from carrier.lines import outcomes as out
from carrier.lines.domain import FOREVER_S, Line
from carrier.lines.gateways import ContractFacts, decide_enrolment
from carrier.lines.ports import GatewayClaim
from wire.ids import CustomerId, GatewaySerial, RandomId

_ENROLLED = (
    sa.select(
        gateway_enrolment.c.gateway,
        gateway_enrolment.c.director_path,
        gateway_enrolment.c.key,
        gateway_contract.c.serial,
        gateway_contract.c.model,
        gateway_contract.c.maker,
        line.c.customer_id,
    )
    .join_from(gateway_enrolment, gateway_contract)
    .join(line)
)


class SqlGatewayStore:
    """The gateway half of `carrier.lines.ports.LineStore`."""

    database: Database

    def add_gateway_contract(
        self,
        customer_id: CustomerId,
        serial: GatewaySerial,
        model: str,
        maker: str,
        secret: bytes,
        now_s: int,
    ) -> out.GatewayContracted | out.SerialTaken | out.CustomerUnknown:
        """See LineStore."""
        with self.database.write() as connection:
            _raise_change(connection)
            owner = connection.execute(
                sa.select(line.c.line_id).where(
                    line.c.customer_id == customer_id.text, line.c.ended_at == FOREVER_S
                )
            ).scalar()
            if owner is None:
                return out.CustomerUnknown(customer_id)
            if _running_contract(connection, serial, now_s) is not None:
                return out.SerialTaken(serial)
            connection.execute(
                sa.insert(gateway_contract).values(
                    line_id=owner,
                    serial=serial.text,
                    model=model,
                    maker=maker,
                    secret=secret,
                    valid_from=now_s,
                    valid_to=FOREVER_S,
                )
            )
            return out.GatewayContracted(serial, customer_id)

    def end_gateway_contract(
        self, serial: GatewaySerial, at: int
    ) -> out.GatewayContractEnded | out.SerialUnknown:
        """See LineStore."""
        with self.database.write() as connection:
            _raise_change(connection)
            ended = connection.execute(
                sa.update(gateway_contract)
                .where(gateway_contract.c.serial == serial.text, gateway_contract.c.valid_to > at)
                .values(valid_to=at)
            )
            return out.GatewayContractEnded(serial, at) if ended.rowcount else out.SerialUnknown(serial)

    def enrol_gateway(
        self, on_line: Line, claim: GatewayClaim, gateway: RandomId, director_path: RandomId, now_s: int
    ) -> out.GatewayEnrolled | out.EnrolmentRefused:
        """See LineStore."""
        with self.database.write() as connection:
            contract = _running_contract(connection, claim.serial, now_s)
            facts = None if contract is None else _facts(connection, contract)
            key_in_use = connection.execute(
                sa.select(gateway_enrolment.c.gateway_contract_id).where(gateway_enrolment.c.key == claim.key)
            ).scalar()
            decision = decide_enrolment(on_line, claim, facts, key_in_use=key_in_use)
            if isinstance(decision, out.EnrolmentRefused):
                _write_alarm(connection, on_line, claim, decision.alarm, now_s)
                return decision
            if decision.first:
                _raise_change(connection)
                connection.execute(
                    sa.insert(gateway_enrolment).values(
                        gateway=gateway.text,
                        gateway_contract_id=decision.contract_id,
                        key=claim.key,
                        director_path=director_path.text,
                        enrolled_at=now_s,
                    )
                )
            row = connection.execute(_ENROLLED.where(gateway_enrolment.c.key == claim.key)).one()
            return _enrolled(row, first=decision.first)

    def forget_gateway_key(self, serial: GatewaySerial, now_s: int) -> bool:
        """See LineStore."""
        with self.database.write() as connection:
            _raise_change(connection)
            contract = _running_contract(connection, serial, now_s)
            if contract is None:
                return False
            forgotten = connection.execute(
                sa.delete(gateway_enrolment).where(
                    gateway_enrolment.c.gateway_contract_id == contract.gateway_contract_id
                )
            )
            return forgotten.rowcount == 1

    def find_gateway(self, key: bytes, now_s: int) -> out.GatewayEnrolled | None:
        """See LineStore."""
        with self.database.read() as connection:
            row = connection.execute(_ENROLLED.where(gateway_enrolment.c.key == key, _runs(now_s))).first()
        return None if row is None else _enrolled(row, first=False)

    def list_gateways(self, now_s: int) -> tuple[out.GatewayEnrolled, ...]:
        """See LineStore."""
        with self.database.read() as connection:
            rows = connection.execute(_ENROLLED.where(_runs(now_s)).order_by(gateway_contract.c.serial))
            return tuple(_enrolled(row, first=False) for row in rows)

    def list_alarms(self) -> tuple[out.GatewayAlarm, ...]:
        """See LineStore."""
        query = (
            sa.select(gateway_alarm, line.c.customer_id)
            .join_from(gateway_alarm, line)
            .order_by(gateway_alarm.c.last_at.desc())
        )
        with self.database.read() as connection:
            return tuple(
                out.GatewayAlarm(
                    CustomerId.parse(row.customer_id),
                    row.serial,
                    row.kind,
                    row._mapping["count"],  # noqa: SLF001 - Row.count is tuple's method; _mapping is public API
                    row.first_at,
                    row.last_at,
                    row.last_key,
                )
                for row in connection.execute(query)
            )


def _runs(now_s: int) -> sa.ColumnElement[bool]:
    return sa.and_(gateway_contract.c.valid_from <= now_s, gateway_contract.c.valid_to > now_s)


def _raise_change(connection: sa.Connection) -> None:
    connection.execute(sa.update(line_change).values(counter=line_change.c.counter + 1))


def _running_contract(connection: sa.Connection, serial: GatewaySerial, now_s: int) -> SqlRow | None:
    query = sa.select(gateway_contract).where(gateway_contract.c.serial == serial.text, _runs(now_s))
    return connection.execute(query.with_for_update()).first()


def _facts(connection: sa.Connection, contract: SqlRow) -> ContractFacts:
    bound = connection.execute(
        sa.select(gateway_enrolment.c.key).where(
            gateway_enrolment.c.gateway_contract_id == contract.gateway_contract_id
        )
    ).scalar()
    return ContractFacts(
        contract.gateway_contract_id, contract.line_id, contract.model, contract.maker, contract.secret, bound
    )


def _write_alarm(
    connection: sa.Connection, on_line: Line, claim: GatewayClaim, kind: str, now_s: int
) -> None:
    same = sa.and_(
        gateway_alarm.c.line_id == on_line.line_id,
        gateway_alarm.c.serial == ("*" if kind == "serial-unknown" else claim.serial.text),
        gateway_alarm.c.kind == kind,
    )
    counted = connection.execute(
        sa.update(gateway_alarm)
        .where(same)
        .values({"count": gateway_alarm.c["count"] + 1, "last_at": now_s, "last_key": claim.key})
    )
    if counted.rowcount:
        return
    connection.execute(
        sa.insert(gateway_alarm).values(
            {
                "line_id": on_line.line_id,
                "serial": "*" if kind == "serial-unknown" else claim.serial.text,
                "kind": kind,
                "count": 1,
                "first_at": now_s,
                "last_at": now_s,
                "last_key": claim.key,
            }
        )
    )


def _enrolled(row: SqlRow, *, first: bool) -> out.GatewayEnrolled:
    return out.GatewayEnrolled(
        gateway=RandomId.parse(row.gateway),
        director_path=RandomId.parse(row.director_path),
        serial=GatewaySerial.parse(row.serial),
        model=row.model,
        maker=row.maker,
        customer_id=CustomerId.parse(row.customer_id),
        key=row.key,
        first=first,
    )
