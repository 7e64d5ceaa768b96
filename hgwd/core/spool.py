"""Admission to the spool and the words for what lies in it (design §6, §6.10). Pure decisions.

Rules
- *spooled*: fsynced here. *stored*: in the service. *rejected*: refused by the service for good, kept until the NAS
  has acknowledged or `REJECTED_KEEP_S`. *lost*: acknowledged once and not here any more; an alarm, answered as unknown
  so that the NAS sends it again from its journal.
- Admission is decided from Content-Length before a byte of the body is read. At the high-water mark nobody gets in.
- Fair share: while several devices want the spool, none holds more than an equal part of the room below the mark. A
  device that holds nothing is never refused for its share.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

import attrs

REJECTED_KEEP_S: Final = 7 * 24 * 3600
OVER_KEEP_S: Final = 14 * 24 * 3600
SESSION_KEEP_S: Final = 60 * 24 * 3600
"""A session opened longer ago, with nothing of it waiting here, is forgotten; its lease ended long before."""
STORED_ROWS_MAX: Final = 10_000
WANTED_S: Final = 120.0
RETRY_AFTER_LINE_UP_S: Final = 2
RETRY_AFTER_LINE_DOWN_S: Final = 5
FREE_RESERVE_BYTES: Final = 1 << 20


class PackState(enum.IntEnum):
    """States of a pack as `POST sessions/{s}/state` answers them (protocols §3)."""

    UNKNOWN = 0
    SPOOLED = 1
    STORED = 2
    REJECTED = 3


@attrs.frozen
class SpoolLimits:
    """What the profile allows, in bytes."""

    bytes_max: int
    pack_bytes_max: int
    high_water_percent: int = 80

    @property
    def high_water_bytes(self) -> int:
        """Fill from which nothing more is admitted."""
        return self.bytes_max * self.high_water_percent // 100


@attrs.frozen
class Admitted:
    """The pack may come in; its bytes are reserved from now on."""


@attrs.frozen
class TooLarge:
    """The pack would never fit: not worth a retry."""

    limit_bytes: int


@attrs.frozen
class Full:
    """Try again after `retry_after_s`; `cause` is for metrics and the log."""

    retry_after_s: int
    cause: str


def decide_admission(
    *,
    size_bytes: int,
    device: str,
    used_bytes: Mapping[str, int],
    wanting: frozenset[str],
    free_bytes: int,
    line_up: bool,
    limits: SpoolLimits,
) -> Admitted | TooLarge | Full:
    """Decide whether a pack of `size_bytes` from `device` may come in now.

    Args:
        size_bytes: the request's Content-Length, ≥ 0.
        device: the LAN device that sends.
        used_bytes: bytes per device that lie in the spool or are being received.
        wanting: devices that asked within `WANTED_S`.
        free_bytes: what the file system has left.
        line_up: whether packs are leaving just now; sets the pause only.
        limits: of the profile.
    """
    if size_bytes > min(limits.pack_bytes_max, limits.bytes_max):
        return TooLarge(min(limits.pack_bytes_max, limits.bytes_max))
    retry_after_s = RETRY_AFTER_LINE_UP_S if line_up else RETRY_AFTER_LINE_DOWN_S
    total_bytes = sum(used_bytes.values())
    if total_bytes >= limits.high_water_bytes or total_bytes + size_bytes > limits.bytes_max:
        return Full(retry_after_s, "high-water")
    if size_bytes + FREE_RESERVE_BYTES > free_bytes:
        return Full(retry_after_s, "flash-full")
    own_bytes = used_bytes.get(device, 0)
    holders = frozenset(name for name, held_bytes in used_bytes.items() if held_bytes > 0)
    share_bytes = limits.high_water_bytes // len(wanting | holders | {device})
    if own_bytes > 0 and own_bytes + size_bytes > share_bytes and len(wanting | {device}) > 1:
        return Full(retry_after_s, "fair-share")
    return Admitted()


@attrs.frozen
class Spooled:
    """Acknowledge: the pack lies here (`fresh` false: it did already)."""

    fresh: bool


@attrs.frozen
class AlreadyStored:
    """The service has the pack in this very session."""


@attrs.frozen
class AlreadyRejected:
    """The service refused the pack for good in this session."""

    reason: str


@attrs.frozen
class WrongHash:
    """The bytes do not hash to the name; nothing is kept."""

    found: str


@attrs.frozen
class NoLongerAllowed:
    """The device was revoked while it sent; nothing is kept."""


@attrs.frozen
class IntakeStopped:
    """The flash failed; nothing is accepted until the next start."""


Reception = (
    Spooled | AlreadyStored | AlreadyRejected | TooLarge | Full | WrongHash | NoLongerAllowed | IntakeStopped
)
"""What becomes of a pack that a device offers."""
