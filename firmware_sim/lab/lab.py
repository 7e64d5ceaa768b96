"""Bring up a whole lab, break it on purpose, and take it down without a trace.

`open_lab` is the one way in: its context owns the run id, the namespaces, the cgroups and the hosts, and removes them
in reverse order, whatever happened inside. See the package's docstring for the way to use it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path

import attrs

from firmware_sim.faults import HEALTHY, Cut, LineFaults
from firmware_sim.lab import shaping, topology
from firmware_sim.lab.commands import ip_batch, nft, run_tool, wait_for_carrier
from firmware_sim.lab.errors import LabError
from firmware_sim.lab.forge import forged_packet, send_packet
from firmware_sim.lab.host import Host
from firmware_sim.lab.limits import make_limiter
from firmware_sim.lab.runs import add_namespace, claim_run, remove_stale_runs
from firmware_sim.lab.topology import LineAddresses, Names
from firmware_sim.profile import Profile

SAMPLE_INTERVAL_S = 0.2
END_TIMEOUT_S = 10.0


@attrs.frozen(kw_only=True)
class LabSpec:
    """What to build.

    Args:
        lines: access lines, 1…200, each with one gateway and one NAS.
        profile: limits of every gateway; None = unlimited.
        directory: where logs go; a temporary one, removed at the end, when None.
    """

    lines: int = attrs.field(
        default=1,
        validator=attrs.validators.and_(attrs.validators.ge(1), attrs.validators.le(topology.LINES_MAX)),
    )
    profile: Profile | None = None
    directory: Path | None = None


class Lab:
    """A running lab. Faults and renumbering take effect before the call returns."""

    def __init__(self, spec: LabSpec, names: Names, directory: Path) -> None:
        self.spec = spec
        self.run_id = names.run
        self.directory = directory
        self._names = names
        self._addresses = {n: LineAddresses(n, 0) for n in range(1, spec.lines + 1)}
        self._faults = dict.fromkeys(self._addresses, HEALTHY)
        self._hosts: dict[str, Host] = {}
        self._forwarders: list[subprocess.Popen[bytes]] = []
        self._delay_lines: dict[int, shaping.DelayLine] = {}

    @property
    def carrier_address(self) -> str:
        """Return the IPv6 address of the carrier host."""
        return topology.CARRIER_ADDRESS

    @property
    def carrier(self) -> Host:
        """Return the carrier's host."""
        return self.host("carrier")

    def gateway(self, line: int) -> Host:
        """Return the gateway of a line."""
        return self.host(f"gw{line}")

    def nas(self, line: int) -> Host:
        """Return the NAS behind the gateway of a line."""
        return self.host(f"nas{line}")

    def host(self, name: str) -> Host:
        """Return a host by name: `carrier`, `router`, `gw1`, `nas1` and so on.

        Raises:
            LabError: the lab has no such host.
        """
        if name not in self._hosts:
            raise LabError(f"lab: expected one of {', '.join(self._hosts)}, got {name!r}")
        return self._hosts[name]

    def addresses(self, line: int) -> LineAddresses:
        """Return what a line is numbered now; changes with `renumber`."""
        if line not in self._addresses:
            raise LabError(f"lab: there are lines 1…{self.spec.lines}, not {line}")
        return self._addresses[line]

    def limits_text(self) -> str:
        """Say how the gateways are held to their profile on this machine."""
        return self.gateway(1).limiter.description

    def faults(self, line: int) -> LineFaults:
        """Return what a line shows now."""
        self.addresses(line)
        return self._faults[line]

    def set_faults(self, line: int, faults: LineFaults) -> None:
        """Make a line show exactly these faults; `HEALTHY` heals it.

        Setting or clearing a delay where the kernel has no netem replaces the line's wire: for a moment the link is
        down, as when a plug is moved.

        Raises:
            LabError: no such line, or this machine can delay in no way.
        """
        addresses, before = self.addresses(line), self.faults(line)
        router, device = self._names.namespace("router"), topology.line_device(line)
        gateway = self._names.namespace(f"gw{line}")
        self._faults[line] = faults
        if before.cut is Cut.LINK_DOWN and faults.cut is not Cut.LINK_DOWN:
            ip_batch(router, topology.router_line(addresses))
            self._wait_for_wire(line)
        nft(router, topology.fault_rules(self._faults))
        if before.delay_ms != faults.delay_ms and not self._netem:
            self._replace_wire(line, faults.delay_ms)
        netem_delay_ms = faults.delay_ms if self._netem else 0
        for namespace, end in ((router, device), (gateway, "wan")):
            shaping.shape(
                namespace, end, rate_bits_per_s=faults.rate_bits_per_s, netem_delay_ms=netem_delay_ms
            )
        if faults.cut is Cut.LINK_DOWN:
            ip_batch(router, [f"link set dev {device} down"])

    def _wait_for_wire(self, line: int) -> None:
        wait_for_carrier(self._names.namespace("router"), topology.line_device(line))
        wait_for_carrier(self._names.namespace(f"gw{line}"), "wan")

    def _replace_wire(self, line: int, delay_ms: int) -> None:
        """Take out the line's wire, delayed or not, and put in one with `delay_ms` (0 = a plain veth)."""
        router, device = self._names.namespace("router"), topology.line_device(line)
        gateway, addresses = self._names.namespace(f"gw{line}"), self.addresses(line)
        old = self._delay_lines.pop(line, None)
        if old is not None:
            old.end()
        else:
            ip_batch(router, [f"link del dev {device}"])
        if delay_ms:
            self._delay_lines[line] = shaping.DelayLine(((router, device), (gateway, "wan")), delay_ms)
        else:
            ip_batch(router, [topology.line_links(self._names, line)["router"]])
        ip_batch(router, topology.router_line(addresses))
        ip_batch(gateway, topology.gateway_wan(addresses))
        self._wait_for_wire(line)

    @cached_property
    def _netem(self) -> bool:
        return shaping.has_netem(self._names.namespace("router"))

    def cut(self, line: int, how: Cut = Cut.LINK_DOWN) -> None:
        """Cut a line, its other faults kept."""
        self.set_faults(line, attrs.evolve(self.faults(line), cut=how))

    def restore(self, line: int) -> None:
        """Join a cut line again, its other faults kept."""
        self.set_faults(line, attrs.evolve(self.faults(line), cut=Cut.NO))

    def renumber(self, line: int) -> LineAddresses:
        """Give a line a new prefix, as a move or maintenance does: the old addresses are gone at once.

        The registry of delegated prefixes is the carrier's: tell it too. Returns the new addresses.
        """
        old = self.addresses(line)
        new = attrs.evolve(old, generation=old.generation + 1)
        router = self._names.namespace("router")
        if self._faults[line].cut is not Cut.LINK_DOWN:
            ip_batch(router, [f"route del {old.prefix}", *topology.router_line(new)])
        for host, numbering in (("gw", topology.gateway_numbering), ("nas", topology.nas_numbering)):
            ip_batch(self._names.namespace(f"{host}{line}"), [*numbering(old, "del"), *numbering(new, "add")])
        self._addresses[line] = new
        return new

    def forge(self, line: int, source: str, *, port: int = 443) -> None:
        """Send a TCP SYN and a UDP datagram to the carrier from a line's gateway under a source that is not its own."""
        packets = [forged_packet(source, self.carrier_address, port, kind) for kind in ("syn", "udp")]
        for packet in packets:
            self.gateway(line).call(partial(send_packet, packet))

    def forged_packets(self) -> int:
        """Return how many packets the router has dropped so far because their source was not the line's."""
        command = ["nsenter", f"--net=/run/netns/{self._names.namespace('router')}", "--"]
        answer = run_tool([*command, "nft", "-j", "list", "counter", "inet", "lab_source", "forged"])
        counters = [
            entry["counter"]["packets"] for entry in json.loads(answer)["nftables"] if "counter" in entry
        ]
        return int(counters[0])

    def publish(self, host: str, address: str, port: int, *, local_port: int = 0) -> int:
        """Make a TCP port of a host reachable on this machine's loopback and return the port there; ends with the lab.

        A page that checks its Host header must know 127.0.0.1 with that port: ask for `local_port` = `port` then;
        0 takes any free one.

        Raises:
            LabError: no such host, or the forwarder did not start.
        """
        namespace = self.host(host).namespace
        argv = [
            sys.executable,
            "-m",
            "firmware_sim.lab.forward",
            namespace,
            address,
            str(port),
            str(local_port),
        ]
        forwarder = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._forwarders.append(forwarder)
        words = forwarder.stdout.readline().split() if forwarder.stdout is not None else []
        if len(words) != 2 or words[0] != b"listening":
            raise LabError(f"lab: cannot publish {host} [{address}]:{port}")
        return int(words[1])

    def _build(self, logs: Path) -> None:
        hosts = topology.host_names(self.spec.lines)
        for host in hosts:
            add_namespace(self._names.namespace(host))
        lines = list(self._addresses.values())
        links: dict[str, list[str]] = {"router": [topology.backbone_link(self._names)]}
        for line in lines:
            for host, command in topology.line_links(self._names, line.number).items():
                links.setdefault(host, []).append(command)
        for host, commands in links.items():
            ip_batch(self._names.namespace(host), commands)
        ip_batch(self._names.namespace("router"), topology.router_setup(lines))
        ip_batch(self._names.namespace("carrier"), topology.carrier_setup())
        for line in lines:
            ip_batch(self._names.namespace(f"gw{line.number}"), topology.gateway_setup(line))
            ip_batch(self._names.namespace(f"nas{line.number}"), topology.nas_setup(line))
        nft(self._names.namespace("router"), topology.source_filter())
        for host in hosts:
            limiter = make_limiter(
                self._names.namespace(host), self.spec.profile if host.startswith("gw") else None
            )
            self._hosts[host] = Host(host, self._names.namespace(host), limiter, logs)
        for host in hosts:
            if host == "router" or host.startswith("gw"):
                self._hosts[host].call(_enable_forwarding)

    def _sample(self) -> None:
        for host in self._hosts.values():
            for process in list(host.processes):
                process.usage()
            host.usages()

    def _power_off(self) -> None:
        for host in self._hosts.values():
            host.power_off()
        for delay_line in self._delay_lines.values():
            delay_line.end()
        for forwarder in self._forwarders:
            forwarder.communicate(timeout=END_TIMEOUT_S)


@contextlib.contextmanager
def open_lab(spec: LabSpec) -> Iterator[Lab]:
    """Bring up a lab for as long as the context lasts; clean up after crashed ones first.

    Needs the rights of `firmware_sim.lab.privilege.ensure_rights`.

    Raises:
        LabError: a command failed; what had been made is removed again.
    """
    remove_stale_runs()
    with contextlib.ExitStack() as stack:
        names = stack.enter_context(claim_run())
        directory = spec.directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hgwlab-")))
        logs = directory / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        lab = Lab(spec, names, directory)
        stack.callback(lab._power_off)  # noqa: SLF001 - the context is the lab's other half
        lab._build(logs)  # noqa: SLF001
        stack.enter_context(_sampler(lab))
        yield lab


@contextlib.contextmanager
def _sampler(lab: Lab) -> Iterator[None]:
    done = threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_INTERVAL_S):
            lab._sample()  # noqa: SLF001

    thread = threading.Thread(target=sample, name="lab-sampler", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _enable_forwarding() -> None:
    # Runs in the host's network (Host.call): /proc/sys/net is that of the thread which opens it.
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1", "ascii")
