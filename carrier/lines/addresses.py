"""IPv6 peers and delegated prefixes as packed integers (L6).

Rules
- A peer is the socket's peer address as text; nothing a client can send is ever parsed here.
- A line is named by the upper 64 bits: interface identifiers rotate and are never compared.
- Pure; answers a `Refusal` for every text, raises for none.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Final, Self

import attrs

from carrier.lines.tables import PREFIX_LENGTH_MAX, PREFIX_LENGTH_MIN, REFUSED_RANGES
from wire.errors import FormatError

_REFUSED: Final = tuple(
    (int(network.network_address), int(network.netmask), name)
    for network, name in ((ipaddress.IPv6Network(text), name) for text, name in REFUSED_RANGES)
)


@attrs.frozen
class AddressRefused:
    """The peer address has a form that never names a line; `reason` is for logs, not for the peer."""

    reason: str


@attrs.frozen(order=True)
class Prefix:
    """A delegated prefix: `key` = its upper 64 bits, host part zero; `length` in bits."""

    key: int
    length: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the prefix written as `2001:db8:1::/56`, or raise `FormatError`.

        Host bits must be zero, length 32 to 64, and the prefix outside every range of `REFUSED_RANGES`.
        """
        try:
            network = ipaddress.IPv6Network(text)
        except ValueError as error:
            raise FormatError(f"prefix: expected like '2001:db8:1::/56', got {ascii(text)[:60]}") from error
        if not PREFIX_LENGTH_MIN <= network.prefixlen <= PREFIX_LENGTH_MAX:
            raise FormatError(f"prefix: expected /{PREFIX_LENGTH_MIN} to /{PREFIX_LENGTH_MAX}, got {network}")
        for base, mask, name in _REFUSED:
            if int(network.network_address) & mask == base:
                raise FormatError(f"prefix: {network} lies in the {name} range, which never names a line")
        return cls(int(network.network_address) >> 64, network.prefixlen)

    @property
    def last(self) -> int:
        """The highest upper half inside the prefix."""
        return self.key | ((1 << (64 - self.length)) - 1)

    @property
    def text(self) -> str:
        """The usual spelling."""
        return f"{ipaddress.IPv6Address(self.key << 64)}/{self.length}"


def mask_of(length: int) -> int:
    """Return the 64-bit mask of a prefix length."""
    return ~((1 << (64 - length)) - 1) & 0xFFFF_FFFF_FFFF_FFFF


def parse_peer(host: str) -> int | AddressRefused:
    """Return the upper 64 bits of a peer's IPv6 address, or why it can name no line."""
    try:
        packed = int.from_bytes(socket.inet_pton(socket.AF_INET6, host), "big")
    except (OSError, ValueError, UnicodeError):
        return AddressRefused("not a plain IPv6 address")
    for base, mask, name in _REFUSED:
        if packed & mask == base:
            return AddressRefused(f"{name} address")
    return packed >> 64
