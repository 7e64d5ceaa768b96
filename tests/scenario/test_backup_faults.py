"""Every fault of a backup through the real programs: agent, gateway daemon and carrier server on one line of the lab.

Each is said in words, listed in the run's result, costs nothing but itself, and loses nothing that was acknowledged.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import pytest

from firmware_sim.lab import HEALTHY, LineFaults, has_rights
from nas_agent.adapters.state import StateDirectory
from tests.nas_agent.nas_tree import make_tree, rsync_differences
from tests.scenario.kill_world import (
    CONTRACT,
    PACK_BYTES_MAX,
    RUN_TIMEOUT_S,
    PackAudit,
    World,
    environment,
    module,
    open_world,
    run_here,
    write_secret,
)

pytestmark = [
    pytest.mark.skipif(not has_rights(), reason="the lab makes network namespaces: needs root"),
    pytest.mark.timeout(400),
]
KEEP_TRYING_S = 3
Events = list[dict[str, object]]


@attrs.frozen
class Nas:
    """The NAS of the world with a backup set and a source of its own for one test."""

    world: World
    name: str
    home: Path

    @property
    def source(self) -> Path:
        return self.home / "source"

    @property
    def passphrase(self) -> tuple[str, str]:
        return "--passphrase-file", str(self.world.root / "passphrase")

    def run(self, *words: str, before: Sequence[str] = ()) -> tuple[int, Events]:
        command = [*before, *self.world.agent(*words, "--set", self.name)]
        nas = self.world.lab.nas(1)
        done = nas.run(command, timeout_s=RUN_TIMEOUT_S, check=False, env=environment())
        return done.returncode, [json.loads(line) for line in done.stdout.decode().splitlines()]

    def backup(self, *, before: Sequence[str] = ()) -> tuple[int, Events]:
        return self.run("backup", str(self.source), before=before)

    def backup_done(self) -> Events:
        code, events = self.backup()
        assert (code, events[-1]["state"]) == (0, "durable"), events
        return events

    def restore(self, name: str = "restored", passphrase: Sequence[str] = ()) -> tuple[int, Events, Path]:
        target = self.home / name
        code, events = self.run("restore", "latest", "--to", str(target), *(passphrase or self.passphrase))
        return code, events, target

    def assert_restores(self, name: str = "whole") -> None:
        code, events, target = self.restore(name)
        assert code == 0, events
        assert rsync_differences(self.source, target) == ""

    def write(self, name: str, size_bytes: int, seed: int) -> None:
        (self.source / name).write_bytes(random.Random(seed).randbytes(size_bytes))


def problems(events: Events) -> set[tuple[object, object]]:
    return {(event["path"], event["reason"]) for event in events if event["event"] == "problem"}


def admin(world: World, *words: str) -> str:
    return run_here("deliver.cli", "admin", "--config", world.root / "carrier", *words)


def requests_of(world: World, route_part: str) -> Events:
    """What the carrier's server logged about requests whose route has a part."""
    lines = [json.loads(line) for line in world.deliver.output().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "request" and route_part in line["route"]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("backup-faults")) as world:
        (world.root / "nas" / "nas-agent.toml").write_text(f"keep_trying_s = {KEEP_TRYING_S}\n")
        yield world


@pytest.fixture
def nas(world: World, tmp_path: Path) -> Nas:
    made = Nas(world, f"set-{tmp_path.name[-8:].strip('_').lower().replace('_', '-')}", tmp_path)
    made.source.mkdir()
    return made


def test_every_kind_of_entry_comes_back_through_the_gateway(nas: Nas) -> None:
    # AZK-83: names of any bytes, 255-byte names, sparse, hard links, ACL, devices, setuid, foreign owners.
    nas.source.rmdir()
    assert make_tree(nas.source) == []
    nas.backup_done()
    nas.assert_restores()
    nas.backup_done()
    nas.assert_restores("again")


def test_what_cannot_be_read_or_changes_is_listed_and_everything_else_is_backed_up(nas: Nas) -> None:
    for number in range(6):
        nas.write(f"file-{number}", 50_000, number)
    nas.write("closed", 100, 7)
    nas.write("changing", 30_000_000, 8)
    (nas.source / "closed").chmod(0)
    os.chown(nas.source / "closed", 65534, 65534)
    with appended(nas.source / "changing"):
        code, events = nas.backup(before=["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"])
    assert problems(events) == {("closed", "unreadable"), ("changing", "changed-while-reading")}
    assert (code, events[-1]["state"], events[-1]["complete"], events[-1]["problems"]) == (
        3,
        "durable",
        False,
        2,
    )
    code, _, target = nas.restore()
    assert code == 0
    left = [line for line in rsync_differences(nas.source, target).splitlines() if not line.startswith(".d")]
    assert sorted(line.split()[-1] for line in left) == ["changing", "closed"]


@pytest.mark.parametrize("new_bytes", [3_000_000, 12_000_000], ids=["one pack", "three packs"])
def test_a_full_quota_is_refused_before_the_first_byte_and_costs_nothing_else(
    nas: Nas, new_bytes: int
) -> None:
    # AZK-03; the first pack fits the spool, so the gateway has acknowledged it before the service is asked.
    nas.write("old", 1_000_000, 1)
    nas.backup_done()
    nas.write("new", new_bytes, new_bytes)
    with almost_full(nas.world, free_bytes=1_000_000):
        before = len(requests_of(nas.world, "packs"))
        code, events = nas.backup()
        assert (code, events[-1]["state"]) == (4, "refused"), events
        message = str(events[-1]["message"])
        assert "[quota-full]" in message
        assert re.search(r"needed \d{7} bytes, used 1073\d{7} bytes, limit 10737418240 bytes", message), (
            message
        )
        refused = [line for line in requests_of(nas.world, "packs")[before:] if line["status"] == 507]
        assert refused
        assert {line["received_bytes"] for line in refused} == {0}
        code, _, target = nas.restore("while-full")
        assert (code, [path.name for path in target.iterdir()]) == (0, ["old"])
        assert (target / "old").read_bytes() == (nas.source / "old").read_bytes()
    again = nas.backup_done()
    spooled_bytes = int(str(events[-1]["sent_bytes"]))
    assert spooled_bytes > 2_000_000
    assert int(str(again[-1]["sent_bytes"])) < new_bytes - spooled_bytes + 500_000, "what was spooled counts"
    nas.assert_restores()


def test_a_full_spool_is_said_and_what_it_took_counts(nas: Nas) -> None:
    audit = PackAudit(nas.world.root)
    nas.write("first", 1_000, 1)
    nas.backup_done()
    audit.look()
    nas.write("large", 34_000_000, 2)
    nas.world.lab.set_faults(1, LineFaults(rate_bits_per_s=2_000_000))
    try:
        code, events = nas.backup()
    finally:
        nas.world.lab.set_faults(1, HEALTHY)
    assert (code, events[-1]["state"]) == (4, "refused"), events
    assert "[spool-full]" in str(events[-1]["message"])
    taken_bytes = int(str(events[-1]["sent_bytes"]))
    assert taken_bytes > 15_000_000
    events = nas.backup_done()
    assert int(str(events[-1]["sent_bytes"])) < 36_000_000 - taken_bytes + PACK_BYTES_MAX
    nas.assert_restores()
    assert audit.look() <= PACK_BYTES_MAX


def test_a_damaged_pack_at_the_service_costs_the_files_in_it_and_each_is_named(nas: Nas) -> None:
    for number in range(5):
        nas.write(f"file-{number}", 40_000, number)
    blobs = nas.world.root / "carrier" / "state" / "blobs" / CONTRACT
    before = set(blobs.glob("*/*"))
    nas.write("a-large", 9_000_000, 9)
    nas.backup_done()
    damaged = max(set(blobs.glob("*/*")) - before, key=lambda path: path.stat().st_size)
    flip_bit(damaged)
    code, events, target = nas.restore("damaged")
    assert code == 3
    assert problems(events) == {("a-large", "damaged-chunk")}
    assert {path.name for path in target.iterdir()} == {path.name for path in nas.source.iterdir()} - {
        "a-large"
    }
    code, events = nas.run("verify", *nas.passphrase)
    assert (code, problems(events)) == (3, {("a-large", "damaged-chunk")})
    scrubbed = scrub(nas.world)
    assert damaged.name.partition("-")[0] in scrubbed, scrubbed
    flip_bit(damaged)
    nas.assert_restores()
    assert scrub(nas.world) == "0 damaged pack(s)\n"


def test_a_wrong_passphrase_is_said_and_nothing_is_written(nas: Nas) -> None:
    nas.write("file", 1_000, 1)
    nas.backup_done()
    write_secret(nas.home / "wrong", "another passphrase")
    code, events, target = nas.restore("out", ("--passphrase-file", str(nas.home / "wrong")))
    assert (code, events[-1]["code"]) == (1, "wrong-passphrase")
    assert not target.exists()
    nas.assert_restores()


def test_a_locked_and_a_revoked_nas_is_told_so_and_nothing_stored_is_lost(tmp_path: Path) -> None:
    # AZK-15: the lock also hits a run whose packs lie in the spool.
    with open_world(tmp_path / "world") as world:
        nas = Nas(world, "default", tmp_path)
        nas.source.mkdir()
        device = StateDirectory(world.root / "nas").load_device().device.public.hex()
        nas.write("kept", 5_000_000, 1)
        nas.backup_done()
        nas.write("new", 12_000_000, 2)
        world.lab.set_faults(1, LineFaults(rate_bits_per_s=8_000_000))
        running = world.lab.nas(1).spawn(
            nas.world.agent("backup", nas.source), name="backup", env=environment()
        )
        time.sleep(4)
        assert running.alive, running.output()
        admin(world, "device", "lock", device)
        world.lab.set_faults(1, HEALTHY)
        assert running.wait(RUN_TIMEOUT_S) == 4, running.output()
        refused(running.output().splitlines()[-1])
        code, events = nas.backup()
        assert code == 4
        refused(json.dumps(events[-1]))
        admin(world, "device", "unlock", device)
        nas.backup_done()
        nas.assert_restores("unlocked")
        used = stored(world)
        admin(world, "device", "revoke", device)
        for command in (
            ["backup", str(nas.source)],
            ["restore", "latest", "--to", str(tmp_path / "o"), *nas.passphrase],
        ):
            code, events = nas.run(*command)
            assert code == 4, events
            assert "revoked" in str(events[-1]["message"]), events
        assert not list((tmp_path / "o").glob("*"))
        assert stored(world) == used
        assert scrub(world) == "0 damaged pack(s)\n"


def stored(world: World) -> tuple[int, int]:
    """Bytes and generations that the carrier keeps."""
    usage = json.loads(admin(world, "storage", "usage", CONTRACT))
    return usage["used_bytes"], usage["generations"]


def refused(line: str) -> None:
    message = json.loads(line)["message"]
    assert "device-revoked" in message or "rejected" in message, message


@contextlib.contextmanager
def appended(path: Path) -> Iterator[None]:
    """Append to a file all the time."""
    stop = threading.Event()

    def append() -> None:
        with path.open("ab", buffering=0) as file:
            while not stop.wait(0.001):
                file.write(b"x")

    writer = threading.Thread(target=append)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


@contextlib.contextmanager
def almost_full(world: World, *, free_bytes: int) -> Iterator[None]:
    """Let the contract's 10 GiB be used up but for `free_bytes`, as by other backups."""
    limit_bytes = 10 * 2**30
    with contextlib.closing(
        sqlite3.connect(database_of(world), timeout=30, isolation_level=None)
    ) as database:
        (used_bytes,) = database.execute("SELECT used_bytes FROM storage_contract").fetchone()
        others_bytes = limit_bytes - used_bytes - free_bytes
        database.execute("UPDATE session SET reserved_bytes = 0")
        database.execute("UPDATE storage_contract SET used_bytes = used_bytes + ?", (others_bytes,))
        try:
            yield
        finally:
            database.execute("UPDATE storage_contract SET used_bytes = used_bytes - ?", (others_bytes,))


def database_of(world: World) -> Path:
    (path,) = (path for path in (world.root / "carrier").rglob("*.db"))
    return path


def scrub(world: World) -> str:
    """Let the carrier look at every pack; returns what it said, whatever its exit code."""
    home = world.root / "carrier"
    done = world.lab.carrier.run(
        [*deliver_admin(home), "storage", "scrub"], timeout_s=RUN_TIMEOUT_S, check=False, env=environment()
    )
    return (done.stdout + done.stderr).decode()


def deliver_admin(home: Path) -> list[str]:
    return module("deliver.cli", "admin", "--config", home)


def flip_bit(path: Path) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
