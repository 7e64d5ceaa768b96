"""The prefixes of the WAN interface, as the kernel has them now (Linux: /proc/net/if_inet6 and two ioctls).

Link-local prefixes are left out: every interface has the same one, and a link-local listener names its interface.
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from pathlib import Path
from typing import Final

from hgwd.core.addresses import Network

_IF_INET6: Final = Path("/proc/net/if_inet6")
_SIOCGIFADDR: Final = 0x8915
_SIOCGIFNETMASK: Final = 0x891B
_REQUEST: Final = struct.Struct("16s24x")


def read_wan_prefixes(interface: str | None) -> tuple[Network, ...]:
    """Return the on-link prefixes of `interface`; none when it is not named, not there, or has no address yet."""
    if interface is None:
        return ()
    found: list[Network] = [*_ipv6_prefixes(interface)]
    ipv4 = _ipv4_prefix(interface)
    return (*found, ipv4) if ipv4 is not None else tuple(found)


def _ipv6_prefixes(interface: str) -> list[ipaddress.IPv6Network]:
    try:
        lines = _IF_INET6.read_text("ascii").splitlines()
    except FileNotFoundError:
        return []
    fields = [line.split() for line in lines]
    networks = [
        ipaddress.IPv6Network((bytes.fromhex(field[0]), int(field[2], 16)), strict=False)
        for field in fields
        if field[5] == interface
    ]
    return [network for network in networks if not network.is_link_local]


def _ipv4_prefix(interface: str) -> ipaddress.IPv4Network | None:
    request = _REQUEST.pack(interface.encode("ascii"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            address, mask = (
                fcntl.ioctl(sock, number, request)[20:24] for number in (_SIOCGIFADDR, _SIOCGIFNETMASK)
            )
        except OSError:
            return None
    length = int.from_bytes(mask, "big").bit_count()
    return ipaddress.IPv4Network((address, length), strict=False)
