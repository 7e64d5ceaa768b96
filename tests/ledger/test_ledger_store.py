"""The books: nothing is changed or charged twice (X-10)."""

from __future__ import annotations

import datetime as dt

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from carrier.engines.sql.database import open_database
from carrier.ledger import events as ev
from carrier.ledger.rules import Month
from carrier.ledger.schema import ledger_event, ledger_invoice, ledger_posting, metadata
from carrier.ledger.store import (
    MonthClosed,
    MonthNotOver,
    close_month,
    has_token,
    read_bill,
    read_events,
    record,
)
from runtime.errors import CorruptDataError

JST = dt.timezone(dt.timedelta(hours=9))


def at(text):
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=JST).timestamp())


def registered(**changes):
    values = {
        "at_s": at("2026-11-20 12:00"),
        "payer": "acme-home",
        "token": "order-1",
        "software": "acme-home/lights",
        "stored_bytes": 1000,
        "work": "order-1",
    }
    return ev.SoftwareRegistered(**{**values, **changes})


@pytest.fixture
def database(tmp_path):
    opened = open_database(f"sqlite:///{tmp_path}/ledger.db")
    with opened.write() as connection:
        metadata.create_all(connection)
    yield opened
    opened.close()


def test_an_order_recorded_twice_counts_once(database):
    with database.write() as connection:
        record(connection, registered())
        record(connection, registered(at_s=at("2026-11-20 12:05")))
        assert len(read_events(connection, "acme-home")) == 1
        assert has_token(connection, "order-1")
        assert not has_token(connection, "order-2")


def test_a_token_of_another_order_is_an_alarm(database):
    with database.write() as connection:
        record(connection, registered())
        with pytest.raises(CorruptDataError, match="order-1"):
            record(connection, registered(stored_bytes=2000))


def test_a_month_is_closed_once_and_again_with_the_same_bytes(database):
    month = Month.parse("2026-11")
    with database.write() as connection:
        record(connection, registered())
        assert close_month(connection, "acme-home", month, now_s=at("2026-11-30 23:59")) == MonthNotOver(
            month
        )
        first = close_month(connection, "acme-home", month, now_s=at("2026-12-01 00:00"))
        assert isinstance(first, MonthClosed)
        assert close_month(connection, "acme-home", month, now_s=at("2026-12-09 00:00")) == first
        assert first.invoice == read_bill(connection, "acme-home", month)
        assert connection.execute(sa.select(ledger_invoice.c.data)).scalars().all() == [
            first.invoice.encode()
        ]
        debit, credit = connection.execute(
            sa.select(sa.func.sum(ledger_posting.c.debit_yen), sa.func.sum(ledger_posting.c.credit_yen))
        ).one()
    assert debit == credit == 29_480 + 2_680


def test_an_event_slipped_into_a_closed_month_is_an_alarm(database):
    month = Month.parse("2026-11")
    with database.write() as connection:
        record(connection, registered())
        close_month(connection, "acme-home", month, now_s=at("2026-12-01 00:00"))
        record(connection, registered(token="late", work="late", software="acme-home/blinds"))
        with pytest.raises(CorruptDataError, match="closed with other content"):
            close_month(connection, "acme-home", month, now_s=at("2026-12-02 00:00"))


def test_events_come_back_in_the_order_they_were_recorded(database):
    with database.write() as connection:
        for name in ("z", "a", "m"):
            record(connection, registered(token=name, work=name))
        assert [event.token for event in read_events(connection, "acme-home")] == ["z", "a", "m"]


def test_a_posting_has_one_side(database):
    row = {"payer": "p", "month": "2026-11", "number": 0, "account": "x", "debit_yen": 1, "credit_yen": 1}
    with pytest.raises(IntegrityError), database.write() as connection:
        connection.execute(sa.insert(ledger_posting), row)


def test_the_ledger_refuses_a_second_row_for_a_token(database):
    row = {"token": "t", "at_s": 1, "payer": "p", "data": b"x"}
    with pytest.raises(IntegrityError), database.write() as connection:
        connection.execute(sa.insert(ledger_event), row)
        connection.execute(sa.insert(ledger_event), row)
