"""Who may be a delivery target, and what a gateway series can take: data with sources.

Rules: data only. Prices stand in `carrier/ledger/tables.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from carrier.lines.tables import AccessType

ELIGIBLE_ACCESS: Final = frozenset(
    {AccessType.HIKARI_NEXT, AccessType.HIKARI_LIGHT, AccessType.COLLABORATION}
)
"""JNT-20: Light Plus, Light, Next or the same access from a collaboration provider."""


@attrs.frozen
class SeriesLimit:
    """Further limits of one gateway series (JNT-07)."""

    footprint_bytes_max: int
    memory_bytes_max: int


_SERIES_400: Final = SeriesLimit(footprint_bytes_max=6 * 2**20, memory_bytes_max=64 * 2**20)
_SERIES_500: Final = SeriesLimit(footprint_bytes_max=8 * 2**20, memory_bytes_max=128 * 2**20)

SERIES_LIMITS: Final[Mapping[str, SeriesLimit]] = {
    "PR-400": _SERIES_400,
    "RV-440": _SERIES_400,
    "RT-400": _SERIES_400,
    "PR-500": _SERIES_500,
    "RS-500": _SERIES_500,
    "RT-500": _SERIES_500,
}
"""JNT-07. The figures are assumptions: nothing public says what these gateways hold (update.md §2)."""

QUOTE_LIFE_S: Final = 24 * 3600
"""How long a quote can be accepted; its staged file is dropped afterwards."""
