"""When a month is charged, and by which tier: the policies of X-13 as pure functions.

Rules
- A service running since a month before M, and not ended before M, is charged for M in full (JNT-08, JNT-09, X-13).
- So registered and ended within one month costs no monthly fee; registered again in a month already charged: once.
- A value (size, plan) set in M counts from M + 1 on (JNT ambiguities: tier changes in mid-month).
- It does not do: prices, invoices. Dates are JST, given as `Month`.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Final, Generic, Self, TypeVar

import attrs

from carrier.ledger.tables import TARIFFS, TAX_PERCENT, Tariff, Tier
from runtime.errors import LocalError

JST: Final = dt.timezone(dt.timedelta(hours=9), "JST")
_MONTH: Final = re.compile(r"(20[0-9]{2})-(0[1-9]|1[0-2])")

ValueT = TypeVar("ValueT")


@attrs.frozen(order=True)
class Month:
    """A calendar month of JST, written `2026-12`."""

    year: int
    month: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the month written YYYY-MM (2000 to 2099); raises `LocalError`."""
        match = _MONTH.fullmatch(text)
        if match is None:
            raise LocalError(f"month: expected YYYY-MM, got {ascii(text)[:40]}")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def at(cls, unix_s: int) -> Self:
        """Return the JST month of a moment."""
        date = jst_date(unix_s)
        return cls(date.year, date.month)

    @property
    def first_day(self) -> dt.date:
        """The first day of the month."""
        return dt.date(self.year, self.month, 1)

    def __str__(self) -> str:
        return f"{self.year:04d}-{self.month:02d}"


@attrs.define
class Run(Generic[ValueT]):
    """One running time of a service: from registration to end, with the values it had."""

    start: Month
    values: list[tuple[Month, ValueT]]
    end: Month | None = None

    def value_in(self, month: Month) -> ValueT | None:
        """Return the value to charge `month` by, or None when the month is not charged."""
        if not (self.start < month and (self.end is None or month <= self.end)):
            return None
        return [value for since, value in self.values if since < month][-1]


def charged_value(runs: list[Run[ValueT]], month: Month) -> ValueT | None:
    """Return the one value `month` is charged by, or None; several runs in a month are charged once."""
    values = [value for run in runs if (value := run.value_in(month)) is not None]
    return values[-1] if values else None


def tier_of(tiers: tuple[Tier, ...], size_bytes: int) -> Tier | None:
    """Return the tier of a size, None for 0 and for sizes at or above the last bound (JNT-05)."""
    if size_bytes <= 0:
        return None
    return next((tier for tier in tiers if size_bytes < tier.below_bytes), None)


def tariff_on(date: dt.date) -> Tariff:
    """Return the prices valid on a JST date; raises `LocalError` before the first."""
    valid = [tariff for tariff in TARIFFS if tariff.valid_from <= date]
    if not valid:
        raise LocalError(f"tariff: expected a date from {TARIFFS[0].valid_from} on, got {date}")
    return valid[-1]


def tax_percent_on(date: dt.date) -> int:
    """Return the consumption tax rate of a JST date (X-12); raises `LocalError` before the first row."""
    valid = [percent for since, percent in TAX_PERCENT if since <= date]
    if not valid:
        raise LocalError(f"tax: expected a date from {TAX_PERCENT[0][0]} on, got {date}")
    return valid[-1]


def jst_date(unix_s: int) -> dt.date:
    """Return the JST date of a moment."""
    return dt.datetime.fromtimestamp(unix_s, JST).date()
