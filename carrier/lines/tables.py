"""Numbers and tables of line authentication, each with its source.

Rules: data only; code elsewhere holds no number of this kind.
"""

from __future__ import annotations

import enum
from typing import Final

MAP_REFRESH_S: Final = 0.5
"""How often the change counter is read (design §4)."""

MAP_AGE_S_MAX: Final = 300
"""The last known map may decide for 5 minutes without contact to the database (design §4)."""

SESSION_LIFE_S: Final = 14 * 86_400
"""Longest time a storage session lives without contact (design §6.7)."""

QUARANTINE_S: Final = MAP_AGE_S_MAX + SESSION_LIFE_S
"""Pause between two customers of one prefix (L3): longer than a stale map plus the longest session."""

PREFIX_LENGTH_MIN: Final = 32
PREFIX_LENGTH_MAX: Final = 64
"""/56 by DHCPv6-PD with Hikari Denwa, /64 by RA without (X-03b); a /32 is a whole region, never one line."""

ACCESS_KEY_TRIES_MAX: Final = 5
ACCESS_KEY_LOCK_S: Final = 15 * 60
"""LIN-16, L11: five wrong access keys from the line lock it for 15 minutes."""

REFUSED_RANGES: Final = (
    ("::ffff:0:0/96", "IPv4-mapped"),
    ("::ffff:0:0:0/96", "IPv4-translated"),
    ("64:ff9b::/96", "NAT64"),
    ("64:ff9b:1::/48", "local NAT64"),
    ("2002::/16", "6to4"),
    ("2001::/32", "Teredo"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
)
"""Forms that never name a line (L6): the packed bytes are compared, so another spelling changes nothing."""


class Region(enum.StrEnum):
    """Which company's network the line is on (X-02)."""

    EAST = "east"
    WEST = "west"


class AccessType(enum.StrEnum):
    """What kind of access line it is (X-02)."""

    HIKARI_NEXT = "hikari-next"
    HIKARI_LIGHT = "hikari-light"
    HIKARI_PREMIUM = "hikari-premium"
    COLLABORATION = "collaboration"
