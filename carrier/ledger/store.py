"""Ledger rows in SQL. Each function works inside the caller's transaction, so that an event and its cause commit together.

Rules
- `record` is idempotent by token; the same token with other content is a fault, never a second charge.
- `close_month` writes invoice and postings once; closing again compares byte for byte.
- It does not do: transactions, prices.
"""

from __future__ import annotations

import attrs
import sqlalchemy as sa

from carrier.ledger.billing import Invoice, bill, postings
from carrier.ledger.events import Event, decode_event, encode_event
from carrier.ledger.rules import Month
from carrier.ledger.schema import ledger_event, ledger_invoice, ledger_posting
from runtime.errors import CorruptDataError


@attrs.frozen
class MonthClosed:
    """The invoice stands in the books."""

    invoice: Invoice


@attrs.frozen
class MonthNotOver:
    """The month is not over: its invoice could still change."""

    month: Month


def record(connection: sa.Connection, event: Event) -> None:
    """Append an event. Raises `CorruptDataError` when its token stands for another event."""
    data = encode_event(event)
    stored = connection.execute(
        sa.select(ledger_event.c.data).where(ledger_event.c.token == event.token)
    ).scalar()
    if stored is None:
        row = {"token": event.token, "at_s": event.at_s, "payer": event.payer, "data": data}
        connection.execute(sa.insert(ledger_event), row)
    elif _without_time(decode_event(stored)) != _without_time(event):
        raise CorruptDataError(f"ledger: token {event.token} stands for another event")


def has_token(connection: sa.Connection, token: str) -> bool:
    """Say whether the order of this token is recorded."""
    row = connection.execute(sa.select(ledger_event.c.at_s).where(ledger_event.c.token == token)).first()
    return row is not None


def read_events(connection: sa.Connection, payer: str) -> list[Event]:
    """Return all events of a payer in the order they were recorded."""
    query = sa.select(ledger_event.c.data).where(ledger_event.c.payer == payer)
    rows = connection.execute(query.order_by(ledger_event.c.number))
    return [decode_event(data) for (data,) in rows]


def read_bill(connection: sa.Connection, payer: str, month: Month) -> Invoice:
    """Return the bill of a payer and month as the events stand now."""
    return bill(read_events(connection, payer), month, payer)


def close_month(
    connection: sa.Connection, payer: str, month: Month, *, now_s: int
) -> MonthClosed | MonthNotOver:
    """Write invoice and postings of a month that is over (JST).

    Raises `CorruptDataError` when the month was closed with other bytes: corrections are new events of a later month.
    """
    if Month.at(now_s) <= month:
        return MonthNotOver(month)
    invoice = read_bill(connection, payer, month)
    key = {"payer": payer, "month": str(month)}
    where = sa.and_(ledger_invoice.c.payer == payer, ledger_invoice.c.month == str(month))
    stored = connection.execute(sa.select(ledger_invoice.c.data).where(where)).scalar()
    if stored is None:
        connection.execute(sa.insert(ledger_invoice), {**key, "data": invoice.encode(), "closed_at": now_s})
        for number, row in enumerate(postings(invoice)):
            values = {"account": row.account, "debit_yen": row.debit_yen, "credit_yen": row.credit_yen}
            connection.execute(sa.insert(ledger_posting), {**key, "number": number, **values})
    elif stored != invoice.encode():
        raise CorruptDataError(
            f"ledger: {payer} {month} was closed with other content than the events give now"
        )
    return MonthClosed(invoice)


def _without_time(event: Event) -> tuple[object, ...]:
    return (type(event), *(getattr(event, name) for name in event.__struct_fields__ if name != "at_s"))
