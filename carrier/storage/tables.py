"""Numbers and tables of the storage service, each with its source.

Rules: data only. Capacities are exact bytes (AZK-02: 1 GB = 2^30 bytes, 1 TB = 1,024 GB).
"""

from __future__ import annotations

import datetime as dt
from typing import Final

import attrs

from carrier.lines.tables import SESSION_LIFE_S, AccessType, Region
from wire.units import GIB, MIB, TIB

JST: Final = dt.timezone(dt.timedelta(hours=9))

LEASE_S: Final = SESSION_LIFE_S
"""A session and its packs are protected for 14 days without contact (design §6.7)."""
LEASE_RENEW_S: Final = 3600
"""A lease is written again once it is this much shorter than a new one."""

RESERVE_STEP_BYTES: Final = 256 * MIB
"""Quota is reserved in these steps (design §6.9)."""
UPLOAD_LIFE_S: Final = 3600
"""An upload that has not finished by then has lost its place in the quota."""

GENERATIONS_MAX: Final = 10
"""AZK-70: at most ten generations per backup set."""
SPREAD_DAYS: Final = 4
SPREAD_WEEKS: Final = 3
SPREAD_MONTHS: Final = 3
"""Which ten: the default spread of design §6.8."""
TRASH_S: Final = 30 * 86_400
"""A dropped generation lies this long where no NAS credential reaches it (design §6.8)."""

CONDEMNED_S: Final = 3600
"""A condemned pack can be revived for at least this long."""
ORPHAN_AGE_S: Final = 86_400
"""A blob without any row is removed only when older, and only when the operator asks."""
REBUILT_PROTECTION_S: Final = LEASE_S
"""A pack whose row was rebuilt from its trailer is kept this long without any reference."""

DEVICES_MAX: Final = 999
"""AZK-14: device keys per contract; revoked ones do not count."""
CODE_LIFE_S: Final = 30 * 86_400
"""An enrolment code of an opening notice is good for this long (AZK-18b)."""

MISSING_LISTED_MAX: Final = 4096
"""How many missing chunk IDs one 409 names."""


@attrs.frozen
class Tier:
    """A product tier (AZK-09): capacities it may have, in bytes, what it can do, whether it is sold here."""

    name: str
    capacity_bytes_min: int
    capacity_bytes_max: int
    bonus_bytes: int
    features: frozenset[str]
    sold: bool


_BASIC: Final = frozenset({"backup", "restore", "generations"})
_PAID: Final = _BASIC | {"scheduler", "bulletin-board", "synced-folders"}

TIERS: Final = {
    tier.name: tier
    for tier in (
        Tier("free", 5 * GIB, 5 * GIB, 5 * GIB, _BASIC, sold=False),
        Tier("paid", 10 * GIB, 1000 * GIB, 0, _PAID, sold=False),
        Tier(
            "pro", 10 * GIB, 5 * TIB, 0, _PAID | {"line-authentication", "device-authentication"}, sold=True
        ),
    )
}
"""AZK-09: three tiers can be represented, PRO alone is sold. `bonus_bytes` 0: see the plan, or none is stated."""


@attrs.frozen
class Plan:
    """One row of AZK-01: fee in yen with tax, capacities in bytes."""

    name: str
    requirement: str
    fee_yen: int
    capacity_bytes: int
    capacity_with_bonus_bytes: int
    tier: str = "pro"


PLANS: Final = {
    plan.name: plan
    for plan in (
        Plan("10gb", "AZK-01a", 550, 10 * GIB, 15 * GIB),
        Plan("25gb", "AZK-01b", 1_320, 25 * GIB, 30 * GIB),
        Plan("50gb", "AZK-01c", 2_640, 50 * GIB, 55 * GIB),
        Plan("100gb", "AZK-01d", 5_280, 100 * GIB, 110 * GIB),
        Plan("200gb", "AZK-01e", 10_560, 200 * GIB, 220 * GIB),
        Plan("500gb", "AZK-01f", 25_300, 500 * GIB, 550 * GIB),
        Plan("1tb", "AZK-01g", 44_000, TIB, 11 * TIB // 10),
        Plan("2tb", "AZK-01h", 77_000, 2 * TIB, 22 * TIB // 10),
        Plan("5tb", "AZK-01i", 181_500, 5 * TIB, 55 * TIB // 10),
    )
}

FOR_EVER_S: Final = 1 << 40


@attrs.frozen
class BonusService:
    """A service that gives the bonus until `valid_to` (unix seconds)."""

    service: str
    category: str
    valid_to: int = FOR_EVER_S


BONUS_SERVICES: Final = (
    BonusService("it-support-security", "light"),
    BonusService("it-support-security", "standard"),
    BonusService("remote-support", ""),
    BonusService("members-club", "", int(dt.datetime(2025, 4, 1, tzinfo=JST).timestamp())),
)
"""AZK-05, AZK-07."""

BONUS_LINES: Final = frozenset(
    {
        (Region.EAST, AccessType.HIKARI_NEXT),
        (Region.EAST, AccessType.HIKARI_LIGHT),
        (Region.EAST, AccessType.HIKARI_PREMIUM),
        (Region.EAST, AccessType.COLLABORATION),
        (Region.WEST, AccessType.COLLABORATION),
    }
)
"""AZK-04 (b), X-02: a line of the East company, or a collaboration line."""
