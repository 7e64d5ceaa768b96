"""Lay out the lab network: names, addresses, and the text fed to `ip -batch` and `nft -f`.

Pure: a spec and numbers in, names and command text out; nothing is run here.

    carrier ──── router ──┬── gw1 ──── nas1      line 1: 2001:db8:1:100::/56
     2001:db8:f:1::10     └── gw2 ──── nas2      line 2: 2001:db8:1:200::/56

Rules
- All addresses are documentation or private space: nothing here can reach a real network.
- Each line has its own /56 (Hikari Denwa, DHCPv6-PD); the gateway's WAN address is `…00::1`, as real lines give no
  IA_NA. The LAN has 192.168.N.1/24 with N = 1 on every line, a ULA /64, and the /64 `…01::/64` of the delegated prefix,
  so that a NAS also has an address that belongs to the line.
- The router forwards a source address only from the line that owns it (BCP 38) and counts what it drops.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

import attrs

from firmware_sim.faults import Cut, LineFaults

LINES_MAX = 200
CARRIER_ADDRESS = "2001:db8:f:1::10"
CARRIER_PREFIX = "2001:db8:f::/48"
ROUTER_ADDRESS = "2001:db8:f:1::1"
LAN_GATEWAY_IPV4 = "192.168.1.1"
LAN_NAS_IPV4 = "192.168.1.10"
# Priority -300 is "raw": the filter sees the packet before connection tracking and routing.
_FILTER = """\
table inet lab_source {
  counter forged { }
  chain pre {
    type filter hook prerouting priority -300; policy accept;
    ip6 saddr fe80::/10 accept
    ip6 saddr :: accept
    iifname "l*" fib saddr . iif oif missing counter name forged drop
  }
}
table inet lab_faults {
  chain broken {
    type filter hook forward priority 0; policy accept;
  }
}
"""


@attrs.frozen
class LineAddresses:
    """The addresses of line `number` in its `generation`-th numbering (0 at the start, +1 per renumbering)."""

    number: int
    generation: int

    @property
    def prefix(self) -> ipaddress.IPv6Network:
        """Return the delegated /56."""
        return ipaddress.IPv6Network(f"2001:db8:{self.generation + 1:x}:{self.number:x}00::/56")

    @property
    def wan(self) -> str:
        """Return the address the gateway speaks from."""
        return str(self.prefix[1])

    @property
    def lan_prefix(self) -> ipaddress.IPv6Network:
        """Return the /64 of the delegated prefix that is on the LAN."""
        return list(self.prefix.subnets(new_prefix=64))[1]

    @property
    def lan_gateway(self) -> str:
        """Return the gateway's global address on the LAN leg."""
        return str(self.lan_prefix[1])

    @property
    def nas(self) -> str:
        """Return the NAS's global address."""
        return str(self.lan_prefix[0x10])

    @property
    def ula_gateway(self) -> str:
        """Return the gateway's ULA, which no renumbering changes."""
        return f"fd00:686f:6d65:{self.number:x}::1"

    @property
    def ula_nas(self) -> str:
        """Return the NAS's ULA, which no renumbering changes."""
        return f"fd00:686f:6d65:{self.number:x}::10"


@attrs.frozen
class Names:
    """The network namespaces of one run; the run id keeps two labs on one machine apart."""

    run: str

    @property
    def stem(self) -> str:
        """Return what every namespace of the run starts with."""
        return f"hgwlab-{self.run}-"

    def namespace(self, host: str) -> str:
        """Return the namespace of a host (`carrier`, `router`, `gw1`, `nas1`)."""
        return f"{self.stem}{host}"


def host_names(lines: int) -> list[str]:
    """List the hosts of a lab with `lines` lines, router first."""
    per_line = [name for n in range(1, lines + 1) for name in (f"gw{n}", f"nas{n}")]
    return ["router", "carrier", *per_line]


def backbone_link(names: Names) -> str:
    """Return the `ip -n router -batch` line that joins router and carrier."""
    return f"link add c0 type veth peer name wan netns {names.namespace('carrier')}"


def line_links(names: Names, line: int) -> dict[str, str]:
    """Return, by host, the `ip -n HOST -batch` line that makes a link of one line: router–gateway, gateway–NAS."""
    gateway = f"gw{line}"
    return {
        "router": f"link add {line_device(line)} type veth peer name wan netns {names.namespace(gateway)}",
        gateway: f"link add lan type veth peer name eth0 netns {names.namespace(f'nas{line}')}",
    }


def line_device(line: int) -> str:
    """Return the router's interface towards a line."""
    return f"l{line:03d}"


def router_setup(lines: Iterable[LineAddresses]) -> list[str]:
    """Return `ip -n router -batch` lines: loopback, the carrier leg, one leg and route per line."""
    commands = [*_up("lo"), *_up("c0")]
    # Without a link-local address the kernel cannot ask for a neighbour's address when it forwards.
    commands += ["addr add fe80::1/64 dev c0 nodad", f"addr add {ROUTER_ADDRESS}/64 dev c0 nodad"]
    for line in lines:
        commands += router_line(line)
    return commands


def router_line(line: LineAddresses) -> list[str]:
    """Return `ip -n router -batch` lines that (re)connect one line; link down loses addresses and routes."""
    device = line_device(line.number)
    return [
        *_up(device),
        f"addr replace fe80::1/64 dev {device} nodad",
        f"route replace {line.prefix} via fe80::2 dev {device}",
    ]


def carrier_setup() -> list[str]:
    """Return `ip -n carrier -batch` lines."""
    return [
        *_up("lo"),
        *_up("wan"),
        "addr add fe80::10/64 dev wan nodad",
        f"addr add {CARRIER_ADDRESS}/64 dev wan nodad",
        f"route add default via {ROUTER_ADDRESS} dev wan",
    ]


def gateway_setup(line: LineAddresses) -> list[str]:
    """Return `ip -n gw -batch` lines: WAN with a default via fe80::1, LAN with IPv4, ULA and the line's own /64."""
    return [
        *_up("lo"),
        *gateway_wan(line),
        *_up("lan"),
        "addr add fe80::1/64 dev lan nodad",
        f"addr add {LAN_GATEWAY_IPV4}/24 dev lan",
        f"addr add {line.ula_gateway}/64 dev lan nodad",
        f"addr add {line.lan_gateway}/64 dev lan nodad",
    ]


def gateway_wan(line: LineAddresses) -> list[str]:
    """Return `ip -n gw -batch` lines that number a new WAN device and point the default at the router."""
    return [
        *_up("wan"),
        "addr add fe80::2/64 dev wan nodad",
        f"addr add {line.wan}/128 dev wan nodad",
        "route add default via fe80::1 dev wan",
    ]


def gateway_numbering(line: LineAddresses, verb: str) -> list[str]:
    """Return the lines that give (`add`) or take (`del`) the gateway what its prefix determines."""
    return [
        f"addr {verb} {line.wan}/128 dev wan nodad",
        f"addr {verb} {line.lan_gateway}/64 dev lan nodad",
    ]


def nas_setup(line: LineAddresses) -> list[str]:
    """Return `ip -n nas -batch` lines."""
    return [
        *_up("lo"),
        *_up("eth0"),
        "addr add fe80::10/64 dev eth0 nodad",
        f"addr add {LAN_NAS_IPV4}/24 dev eth0",
        f"addr add {line.ula_nas}/64 dev eth0 nodad",
        "route add default via fe80::1 dev eth0",
        *nas_numbering(line, "add"),
    ]


def nas_numbering(line: LineAddresses, verb: str) -> list[str]:
    """Return the line that gives (`add`) or takes (`del`) the NAS its global address."""
    return [f"addr {verb} {line.nas}/64 dev eth0 nodad"]


def source_filter() -> str:
    """Return the `nft -f` text of the router: the source filter with its counter, and an empty fault table."""
    return _FILTER


def fault_rules(faults: Mapping[int, LineFaults]) -> str:
    """Return the `nft -f` text that makes the forward chain show exactly these faults, in one transaction."""
    rules = ["flush chain inet lab_faults broken"]
    for line, fault in sorted(faults.items()):
        device = line_device(line)
        for direction in (f'iifname "{device}"', f'oifname "{device}"'):
            # numgen counts 0…999, so "all" is a rule of its own.
            if fault.cut is Cut.SILENT or fault.loss_permille == 1000:
                rules.append(f"add rule inet lab_faults broken {direction} drop")
            elif fault.loss_permille:
                rules.append(
                    f"add rule inet lab_faults broken {direction} numgen random mod 1000 < {fault.loss_permille} drop"
                )
    return "\n".join(rules) + "\n"


def _up(device: str) -> list[str]:
    # addrgenmode none: only the addresses written here exist, so a test can name each packet's source.
    if device == "lo":
        return ["link set lo up"]
    return [f"link set dev {device} addrgenmode none", f"link set dev {device} up"]
