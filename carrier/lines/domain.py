"""Which line does this IPv6 source belong to now (X-03, design §4): one pure function and its types.

Rules
- Longest prefix wins; a row counts only inside its `[valid_from, valid_to)`.
- A map older than `MAP_AGE_S_MAX` decides nothing: `RefusalCode.MAP_STALE`.
- No clock, no database, no header: time and address are arguments.
"""

from __future__ import annotations

import enum
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import attrs

from carrier.lines.addresses import AddressRefused, Prefix, mask_of, parse_peer
from carrier.lines.tables import MAP_AGE_S_MAX, AccessType, Region
from wire.ids import CustomerId

FOREVER_S: Final = 1 << 40
"""`valid_to` of a row without an end; also the form it has in the database."""


class RefusalCode(enum.StrEnum):
    """Why a peer is no line."""

    ADDRESS_FORM = "address-form"
    LINE_UNKNOWN = "line-unknown"
    MAP_STALE = "map-stale"


@attrs.frozen
class Refusal:
    """No line. `reason` is for our log; the peer gets the same answer for every code but `MAP_STALE`."""

    code: RefusalCode
    reason: str


@attrs.frozen
class Line:
    """An access line of one customer (X-01, X-02)."""

    line_id: int
    customer_id: CustomerId
    region: Region
    access_type: AccessType


@attrs.frozen
class PrefixRow:
    """One delegated prefix of one line, valid in `[valid_from, valid_to)` (unix seconds)."""

    prefix: Prefix
    line_id: int
    valid_from: int
    valid_to: int = FOREVER_S


@attrs.frozen
class GatewayRow:
    """An enrolled gateway key and the contract time it is good for, `[valid_from, valid_to)`."""

    key: bytes
    line_id: int
    valid_from: int
    valid_to: int = FOREVER_S


@attrs.frozen
class _Layer:
    """All prefixes of one length, sorted by key and then by start."""

    mask: int
    keys: Sequence[int]
    lines: Sequence[int]
    starts: Sequence[int]
    ends: Sequence[int]

    def find(self, key: int, now_s: float) -> int | None:
        wanted = key & self.mask
        index = bisect_right(self.keys, wanted) - 1
        while index >= 0 and self.keys[index] == wanted:
            if self.starts[index] <= now_s < self.ends[index]:
                return self.lines[index]
            index -= 1
        return None


@attrs.frozen
class LineMap:
    """An immutable picture of the registry: sorted arrays, 28 bytes per prefix, no query on the hot path."""

    change: int
    lines: Mapping[int, Line]
    gateways: Mapping[bytes, GatewayRow]
    _layers: tuple[_Layer, ...]

    @classmethod
    def build(
        cls, change: int, lines: Iterable[Line], prefixes: Iterable[PrefixRow], gateways: Iterable[GatewayRow]
    ) -> LineMap:
        """Return the map of these rows; `change` is the counter they were read with."""
        by_length: dict[int, list[PrefixRow]] = {}
        for row in prefixes:
            by_length.setdefault(row.prefix.length, []).append(row)
        layers = tuple(_layer(length, by_length[length]) for length in sorted(by_length, reverse=True))
        return cls(change, {line.line_id: line for line in lines}, {row.key: row for row in gateways}, layers)

    def find(self, key: int, now_s: float) -> Line | None:
        """Return the line whose longest valid prefix holds the upper address half `key`."""
        for layer in self._layers:
            line_id = layer.find(key, now_s)
            if line_id is not None:
                return self.lines[line_id]
        return None

    def gateway_on_line(self, key: bytes, line_id: int, now_s: float) -> bool:
        """Say whether this gateway key is enrolled on the line under a contract that runs now."""
        return self.knows_gateway(key, now_s) and self.gateways[key].line_id == line_id

    def knows_gateway(self, key: bytes, now_s: float) -> bool:
        """Say whether this gateway key is enrolled anywhere under a contract that runs now."""
        row = self.gateways.get(key)
        return row is not None and row.valid_from <= now_s < row.valid_to


def authenticate(line_map: LineMap, peer_address: str, *, now_s: float, map_age_s: float) -> Line | Refusal:
    """Return the line a socket peer belongs to now, or a refusal.

    Args:
        line_map: the last map read.
        peer_address: the socket's peer address, numeric text. Never a header.
        now_s: unix seconds.
        map_age_s: seconds since the database last confirmed the map.
    """
    if map_age_s > MAP_AGE_S_MAX:
        return Refusal(RefusalCode.MAP_STALE, f"line map is {map_age_s:.0f} s old, limit {MAP_AGE_S_MAX} s")
    key = parse_peer(peer_address)
    if isinstance(key, AddressRefused):
        return Refusal(RefusalCode.ADDRESS_FORM, key.reason)
    line = line_map.find(key, now_s)
    if line is None:
        return Refusal(RefusalCode.LINE_UNKNOWN, "no line holds this prefix now")
    return line


def _layer(length: int, rows: list[PrefixRow]) -> _Layer:
    rows.sort(key=lambda row: (row.prefix.key, row.valid_from))
    return _Layer(
        mask=mask_of(length),
        keys=array("Q", [row.prefix.key for row in rows]),
        lines=array("i", [row.line_id for row in rows]),
        starts=array("q", [row.valid_from for row in rows]),
        ends=array("q", [row.valid_to for row in rows]),
    )
