"""The real programs on a line that misbehaves or moves: nothing is lost, and a line that is not the contract's is told so."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator

import pytest

from carrier.lines.tables import MAP_REFRESH_S
from firmware_sim.lab import HEALTHY, Cut, LineFaults, has_rights
from tests.scenario.kill_world import (
    CUSTOMER,
    RUN_TIMEOUT_S,
    World,
    change_source,
    environment,
    last_event,
    module,
    open_world,
    run_here,
)

pytestmark = [
    pytest.mark.skipif(not has_rights(), reason="the lab makes network namespaces: needs root"),
    pytest.mark.timeout(400),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("line-faults")) as world:
        yield world


def change_prefix(world: World, verb: str, prefix: object) -> None:
    """Tell the carrier, and wait until its running server has read the registry again."""
    run_here(
        "deliver.cli", "admin", "--config", world.root / "carrier", "prefix", verb, CUSTOMER, str(prefix)
    )
    time.sleep(4 * MAP_REFRESH_S)


@pytest.mark.parametrize(
    "faults",
    [
        LineFaults(loss_permille=30, rate_bits_per_s=40_000_000),
        LineFaults(delay_ms=15),
    ],
    ids=["3 percent lost at 40 Mbit/s", "30 ms round trip"],
)
def test_a_backup_over_a_bad_line_is_durable_and_restores(
    world: World, seeded_random: random.Random, faults: LineFaults
) -> None:
    change_source(world.source, seeded_random, files=5, size_bytes=800_000)
    world.lab.set_faults(1, faults)
    try:
        world.finish_backup()
        world.assert_restores()
    finally:
        world.lab.set_faults(1, HEALTHY)


@pytest.mark.parametrize("how", [Cut.LINK_DOWN, Cut.SILENT])
def test_a_cut_in_the_middle_costs_time_and_nothing_else(
    world: World, seeded_random: random.Random, how: Cut
) -> None:
    # At 1 MB/s the new 4 MB take longer than anything here waits: the cut falls into the transfer.
    change_source(world.source, seeded_random, files=2, size_bytes=4_000_000)
    world.lab.set_faults(1, LineFaults(rate_bits_per_s=8_000_000))
    backup = world.start_backup()
    time.sleep(2.5)
    world.lab.cut(1, how)
    try:
        assert backup.alive, backup.output()
        time.sleep(1.5)
        assert backup.alive, backup.output()
    finally:
        world.lab.set_faults(1, HEALTHY)
    mended = time.monotonic()
    assert backup.wait(RUN_TIMEOUT_S) == 0, backup.output()
    assert time.monotonic() - mended < 20
    world.assert_restores()


def line_of(world: World) -> dict[str, object]:
    """Return what the gateway says about its line."""
    status = module("hgwd.cli", "--config", world.root / "gateway" / "hgwd.toml", "status", "--json")
    done = world.lab.gateway(1).run(status, timeout_s=RUN_TIMEOUT_S, env=environment())
    line: dict[str, object] = json.loads(done.stdout)["line"]
    return line


def wait_for_line(world: World, state: str, *, timeout_s: float) -> dict[str, object]:
    deadline = time.monotonic() + timeout_s
    while (line := line_of(world))["state"] != state:
        assert time.monotonic() < deadline, line
        time.sleep(0.2)
    return line


def test_a_backup_whose_line_is_renumbered_meanwhile_resumes_by_itself(
    world: World, seeded_random: random.Random
) -> None:
    """JNT-25, AZK-91b: no program is started again; what the old prefix carried breaks off in seconds, not minutes."""
    # At 500 kB/s the new 4 MB take 8 s: all of it is on the gateway when the line moves, and most of it still there.
    change_source(world.source, seeded_random, files=1, size_bytes=4_000_000)
    world.lab.set_faults(1, LineFaults(rate_bits_per_s=4_000_000))
    backup = world.start_backup()
    time.sleep(4)
    old = world.lab.addresses(1).prefix
    try:
        new = world.lab.renumber(1).prefix
        assert wait_for_line(world, "refused", timeout_s=20)["reason"] == "line-unknown"
        assert backup.alive, backup.output()
        change_prefix(world, "end", old)
        change_prefix(world, "add", new)
    finally:
        world.lab.set_faults(1, HEALTHY)
    assert backup.wait(RUN_TIMEOUT_S) == 0, backup.output()
    assert wait_for_line(world, "up", timeout_s=1)["reason"] is None
    world.assert_restores()


def test_a_prefix_that_the_carrier_ended_is_refused_and_a_new_one_works(
    world: World, seeded_random: random.Random
) -> None:
    """AZK-91b: the line is the credential; a valid device on an unknown line is told exactly that."""
    change_source(world.source, seeded_random, files=2, size_bytes=10_000)
    change_prefix(world, "end", world.lab.addresses(1).prefix)
    assert_refused_for_its_line(world)
    new = world.lab.renumber(1).prefix
    assert_refused_for_its_line(world)
    change_prefix(world, "add", new)
    world.finish_backup()
    world.assert_restores()


def assert_refused_for_its_line(world: World) -> None:
    began = time.monotonic()
    refused = world.lab.nas(1).run(
        world.agent("backup", world.source), timeout_s=RUN_TIMEOUT_S, check=False, env=environment()
    )
    assert refused.returncode == 4, refused.stdout.decode()
    assert "line" in str(last_event(refused.stdout)["message"])
    assert time.monotonic() - began < 20
