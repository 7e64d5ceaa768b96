"""The real programs on a line that misbehaves or moves: nothing is lost, and a line that is not the contract's is told so."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from firmware_sim.lab import HEALTHY, Cut, LineFaults, has_rights
from tests.scenario.kill_world import (
    CUSTOMER,
    RUN_TIMEOUT_S,
    World,
    change_source,
    environment,
    last_event,
    open_world,
    run_here,
    start_hgwd,
)

pytestmark = [
    pytest.mark.skipif(not has_rights(), reason="the lab makes network namespaces: needs root"),
    pytest.mark.timeout(400),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("line-faults")) as world:
        yield world


def admin(world: World, *words: str) -> str:
    return run_here("deliver.cli", "admin", "--config", world.root / "carrier", *words)


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
    # The agent may wait up to half a minute before it asks again; a second run finds the same state at once.
    backup.kill()
    result = world.finish_backup()
    assert result["state"] == "durable"
    world.assert_restores()


def test_a_moved_prefix_is_refused_until_the_carrier_knows_it(
    world: World, seeded_random: random.Random
) -> None:
    # JNT-25, AZK-91b: the line is the credential; a valid device on an unknown line is told exactly that.
    change_source(world.source, seeded_random, files=2, size_bytes=10_000)
    old = world.lab.addresses(1).prefix
    world.lab.gateway(1).power_cut()
    new = world.lab.renumber(1).prefix
    world.hgwd = start_hgwd(world.lab, world.root)  # a move is a restart too
    refused = world.lab.nas(1).run(
        world.agent("backup", world.source), timeout_s=RUN_TIMEOUT_S, check=False, env=environment()
    )
    assert refused.returncode == 4, refused.stdout.decode()
    assert "line" in str(last_event(refused.stdout)["message"])
    admin(world, "prefix", "end", CUSTOMER, str(old))
    admin(world, "prefix", "add", CUSTOMER, str(new))
    world.finish_backup()
    world.assert_restores()
