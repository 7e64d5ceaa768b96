"""Charges of storage contracts, taken from the contracts themselves (AZK-01, X-13).

Rules
- Whatever opened or ended a contract, its charge follows from its row: run it after a change, before a bill and in
  upkeep. Repeating it adds nothing, so a crash between contract and charge loses nothing.
- The payer is the customer of the line the contract was opened on.
- It does not do: prices.
"""

from __future__ import annotations

import sqlalchemy as sa

from carrier.engines.sql.database import Database
from carrier.engines.sql.schema import line, storage_contract, storage_line
from carrier.ledger import events as ledger
from carrier.ledger.schema import ledger_event
from carrier.ledger.store import record
from carrier.lines.domain import FOREVER_S

_OPEN = "azk-open/"
_END = "azk-end/"


def record_contracts(database: Database, *, now_s: int) -> int:
    """Record what the ledger does not have yet of openings and ends up to `now_s`; returns how many events."""
    with database.write() as connection:
        opened = _missing(connection, _OPEN, storage_contract.c.opened_at <= now_s)
        for row in opened:
            event: ledger.Event = ledger.PlanOpened(
                at_s=row.opened_at,
                payer=row.customer_id,
                token=f"{_OPEN}{row.contract}",
                contract=row.contract,
                plan=row.plan,
            )
            record(connection, event)
        over = sa.and_(storage_contract.c.ended_at < FOREVER_S, storage_contract.c.ended_at <= now_s)
        ended = _missing(connection, _END, over)
        for row in ended:
            event = ledger.PlanEnded(
                at_s=row.ended_at, payer=row.customer_id, token=f"{_END}{row.contract}", contract=row.contract
            )
            record(connection, event)
    return len(opened) + len(ended)


def _missing(
    connection: sa.Connection, prefix: str, condition: sa.ColumnElement[bool]
) -> list[sa.Row[tuple[object, ...]]]:
    """Return contracts that meet `condition` and have no event `prefix`, with the customer of their first line."""
    token = sa.literal(prefix).concat(storage_contract.c.contract)
    known = sa.exists().where(ledger_event.c.token == token)
    first = (
        sa.select(line.c.customer_id)
        .join(storage_line, storage_line.c.line_id == line.c.line_id)
        .where(storage_line.c.contract == storage_contract.c.contract)
        .order_by(storage_line.c.valid_from, line.c.line_id)
        .limit(1)
        .scalar_subquery()
    )
    table = storage_contract.c
    query = sa.select(table.contract, table.plan, table.opened_at, table.ended_at, first.label("customer_id"))
    return list(
        connection.execute(query.where(condition, sa.not_(known)).order_by(table.opened_at, table.contract))
    )
