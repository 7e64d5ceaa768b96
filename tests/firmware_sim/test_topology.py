"""Names, addresses and rule texts of the lab: pure, so checked without a namespace."""

from __future__ import annotations

import ipaddress
import itertools

import pytest

from firmware_sim.faults import Cut, LineFaults
from firmware_sim.lab.topology import (
    CARRIER_ADDRESS,
    CARRIER_PREFIX,
    LINES_MAX,
    LineAddresses,
    Names,
    fault_rules,
    host_names,
    line_device,
)

CARRIER = ipaddress.IPv6Network(CARRIER_PREFIX)
DOCUMENTATION = ipaddress.IPv6Network("2001:db8::/32")


def test_no_two_lines_share_an_address_in_any_numbering() -> None:
    prefixes = [LineAddresses(n, g).prefix for n in range(1, LINES_MAX + 1) for g in range(3)]
    assert len(set(prefixes)) == 3 * LINES_MAX
    assert all(prefix.prefixlen == 56 and prefix.subnet_of(DOCUMENTATION) for prefix in prefixes)
    assert not any(prefix.overlaps(CARRIER) for prefix in prefixes)
    in_order = sorted(prefixes)
    assert not any(one.overlaps(two) for one, two in itertools.pairwise(in_order))
    assert ipaddress.IPv6Address(CARRIER_ADDRESS) in CARRIER


def test_everything_behind_a_line_is_numbered_from_its_prefix_or_stays() -> None:
    before, after = LineAddresses(7, 0), LineAddresses(7, 1)
    for address in (before.wan, before.lan_gateway, before.nas):
        assert ipaddress.IPv6Address(address) in before.prefix
    assert ipaddress.IPv6Address(before.wan) not in before.lan_prefix
    assert {before.wan, before.lan_gateway, before.nas}.isdisjoint({after.wan, after.lan_gateway, after.nas})
    assert (before.ula_gateway, before.ula_nas) == (after.ula_gateway, after.ula_nas)


def test_names_of_two_runs_do_not_meet_and_devices_fit_the_kernel() -> None:
    one, two = Names("aaaaaa"), Names("bbbbbb")
    hosts = host_names(LINES_MAX)
    assert {one.namespace(host) for host in hosts}.isdisjoint({two.namespace(host) for host in hosts})
    assert len(line_device(LINES_MAX)) < 16


@pytest.mark.parametrize(
    ("faults", "verdict"),
    [
        (LineFaults(), None),
        (LineFaults(cut=Cut.LINK_DOWN), None),
        (LineFaults(cut=Cut.SILENT), "drop"),
        (LineFaults(loss_permille=1000), "drop"),
        (LineFaults(loss_permille=1), "numgen random mod 1000 < 1 drop"),
        (LineFaults(cut=Cut.SILENT, loss_permille=1), "drop"),
    ],
)
def test_each_fault_is_one_rule_in_each_direction_on_its_line_only(
    faults: LineFaults, verdict: str | None
) -> None:
    rules = fault_rules({1: LineFaults(), 2: faults}).splitlines()
    assert rules[0] == "flush chain inet lab_faults broken"
    wanted = [f'add rule inet lab_faults broken {way} "l002" {verdict}' for way in ("iifname", "oifname")]
    assert rules[1:] == (wanted if verdict else [])


@pytest.mark.parametrize("values", [{"loss_permille": 1001}, {"loss_permille": -1}, {"delay_ms": -1}])
def test_an_impossible_fault_is_refused_naming_it(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        LineFaults(**values)
