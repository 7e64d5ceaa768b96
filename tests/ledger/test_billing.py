"""What a month costs: the worked examples of the catalogue (JNT-05, JNT-08…13, X-10…14)."""

from __future__ import annotations

import datetime as dt
import random

import pytest

from carrier.ledger import events as ev
from carrier.ledger.billing import bill, postings
from carrier.ledger.rules import Month, tariff_on, tax_percent_on, tier_of
from carrier.ledger.tables import TARIFFS
from runtime.errors import CorruptDataError, LocalError

MIB = 1_048_576
JST = dt.timezone(dt.timedelta(hours=9))
PRICES = TARIFFS[-1].joint


def at(text):
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=JST).timestamp())


def token():
    token.count += 1
    return f"t{token.count:06d}"


token.count = 0


def registered(when, size=7 * MIB, software="acme/lights", work="w1"):
    return ev.SoftwareRegistered(
        at_s=at(when), payer="acme", token=token(), software=software, stored_bytes=size, work=work
    )


def target(when, customer="CAF0000000001", size=2 * MIB):
    return ev.TargetRegistered(
        at_s=at(when),
        payer="acme",
        token=token(),
        software="acme/lights",
        target=customer,
        footprint_bytes=size,
    )


def target_ended(when, customer="CAF0000000001"):
    return ev.TargetEnded(at_s=at(when), payer="acme", token=token(), software="acme/lights", target=customer)


def ended(when):
    return ev.SoftwareEnded(at_s=at(when), payer="acme", token=token(), software="acme/lights")


def month_fees(events, month, payer="acme"):
    lines = bill(events, Month.parse(month), payer).lines
    return {
        line.code: line.amount_yen
        for line in lines
        if "-work" not in line.code and "contract" not in line.code
    }


@pytest.mark.parametrize(
    ("size_bytes", "fee_yen"),
    [
        (0, None),
        (1, 11_000),
        (5_242_879, 11_000),
        (5_242_880, 22_000),
        (10_485_759, 22_000),
        (10_485_760, 33_000),
        (15_728_639, 33_000),
        (15_728_640, 44_000),
        (20_971_519, 44_000),
        (20_971_520, 55_000),
        (26_214_399, 55_000),
        (26_214_400, None),
    ],
)
def test_JNT_05_menus_are_strict_upper_bounds(size_bytes, fee_yen):
    tier = tier_of(PRICES.menus, size_bytes)
    assert (tier and tier.fee_yen) == fee_yen


@pytest.mark.parametrize(
    ("size_bytes", "fee_yen"),
    [
        (0, None),
        (1_572_863, 110),
        (1_572_864, 220),
        (3_145_727, 220),
        (3_145_728, 330),
        (4_718_591, 330),
        (4_718_592, 440),
        (6_291_455, 440),
        (6_291_456, 550),
        (7_864_319, 550),
        (7_864_320, None),
    ],
)
def test_JNT_05_plans_are_strict_upper_bounds(size_bytes, fee_yen):
    tier = tier_of(PRICES.plans, size_bytes)
    assert (tier and tier.fee_yen) == fee_yen


def test_JNT_10_a_year_of_a_thousand_targets():
    events = [registered("2025-04-10 12:00")]
    events += [target("2025-04-10 12:00", f"CAF{n:010d}") for n in range(1000)]
    events += [ended("2025-06-03 09:00")]
    assert month_fees(events, "2025-04") == {}
    assert month_fees(events, "2025-05") == {"basic-fee/menu-2": 22_000, "target-fee/plan-2": 220_000}
    assert month_fees(events, "2025-06") == {"basic-fee/menu-2": 22_000, "target-fee/plan-2": 220_000}
    assert month_fees(events, "2025-07") == {}
    assert bill(events, Month.parse("2025-05"), "acme").total_yen == 242_000


def test_JNT_12_first_registration_costs_29480_once():
    assert bill([registered("2025-04-10 12:00")], Month.parse("2025-04"), "acme").total_yen == 29_480


def test_JNT_12_replacing_costs_26400_and_other_change_5500():
    change = ev.SoftwareChanged(
        at_s=at("2025-05-02 00:00"),
        payer="acme",
        token=token(),
        software="acme/lights",
        stored_bytes=MIB,
        work="w2",
    )
    other = ev.SoftwareAmended(
        at_s=at("2025-07-02 00:00"), payer="acme", token=token(), software="acme/lights", work="w3"
    )
    events = [registered("2025-04-10 12:00"), change, other]
    once = {m: bill(events, Month.parse(m), "acme").total_yen for m in ("2025-05", "2025-07")}
    assert once == {"2025-05": 22_000 + 26_400, "2025-07": 11_000 + 5_500}


def test_JNT_12_two_softwares_in_one_work_cost_57860():
    events = [registered("2025-04-10 12:00"), registered("2025-04-10 12:00", software="acme/blinds")]
    assert bill(events, Month.parse("2025-04"), "acme").total_yen == 57_860


def test_one_work_is_charged_once_even_over_a_month_end():
    events = [registered("2025-04-30 23:00"), registered("2025-05-01 01:00", software="acme/blinds")]
    may = bill(events, Month.parse("2025-05"), "acme")
    assert "base-work-fee" not in {line.code for line in may.lines}


def test_JNT_09_registered_and_ended_in_one_month_is_never_charged_monthly():
    events = [registered("2025-04-01 00:00"), target("2025-04-02 00:00"), ended("2025-04-30 23:59")]
    for month in ("2025-04", "2025-05"):
        assert month_fees(events, month) == {}
    assert bill(events, Month.parse("2025-04"), "acme").total_yen == 29_480


def test_JNT_08_the_month_is_decided_in_japan():
    last_second = registered("2025-04-30 23:59:59")
    assert month_fees([last_second], "2025-05") == {"basic-fee/menu-2": 22_000}
    assert month_fees([registered("2025-05-01 00:00:00")], "2025-05") == {}


def test_a_new_size_counts_from_the_month_after_the_change():
    change = ev.SoftwareChanged(
        at_s=at("2025-06-10 00:00"),
        payer="acme",
        token=token(),
        software="acme/lights",
        stored_bytes=MIB,
        work="w2",
    )
    bigger = ev.TargetChanged(
        at_s=at("2025-06-10 00:00"),
        payer="acme",
        token=token(),
        software="acme/lights",
        target="CAF0000000001",
        footprint_bytes=4 * MIB,
    )
    events = [registered("2025-04-10 12:00"), target("2025-04-11 12:00"), change, bigger]
    assert month_fees(events, "2025-06") == {"basic-fee/menu-2": 22_000, "target-fee/plan-2": 220}
    assert month_fees(events, "2025-07") == {"basic-fee/menu-1": 11_000, "target-fee/plan-3": 330}


def test_a_target_ended_and_registered_again_in_one_month_is_charged_once():
    events = [
        registered("2025-04-10 12:00"),
        target("2025-04-11 12:00"),
        target_ended("2025-06-05 12:00"),
        target("2025-06-20 12:00"),
    ]
    for month in ("2025-05", "2025-06", "2025-07"):
        assert month_fees(events, month)["target-fee/plan-2"] == 220


def test_X_14_storage_plan_of_100_gb_costs_5280_after_its_first_month():
    opened = ev.PlanOpened(
        at_s=at("2025-04-20 12:00"),
        payer="CAF0000000001",
        token=token(),
        contract="AZK0000000001",
        plan="100gb",
    )
    closed = ev.PlanEnded(
        at_s=at("2025-06-01 00:00"), payer="CAF0000000001", token=token(), contract="AZK0000000001"
    )
    events = [opened, closed]
    totals = [bill(events, Month(2025, m), "CAF0000000001").total_yen for m in (4, 5, 6, 7)]
    assert totals == [0, 5_280, 5_280, 0]


@pytest.mark.parametrize(
    ("plan", "fee_yen"),
    [
        ("10gb", 550),
        ("25gb", 1_320),
        ("50gb", 2_640),
        ("100gb", 5_280),
        ("200gb", 10_560),
        ("500gb", 25_300),
        ("1tb", 44_000),
        ("2tb", 77_000),
        ("5tb", 181_500),
    ],
)
def test_AZK_01_each_plan_costs_its_fee_a_month(plan, fee_yen):
    opened = ev.PlanOpened(
        at_s=at("2026-11-20 12:00"), payer="CAF0000000001", token=token(), contract="AZK0000000001", plan=plan
    )
    assert bill([opened], Month.parse("2026-12"), "CAF0000000001").total_yen == fee_yen


def test_X_12_tax_is_inside_the_price_and_rounded_once_per_rate():
    invoice = bill([registered("2025-04-10 12:00")], Month.parse("2025-05"), "acme")
    (tax,) = invoice.taxes
    assert (tax.tax_percent, tax.total_yen, tax.tax_yen) == (10, 22_000, 2_000)
    odd = bill(
        [registered("2025-04-10 12:00"), target("2025-04-10 12:00", size=1)], Month.parse("2025-05"), "acme"
    )
    assert odd.taxes[0].tax_yen == (22_110 * 10) // 110 == 2_010


@pytest.mark.parametrize(
    ("day", "percent"),
    [("2014-03-31", 5), ("2014-04-01", 8), ("2019-09-30", 8), ("2019-10-01", 10), ("2026-12-01", 10)],
)
def test_X_12_tax_history(day, percent):
    assert tax_percent_on(dt.date.fromisoformat(day)) == percent


def test_X_10_the_order_of_independent_events_changes_no_byte():
    events = [
        registered("2025-04-10 12:00"),
        *(target("2025-04-11 12:00", f"CAF{n:010d}") for n in range(50)),
    ]
    first = bill(events, Month.parse("2025-05"), "acme").encode()
    random.Random(1).shuffle(events)
    assert bill(events, Month.parse("2025-05"), "acme").encode() == first


def test_X_10_postings_balance():
    invoice = bill([registered("2025-04-10 12:00")], Month.parse("2025-05"), "acme")
    rows = postings(invoice)
    assert sum(r.debit_yen for r in rows) == sum(r.credit_yen for r in rows) > invoice.total_yen
    assert {r.account for r in rows} == {"receivable/acme", "sales/jnt", "tax-in-sales/10", "tax-payable/10"}
    assert all((r.debit_yen == 0) != (r.credit_yen == 0) for r in rows)


def test_another_payer_pays_nothing_of_it():
    invoice = bill([registered("2025-04-10 12:00")], Month.parse("2025-05"), "other")
    assert (invoice.total_yen, invoice.lines, postings(invoice)) == (0, (), ())


def test_contradicting_events_raise_an_alarm_instead_of_a_wrong_bill():
    change = ev.TargetChanged(
        at_s=at("2025-04-11 12:00"),
        payer="acme",
        token="x",
        software="acme/lights",
        target="C",
        footprint_bytes=1,
    )
    with pytest.raises(CorruptDataError, match="not registered"):
        bill([change], Month.parse("2025-05"), "acme")
    with pytest.raises(CorruptDataError, match="fit no tier"):
        bill([registered("2025-04-10 12:00", size=25 * MIB)], Month.parse("2025-05"), "acme")


def test_two_events_of_one_second_keep_the_order_of_the_ledger():
    first = registered("2025-04-10 12:00")
    change = ev.SoftwareChanged(
        at_s=first.at_s, payer="acme", token="a", software="acme/lights", stored_bytes=MIB, work="w2"
    )
    assert month_fees([first, change], "2025-05") == {"basic-fee/menu-1": 11_000}


def test_events_keep_their_form():
    event = registered("2025-04-10 12:00")
    assert ev.decode_event(ev.encode_event(event)) == event
    with pytest.raises(CorruptDataError):
        ev.decode_event(b'{"type":"unknown"}')


@pytest.mark.parametrize("text", ["2025-13", "2025-1", "25-01", "2025-01-01", ""])
def test_a_month_has_one_form(text):
    with pytest.raises(LocalError, match="YYYY-MM"):
        Month.parse(text)


def test_there_is_no_price_before_the_service_began():
    with pytest.raises(LocalError, match="2011-08-02"):
        tariff_on(dt.date(2011, 8, 1))
