"""What holds for every test: loopback only, and seconds per area at the end."""

from __future__ import annotations

import collections
import ipaddress
import os
import random
import sys

import pytest

_SECONDS_BY_AREA: dict[str, float] = collections.defaultdict(float)
_COUNT_BY_AREA: dict[str, int] = collections.defaultdict(int)


def _refuse_foreign_addresses(event: str, args: tuple[object, ...]) -> None:
    """Tests of this process talk to loopback only; namespaces of the lab are other processes' business."""
    if event != "socket.connect":
        return
    address = args[1]
    if not isinstance(address, tuple) or not isinstance(address[0], str):
        return
    try:
        host = ipaddress.ip_address(address[0].partition("%")[0])
    except ValueError:
        if address[0] != "localhost":
            raise RuntimeError(f"a test connects to {address[0]}: only loopback is allowed") from None
        return
    if not host.is_loopback:
        raise RuntimeError(f"a test connects to {host}: only loopback is allowed")


sys.addaudithook(_refuse_foreign_addresses)


@pytest.fixture
def seeded_random(request: pytest.FixtureRequest) -> random.Random:
    """A seeded source of randomness; HGW_SEED replays a failure, the seed is in the test's output."""
    seed = int(os.environ.get("HGW_SEED", "0")) or random.SystemRandom().getrandbits(32)
    print(f"seed: HGW_SEED={seed}")
    return random.Random(seed)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    parts = report.nodeid.split("/")
    area = parts[1] if len(parts) > 2 else "tests"
    _SECONDS_BY_AREA[area] += report.duration
    if report.when == "call":
        _COUNT_BY_AREA[area] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("seconds per area")
    for area, seconds in sorted(_SECONDS_BY_AREA.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{seconds:8.1f} s  {_COUNT_BY_AREA[area]:5d} tests  {area}")
