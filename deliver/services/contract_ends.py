"""Delivery ends by itself when the line or the gateway contract ends (JNT-25, JNT-26).

Rules
- Taken from the contracts themselves: whatever ended one, the next call finds it (upkeep calls every minute).
- A gateway whose contract ended is told to remove everything; its document lives on, so that it hears of it.
- A line without any running gateway contract loses its targets. A key that was unbound ends nothing.
- It does not do: storage, prices.
"""

from __future__ import annotations

import sqlalchemy as sa

from carrier.engines.sql.database import Database
from carrier.engines.sql.schema import gateway_contract, line
from carrier.ledger import events as ledger
from carrier.ledger.store import record
from deliver.engines.schema import joint_gateway, joint_target
from deliver.services.director_documents import WANTED_STATES, want_new_document


def end_what_ended(database: Database, *, now_s: int) -> int:
    """End gateways and targets whose contracts are over; returns how many targets. Publishing is the caller's."""
    with database.write() as connection:
        runs = _runs(now_s)
        same = sa.and_(runs, gateway_contract.c.serial == joint_gateway.c.serial)
        over = sa.and_(
            joint_gateway.c.running, joint_gateway.c.customer != "", sa.not_(_contract(joint_gateway, same))
        )
        bumped = joint_gateway.c.wanted_version + 1
        connection.execute(sa.update(joint_gateway).where(over).values(running=False, wanted_version=bumped))
        left = sa.and_(joint_target.c.state.in_(WANTED_STATES), sa.not_(_contract(joint_target, runs)))
        rows = connection.execute(sa.select(joint_target).where(left)).mappings().all()
        for row in rows:
            end_target(connection, row, now_s)
    return len(rows)


def end_target(connection: sa.Connection, row: sa.RowMapping, now_s: int) -> None:
    """End one target: state, ledger event, new documents; part of the caller's transaction."""
    table = joint_target.c
    key = sa.and_(
        table.operator == row["operator"],
        table.software == row["software"],
        table.customer == row["customer"],
    )
    connection.execute(sa.update(joint_target).where(key).values(state="ending", changed_at=now_s))
    event = ledger.TargetEnded(
        at_s=now_s,
        payer=row["operator"],
        token=f"jnt-target/{row['operator']}/{row['software']}/{row['customer']}/{row['run']}/end",
        software=f"{row['operator']}/{row['software']}",
        target=row["customer"],
    )
    record(connection, event)
    want_new_document(connection, row["customer"])


def _runs(now_s: int) -> sa.ColumnElement[bool]:
    return sa.and_(
        gateway_contract.c.valid_from <= now_s, gateway_contract.c.valid_to > now_s, line.c.ended_at > now_s
    )


def _contract(owner: sa.Table, condition: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Say whether a gateway contract that meets `condition` runs on the line of `owner.customer`."""
    contracts = sa.select(sa.literal(1)).join_from(
        gateway_contract, line, line.c.line_id == gateway_contract.c.line_id
    )
    return contracts.where(condition, line.c.customer_id == owner.c.customer).correlate(owner).exists()
