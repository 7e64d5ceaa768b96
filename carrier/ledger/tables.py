"""Prices and rates, dated, each row with its source. Data only; no other module of the ledger holds a yen figure.

Rules: prices include tax (X-12); M = 2^20 bytes (JNT-05); a tier holds sizes below its bound, never equal.
It does not do: deciding what is charged when (`rules.py`, `billing.py`), the quota of a plan (carrier/storage).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Final

import attrs

from carrier.storage.tables import PLANS

M: Final = 2**20
"""One "M" of the Joint tariff (JNT-05 [R]: the larger M favours the payer)."""


@attrs.frozen
class Tier:
    """One row of a size table: sizes in [1, `below_bytes`) and above the row before cost `fee_yen` a month."""

    name: str
    below_bytes: int
    fee_yen: int


@attrs.frozen
class JointPrices:
    """Flets Joint prices of one period."""

    menus: tuple[Tier, ...]
    plans: tuple[Tier, ...]
    contract_fee_yen: int
    base_work_yen: int
    new_work_yen: int
    change_work_yen: int
    other_work_yen: int


@attrs.frozen
class Tariff:
    """All prices valid from a JST date until the next row; `version` stands on every invoice."""

    version: str
    valid_from: dt.date
    joint: JointPrices
    storage_plans_yen: Mapping[str, int]


TARIFFS: Final = (
    Tariff(
        version="2019-10",
        valid_from=dt.date(2011, 8, 2),  # start of the service; the figures are those of the present edition
        joint=JointPrices(
            menus=(  # JNT-03a…e
                Tier("menu-1", 5 * M, 11_000),
                Tier("menu-2", 10 * M, 22_000),
                Tier("menu-3", 15 * M, 33_000),
                Tier("menu-4", 20 * M, 44_000),
                Tier("menu-5", 25 * M, 55_000),
            ),
            plans=(  # JNT-04a…e
                Tier("plan-1", 3 * M // 2, 110),
                Tier("plan-2", 3 * M, 220),
                Tier("plan-3", 9 * M // 2, 330),
                Tier("plan-4", 6 * M, 440),
                Tier("plan-5", 15 * M // 2, 550),
            ),
            contract_fee_yen=880,  # JNT-11
            base_work_yen=1_100,
            new_work_yen=27_500,
            change_work_yen=25_300,
            other_work_yen=4_400,
        ),
        storage_plans_yen={name: plan.fee_yen for name, plan in PLANS.items()},  # AZK-01a…i
    ),
)

TAX_PERCENT: Final = (  # valid from that JST date on
    (dt.date(1997, 4, 1), 5),
    (dt.date(2014, 4, 1), 8),
    (dt.date(2019, 10, 1), 10),
)

CALENDAR_VERSION: Final = "jst-1"
"""JST without daylight saving decides dates; no holiday changes a bill of today's services."""
