"""Decisions of the storage service as pure functions: capacity, reservation, retention.

Rules: facts and `now` in, decision out; nothing here reads a clock or a database. Bytes are exact integers.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence

import attrs

from carrier.lines.tables import AccessType, Region
from carrier.storage.tables import (
    BONUS_LINES,
    BONUS_SERVICES,
    GENERATIONS_MAX,
    JST,
    PLANS,
    RESERVE_STEP_BYTES,
    SPREAD_DAYS,
    SPREAD_MONTHS,
    SPREAD_WEEKS,
)


@attrs.frozen
class Entitlement:
    """A service the contractor has in `[valid_from, valid_to)`."""

    service: str
    category: str
    valid_from: int
    valid_to: int


@attrs.frozen
class BoundLine:
    """A line bound to the contract in `[valid_from, valid_to)`."""

    region: Region
    access_type: AccessType
    valid_from: int
    valid_to: int


def decide_capacity(
    plan: str, entitlements: Iterable[Entitlement], lines: Iterable[BoundLine], now_s: int
) -> int:
    """Return the contract's capacity in bytes now (AZK-01…07).

    The bonus counts once, gained at once, lost at the end of the JST month in which its conditions ended.
    """
    row = PLANS[plan]
    bonus = has_bonus(entitlements, lines, now_s)
    return row.capacity_with_bonus_bytes if bonus else row.capacity_bytes


def has_bonus(entitlements: Iterable[Entitlement], lines: Iterable[BoundLine], now_s: int) -> bool:
    """Say whether an eligible service and an eligible line were held at the same time this JST month."""
    month_start = month_start_s(now_s)
    spans = [span for item in entitlements if (span := _eligible_span(item)) is not None]
    line_spans = [
        (line.valid_from, line.valid_to) for line in lines if (line.region, line.access_type) in BONUS_LINES
    ]
    for service_from, service_to in spans:
        for line_from, line_to in line_spans:
            start, end = max(service_from, line_from), min(service_to, line_to)
            if start < end and start <= now_s and end > month_start:
                return True
    return False


def _eligible_span(item: Entitlement) -> tuple[int, int] | None:
    for row in BONUS_SERVICES:
        if (row.service, row.category) == (item.service, item.category):
            end = min(item.valid_to, row.valid_to)
            # AZK-07 names the moment: where the table ends a service, no grace month follows
            return (item.valid_from, end)
    return None


def month_start_s(now_s: int) -> int:
    """Return the first second of the JST month that holds `now_s`."""
    day = dt.datetime.fromtimestamp(now_s, JST)
    return int(dt.datetime(day.year, day.month, 1, tzinfo=JST).timestamp())


@attrs.frozen
class QuotaFacts:
    """What a reservation is decided from, all in bytes, read in the same transaction.

    `used` counts the ciphertext of live packs, each once; `in_flight` the uploads that have begun; `reserved` the
    unspent reservations of every session of the contract, `own` being this session's part of it.
    """

    limit_bytes: int
    used_bytes: int
    in_flight_bytes: int
    reserved_bytes: int
    own_bytes: int

    @property
    def free_bytes(self) -> int:
        """What nobody uses, uploads or has reserved; negative after a plan or bonus was lost (AZK-08)."""
        return self.limit_bytes - self.used_bytes - self.in_flight_bytes - self.reserved_bytes


def decide_reservation(facts: QuotaFacts, size_bytes: int) -> int | None:
    """Return the session's reservation after a pack of `size_bytes` took its place, or None when it does not fit.

    A session that runs short takes another step of `RESERVE_STEP_BYTES`, or what is left.
    """
    if size_bytes <= facts.own_bytes and facts.free_bytes >= 0:
        return facts.own_bytes - size_bytes
    lacking = size_bytes - facts.own_bytes
    if lacking > facts.free_bytes:
        return None
    return facts.own_bytes + max(lacking, min(RESERVE_STEP_BYTES, facts.free_bytes)) - size_bytes


def decide_opening_reservation(facts: QuotaFacts) -> int:
    """Return what a new session has reserved: one step, or what is left of the capacity."""
    return min(RESERVE_STEP_BYTES, max(0, facts.free_bytes + facts.own_bytes))


@attrs.frozen
class KeptGeneration:
    """A generation that counts for retention; order and dates come from the server's receipt time only."""

    generation: str
    sequence: int
    received_at: int


def decide_dropped(kept: Sequence[KeptGeneration]) -> tuple[str, ...]:
    """Return the generations to drop so that at most `GENERATIONS_MAX` stay (AZK-70).

    The newest of each of the last 4 days, 3 weeks and 3 months with a backup (JST) are spared; of the others the
    oldest goes first. So a burst of backups on one day pushes out that day's earlier ones, not the history.
    """
    ordered = sorted(kept, key=lambda item: (item.received_at, item.sequence), reverse=True)
    surplus = len(ordered) - GENERATIONS_MAX
    if surplus <= 0:
        return ()
    spared = _spread(ordered)
    candidates = [item for item in reversed(ordered) if item.generation not in spared]
    return tuple(item.generation for item in candidates[:surplus])


def _spread(newest_first: Sequence[KeptGeneration]) -> set[str]:
    spared: set[str] = set()
    for slots, period in ((SPREAD_DAYS, _day), (SPREAD_WEEKS, _week), (SPREAD_MONTHS, _month)):
        seen: set[tuple[int, ...]] = set()
        for item in newest_first:
            name = period(dt.datetime.fromtimestamp(item.received_at, JST))
            if name not in seen and len(seen) < slots:
                seen.add(name)
                spared.add(item.generation)
    return spared


def _day(time: dt.datetime) -> tuple[int, ...]:
    return (time.year, time.month, time.day)


def _week(time: dt.datetime) -> tuple[int, ...]:
    return time.isocalendar()[:2]


def _month(time: dt.datetime) -> tuple[int, ...]:
    return (time.year, time.month)
