"""Properties of any history of a software: drawn at random, judged by a model that is written from the catalogue."""

from __future__ import annotations

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from carrier.ledger import events as ev
from carrier.ledger.billing import bill, postings
from carrier.ledger.rules import Month

JST = dt.timezone(dt.timedelta(hours=9))
MIB = 1_048_576
MONTHS = [Month(2025, number) for number in range(1, 13)]
MENU_YEN = [(5, 11_000), (10, 22_000), (15, 33_000), (20, 44_000), (25, 55_000)]


def at(month, day):
    return int(dt.datetime(2025, month, day, 12, tzinfo=JST).timestamp())


@st.composite
def histories(draw):
    """Registrations, changes and ends of one software, in order of time, each allowed where it stands."""
    days = draw(
        st.lists(st.tuples(st.integers(1, 12), st.integers(1, 28)), min_size=1, max_size=10, unique=True)
    )
    history, running = [], False
    for number, (month, day) in enumerate(sorted(days)):
        common = {"at_s": at(month, day), "payer": "acme", "token": f"t{number}", "software": "acme/lights"}
        size = draw(st.integers(1, 25 * MIB - 1))
        if not running:
            history.append(ev.SoftwareRegistered(**common, stored_bytes=size, work=f"w{number}"))
            running = True
        elif draw(st.booleans()):
            history.append(ev.SoftwareChanged(**common, stored_bytes=size, work=f"w{number}"))
        else:
            history.append(ev.SoftwareEnded(**common))
            running = False
    return history


def model_fee_yen(history, month):
    """JNT-08, -09: charged by the size at the end of the month before, if it ran then, whatever happens in the month."""
    size = None
    for event in history:
        if Month.at(event.at_s) >= month:
            break
        size = None if isinstance(event, ev.SoftwareEnded) else event.stored_bytes
    return 0 if size is None else next(yen for bound, yen in MENU_YEN if size < bound * MIB)


def monthly_yen(invoice):
    return sum(line.amount_yen for line in invoice.lines if line.rule == "JNT-03")


@given(histories())
def test_every_month_costs_what_the_model_says(history):
    for month in MONTHS:
        assert monthly_yen(bill(history, month, "acme")) == model_fee_yen(history, month)


@given(histories())
def test_what_happens_later_changes_no_earlier_bill(history):
    for count in range(len(history)):
        last = Month.at(history[count].at_s)
        for month in MONTHS:
            if month < last:
                assert bill(history[:count], month, "acme") == bill(history, month, "acme")


@given(histories())
def test_every_bill_balances_and_sums_up(history):
    for month in MONTHS:
        invoice = bill(history, month, "acme")
        rows = postings(invoice)
        assert sum(row.debit_yen for row in rows) == sum(row.credit_yen for row in rows)
        assert sum(line.amount_yen for line in invoice.lines) == invoice.total_yen
        assert sum(tax.total_yen for tax in invoice.taxes) == invoice.total_yen
        assert all(0 <= tax.tax_yen * 11 <= tax.total_yen < (tax.tax_yen + 1) * 11 for tax in invoice.taxes)
