"""Plans, bonus, reservation and retention as pure decisions, restated from the seeds (AZK-01…08, AZK-70)."""

from __future__ import annotations

import datetime as dt
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrier.lines.tables import AccessType, Region
from carrier.storage.domain import (
    BoundLine,
    Entitlement,
    KeptGeneration,
    QuotaFacts,
    decide_capacity,
    decide_dropped,
    decide_opening_reservation,
    decide_reservation,
)
from carrier.storage.tables import PLANS, TIERS

JST = dt.timezone(dt.timedelta(hours=9))
FOREVER = 1 << 40
STEP = 256 * 2**20


def jst(*fields):
    return int(dt.datetime(*fields, tzinfo=JST).timestamp())


@pytest.mark.parametrize(
    ("plan", "fee_yen", "gb", "with_bonus_gb"),
    [
        ("10gb", 550, 10, 15),
        ("25gb", 1_320, 25, 30),
        ("50gb", 2_640, 50, 55),
        ("100gb", 5_280, 100, 110),
        ("200gb", 10_560, 200, 220),
        ("500gb", 25_300, 500, 550),
        ("1tb", 44_000, 1024, Fraction(11, 10) * 1024),
        ("2tb", 77_000, 2048, Fraction(22, 10) * 1024),
        ("5tb", 181_500, 5120, Fraction(55, 10) * 1024),
    ],
)
def test_AZK_01_plan_has_its_fee_and_exact_bytes(plan, fee_yen, gb, with_bonus_gb):
    row = PLANS[plan]
    assert row.fee_yen == fee_yen
    assert row.capacity_bytes == gb * 2**30
    assert row.capacity_with_bonus_bytes == int(with_bonus_gb * 2**30)


def test_AZK_02_exact_byte_counts_of_the_catalogue():
    assert PLANS["10gb"].capacity_bytes == 10_737_418_240
    assert PLANS["10gb"].capacity_with_bonus_bytes == 16_106_127_360
    assert PLANS["1tb"].capacity_bytes == 1_099_511_627_776
    assert PLANS["1tb"].capacity_with_bonus_bytes == 1_209_462_790_553


def test_AZK_09_three_tiers_are_data_and_only_pro_is_sold():
    assert {name for name, tier in TIERS.items() if tier.sold} == {"pro"}
    assert (TIERS["free"].capacity_bytes_max, TIERS["free"].bonus_bytes) == (5 * 2**30, 5 * 2**30)
    assert (TIERS["paid"].capacity_bytes_min, TIERS["paid"].capacity_bytes_max) == (10 * 2**30, 1000 * 2**30)
    assert TIERS["paid"].features - TIERS["free"].features == {
        "scheduler",
        "bulletin-board",
        "synced-folders",
    }
    assert TIERS["pro"].features - TIERS["paid"].features == {"line-authentication", "device-authentication"}


def test_every_plan_fits_its_tier():
    for plan in PLANS.values():
        tier = TIERS[plan.tier]
        assert tier.capacity_bytes_min <= plan.capacity_bytes <= tier.capacity_bytes_max


NOW = jst(2025, 3, 15, 12)
EAST = BoundLine(Region.EAST, AccessType.HIKARI_NEXT, 0, FOREVER)
LIGHT = Entitlement("it-support-security", "light", 0, FOREVER)


@pytest.mark.parametrize(
    ("line", "service", "expected"),
    [
        (EAST, LIGHT, True),
        (EAST, Entitlement("it-support-security", "standard", 0, FOREVER), True),
        (EAST, Entitlement("it-support-security", "premium", 0, FOREVER), False),
        (EAST, Entitlement("remote-support", "", 0, FOREVER), True),
        (EAST, Entitlement("members-club", "", 0, FOREVER), True),
        (EAST, Entitlement("other", "", 0, FOREVER), False),
        (BoundLine(Region.WEST, AccessType.COLLABORATION, 0, FOREVER), LIGHT, True),
        (BoundLine(Region.WEST, AccessType.HIKARI_NEXT, 0, FOREVER), LIGHT, False),
        (BoundLine(Region.EAST, AccessType.COLLABORATION, 0, FOREVER), LIGHT, True),
    ],
)
def test_AZK_04_05_bonus_needs_an_eligible_service_and_line(line, service, expected):
    capacity = decide_capacity("10gb", [service], [line], NOW)
    assert capacity == (15 if expected else 10) * 2**30


def test_AZK_04_service_and_line_must_be_held_at_the_same_time():
    before = Entitlement("remote-support", "", jst(2025, 3, 1), jst(2025, 3, 5))
    later = BoundLine(Region.EAST, AccessType.HIKARI_NEXT, jst(2025, 3, 5), FOREVER)
    assert decide_capacity("10gb", [before], [later], NOW) == 10 * 2**30


def test_AZK_06_several_services_give_the_bonus_once():
    services = [LIGHT, Entitlement("remote-support", "", 0, FOREVER)]
    assert decide_capacity("100gb", services, [EAST, EAST], NOW) == 110 * 2**30


@pytest.mark.parametrize(("now_s", "gb"), [(jst(2025, 3, 31, 23, 59, 59), 15), (jst(2025, 4, 1), 10)])
def test_AZK_07_members_club_alone_gives_nothing_from_2025_04_01(now_s, gb):
    club = Entitlement("members-club", "", 0, FOREVER)
    assert decide_capacity("10gb", [club], [EAST], now_s) == gb * 2**30


@pytest.mark.parametrize(
    ("now_s", "gb"),
    [
        (jst(2025, 6, 9, 23, 59, 59), 10),
        (jst(2025, 6, 10), 15),
        (jst(2025, 6, 20), 15),
        (jst(2025, 6, 30, 23, 59, 59), 15),
        (jst(2025, 7, 1), 10),
    ],
)
def test_bonus_is_gained_at_once_and_lost_at_the_end_of_the_month(now_s, gb):
    service = Entitlement("remote-support", "", jst(2025, 6, 10), jst(2025, 6, 20))
    assert decide_capacity("10gb", [service], [EAST], now_s) == gb * 2**30


AMOUNTS = st.integers(0, 4 * STEP)


@given(limit=AMOUNTS, used=AMOUNTS, in_flight=AMOUNTS, others=AMOUNTS, own=AMOUNTS, size=st.integers(1, STEP))
def test_AZK_03_reservation_never_promises_more_than_the_limit(limit, used, in_flight, others, own, size):
    facts = QuotaFacts(
        limit_bytes=limit,
        used_bytes=used,
        in_flight_bytes=in_flight,
        reserved_bytes=others + own,
        own_bytes=own,
    )
    left = decide_reservation(facts, size)
    fits = used + in_flight + others + size <= limit
    assert (left is not None) == fits
    if left is not None:
        assert left >= 0
        assert used + in_flight + size + others + left <= max(limit, used + in_flight + others + own)


@pytest.mark.parametrize(
    ("free", "own", "size", "expected"),
    [
        (10 * STEP, 0, 100, STEP - 100),
        (10 * STEP, 50, 100, 50 + STEP - 100),
        (10 * STEP, 100, 100, 0),
        (60, 50, 100, 10),
        (50, 50, 100, 0),
        (49, 50, 100, None),
        (0, 0, 1, None),
    ],
)
def test_reservation_grows_by_steps_or_by_what_is_left(free, own, size, expected):
    facts = QuotaFacts(
        limit_bytes=free + own, used_bytes=0, in_flight_bytes=0, reserved_bytes=own, own_bytes=own
    )
    assert decide_reservation(facts, size) == expected


@pytest.mark.parametrize(("free", "expected"), [(10 * STEP, STEP), (5, 5), (0, 0), (-7, 0)])
def test_new_session_reserves_one_step_or_what_is_left(free, expected):
    facts = QuotaFacts(
        limit_bytes=100 * STEP, used_bytes=100 * STEP - free, in_flight_bytes=0, reserved_bytes=0, own_bytes=0
    )
    assert decide_opening_reservation(facts) == expected


def daily(count):
    start = jst(2026, 1, 1, 3)
    return [KeptGeneration(f"{n:032x}", n + 1, start + n * 86_400) for n in range(count)]


def test_AZK_70_ten_generations_stay_and_the_eleventh_pushes_one_out():
    assert decide_dropped(daily(10)) == ()
    assert len(decide_dropped(daily(11))) == 1


def test_daily_backups_keep_four_days_three_weeks_three_months():
    kept, now = [], 0
    for item in daily(200):
        kept.append(item)
        gone = set(decide_dropped(kept))
        kept = [one for one in kept if one.generation not in gone]
        now = item.received_at
    ages = sorted((now - item.received_at) // 86_400 for item in kept)
    assert len(kept) <= 10
    assert ages[:4] == [0, 1, 2, 3]
    assert ages[-1] >= 45


def test_burst_on_one_day_does_not_flush_the_history():
    """Thousand commits of a NAS gone bad: yesterday and the weeks before stay."""
    history = daily(4)
    kept = list(history)
    for number in range(1000):
        kept.append(KeptGeneration(f"{number + 100:032x}", number + 100, jst(2026, 1, 5, 10) + number))
        gone = set(decide_dropped(kept))
        kept = [one for one in kept if one.generation not in gone]
    assert set(history[1:]) <= set(kept)


GENERATIONS = st.lists(
    st.integers(0, 10**7).map(lambda offset: jst(2026, 1, 1) + offset), max_size=40, unique=True
).map(lambda times: [KeptGeneration(f"{n:032x}", n, time) for n, time in enumerate(times)])


@given(GENERATIONS)
def test_retention_keeps_the_newest_and_drops_no_more_than_the_surplus(kept):
    dropped = decide_dropped(kept)
    assert len(dropped) == max(0, len(kept) - 10)
    if kept:
        newest = max(kept, key=lambda item: (item.received_at, item.sequence))
        assert newest.generation not in dropped
