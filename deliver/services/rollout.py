"""Assign a version of a software to lines, or take it away; each line gets a state or a reason (JNT-20…26, JNT-31).

Rules
- A target is a line (customer ID), not a gateway: a swapped gateway is the same target.
- One transaction per line: target row, ledger event, wish for new director documents.
- Repeating a rollout changes nothing and charges nothing.
- It does not do: waves, windows, automatic stop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import sqlalchemy as sa

from carrier.engines.sql.database import Database
from carrier.ledger import events as ledger
from carrier.ledger.store import record
from carrier.lines.domain import Line
from deliver.domain.eligibility import GatewayFacts, VariantFacts, decide_eligibility
from deliver.domain.pricing import Refused
from deliver.engines.schema import joint_gateway, joint_target
from deliver.services.contract_ends import end_target, end_what_ended
from deliver.services.director_documents import (
    WANTED_STATES,
    DirectorDocuments,
    read_variants,
    want_new_document,
)
from deliver.services.operators import Operator
from wire.director import SOFTWARE_PER_GATEWAY_MAX as SOFTWARE_MAX
from wire.errors import FormatError
from wire.ids import CustomerId
from wire.joint import OperatorSubmit, RolloutAnswer, RolloutRequest, RolloutTarget

FindLine = Callable[[CustomerId], Line | None]


@attrs.frozen
class RolloutService:
    """Targets of softwares. Synchronous; in a server run it in a worker thread."""

    database: Database
    documents: DirectorDocuments
    find_line: FindLine

    def roll_out(
        self, operator: Operator, order: OperatorSubmit, request: RolloutRequest, *, now_s: int
    ) -> RolloutAnswer | Refused:
        """Deliver (or end) a version for each customer ID; refusals stand in the answer, one by one."""
        if order.operator != operator.operator.text:
            return Refused(
                "wrong-operator", "JNT-50", f"the order is {order.operator}'s, the key {operator.operator}'s"
            )
        with self.database.read() as connection:
            known = read_variants(connection, order.operator, order.software, order.version)
        if not known:
            message = f"{order.operator}/{order.software} {order.version}: no such version is registered"
            return Refused("not-found", "JNT-31", message)
        end_what_ended(self.database, now_s=now_s)
        variants = [facts for facts, _ in known]
        change = self._install if request.action == "install" else self._remove
        targets = tuple(change(order, variants, customer, now_s) for customer in request.customers)
        self.documents.publish_pending(now_s=now_s)
        return RolloutAnswer(targets=targets)

    def end_what_ended(self, *, now_s: int) -> int:
        """End delivery where line or gateway contract ended (JNT-25), and tell the gateways; returns how many targets."""
        ended = end_what_ended(self.database, now_s=now_s)
        self.documents.publish_pending(now_s=now_s)
        return ended

    def _install(
        self, order: OperatorSubmit, variants: Sequence[VariantFacts], customer: str, now_s: int
    ) -> RolloutTarget:
        try:
            line = self.find_line(CustomerId.parse(customer))
        except FormatError as error:
            return _refused(customer, Refused("bad-format", "JNT-31", str(error)))
        with self.database.write() as connection:
            outcome = decide_eligibility(line, _gateways(connection, customer), variants)
            if isinstance(outcome, Refused):
                return _refused(customer, outcome)
            row = _find_target(connection, order, customer)
            footprint_bytes = outcome.variant.custom.footprint_bytes
            if (row is None or row["state"] == "ended") and _count_softwares(
                connection, customer
            ) >= SOFTWARE_MAX:
                message = f"the line has {SOFTWARE_MAX} softwares already: end one first"
                return _refused(customer, Refused("too-many", "JNT-02", message))
            if row is None or row["state"] not in WANTED_STATES:
                _register(connection, order, customer, row, footprint_bytes, now_s)
            elif row["version"] != order.version:
                _change(connection, order, row, footprint_bytes, now_s)
            else:
                return RolloutTarget(customer=customer, state=row["state"])
            want_new_document(connection, customer)
        return RolloutTarget(customer=customer, state="delivering")

    def _remove(
        self, order: OperatorSubmit, variants: Sequence[VariantFacts], customer: str, now_s: int
    ) -> RolloutTarget:
        with self.database.write() as connection:
            row = _find_target(connection, order, customer)
            if row is None:
                return _refused(
                    customer, Refused("not-found", "JNT-31", "the line is no target of this software")
                )
            if row["state"] not in WANTED_STATES:
                return RolloutTarget(customer=customer, state=row["state"])
            end_target(connection, row, now_s)
        return RolloutTarget(customer=customer, state="ending")


def _refused(customer: str, refusal: Refused) -> RolloutTarget:
    return RolloutTarget(customer=customer, state="refused", rule=refusal.rule, message=refusal.message)


def _gateways(connection: sa.Connection, customer: str) -> list[GatewayFacts]:
    table = joint_gateway.c
    query = (
        sa.select(table.serial, table.model, table.maker)
        .where(table.customer == customer, table.running)
        .order_by(table.serial)
    )
    return [GatewayFacts(serial, model, maker) for serial, model, maker in connection.execute(query)]


def _key(row: sa.RowMapping) -> Any:
    table = joint_target.c
    return sa.and_(
        table.operator == row["operator"],
        table.software == row["software"],
        table.customer == row["customer"],
    )


def _count_softwares(connection: sa.Connection, customer: str) -> int:
    """Count what the line's director documents name: everything not ended."""
    named = sa.and_(joint_target.c.customer == customer, joint_target.c.state != "ended")
    return connection.execute(sa.select(sa.func.count()).select_from(joint_target).where(named)).scalar_one()


def _find_target(connection: sa.Connection, order: OperatorSubmit, customer: str) -> sa.RowMapping | None:
    table = joint_target.c
    where = sa.and_(
        table.operator == order.operator, table.software == order.software, table.customer == customer
    )
    return connection.execute(sa.select(joint_target).where(where).with_for_update()).mappings().first()


def _register(
    connection: sa.Connection,
    order: OperatorSubmit,
    customer: str,
    before: sa.RowMapping | None,
    footprint_bytes: int,
    now_s: int,
) -> None:
    run = 1 if before is None else before["run"] + 1
    values = {
        "operator": order.operator,
        "software": order.software,
        "customer": customer,
        "version": order.version,
        "state": "delivering",
        "run": run,
        "footprint_bytes": footprint_bytes,
        "changed_at": now_s,
    }
    if before is None:
        connection.execute(sa.insert(joint_target), values)
    else:
        connection.execute(sa.update(joint_target).where(_key(before)).values(values))
    event = ledger.TargetRegistered(
        at_s=now_s,
        payer=order.operator,
        token=f"jnt-target/{order.operator}/{order.software}/{customer}/{run}",
        software=f"{order.operator}/{order.software}",
        target=customer,
        footprint_bytes=footprint_bytes,
    )
    record(connection, event)


def _change(
    connection: sa.Connection, order: OperatorSubmit, row: sa.RowMapping, footprint_bytes: int, now_s: int
) -> None:
    values = {
        "version": order.version,
        "state": "delivering",
        "footprint_bytes": footprint_bytes,
        "changed_at": now_s,
    }
    connection.execute(sa.update(joint_target).where(_key(row)).values(values))
    if footprint_bytes == row["footprint_bytes"]:
        return
    event = ledger.TargetChanged(
        at_s=now_s,
        payer=order.operator,
        token=f"jnt-target/{order.operator}/{order.software}/{row['customer']}/{row['run']}/{order.version}/{now_s}",
        software=f"{order.operator}/{order.software}",
        target=row["customer"],
        footprint_bytes=footprint_bytes,
    )
    record(connection, event)
