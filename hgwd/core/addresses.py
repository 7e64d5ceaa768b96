"""Which addresses are the LAN side (CVE-2024-47044: a settings page of like gateways answered to the WAN over IPv6).

Rules
- A listener binds to loopback, RFC 1918, ULA or link-local, or inside a prefix the configuration names as LAN; never
  to a wildcard, and never inside a prefix of the WAN interface, whatever else allows it.
- Addresses that carry another one inside (mapped, NAT64, 6to4) are refused outright.
- The same rule is asked again for the peer of every LAN connection: Linux delivers a packet for a LAN address
  whichever interface it came in by.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)
_TRANSLATED = tuple(
    ipaddress.ip_network(text)
    for text in ("::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)


def parse_address(text: str) -> Address | None:
    """Return the address in `text`; an IPv6 zone is cut off. None when it is no literal address."""
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def is_lan_address(address: Address, lan_prefixes: Sequence[Network]) -> bool:
    """Say whether `address` lies on the LAN side by form: private, or inside a configured LAN prefix."""
    if _inside(address, _TRANSLATED):
        return False
    return _inside(address, _PRIVATE) or _inside(address, lan_prefixes)


def why_not_listen(
    host: str, *, lan_prefixes: Sequence[Network], wan_prefixes: Sequence[Network]
) -> str | None:
    """Return the reason not to listen on `host`, or None when it is a LAN address."""
    address = parse_address(host)
    if address is None:
        return f"expected a literal address of the LAN side, got {ascii(host)[:80]}"
    if address.is_unspecified:
        return f"{host} is every address, the WAN side included; name the LAN address"
    if not address.is_loopback and _inside(address, wan_prefixes):
        return f"{host} lies in a prefix of the WAN interface"
    if not is_lan_address(address, lan_prefixes):
        return f"{host} is neither loopback, private, unique local, link-local nor inside lan.prefixes"
    return None


def _inside(address: Address, networks: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
