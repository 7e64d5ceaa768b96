"""kill -9 at random moments (design §10: 0 acknowledged bytes lost): every acknowledged pack is here whole, or stored.

The child serves the LAN, spools and forwards; this side sends packs, notes what was acknowledged, and kills. After
each kill the same directory is opened again by the next child. HGW_SEED replays the moments.
"""

from __future__ import annotations

import hashlib
import signal
import sys
from pathlib import Path

import attrs
import pytest
import trio
from relay_kit import KIB, STORAGE, make_pack, open_rig

from hgwd.adapters import spool_rows
from hgwd.core.spool import PackState
from runtime.errors import EdgeError
from runtime.http_client import HttpClient

KILLS = 16
SENDERS = 3


@attrs.define
class World:
    directory: Path
    identity: tuple = ()
    acknowledged: set = attrs.field(factory=set)

    async def start(self):
        command = [
            sys.executable,
            str(Path(__file__).with_name("spool_child.py")),
            str(self.directory),
            *self.identity,
        ]
        process = await trio.lowlevel.open_process(command, stdout=-1)
        line = b""
        with trio.fail_after(20):
            while not line.endswith(b"\n"):
                piece = await process.stdout.receive_some(4096)
                assert piece, "the child ended before it served"
                line += piece
        port, *identity = line.decode().split()
        self.identity = tuple(identity)
        return process, int(port)

    async def send_for_ever(self, client):
        _, token, session = self.identity
        while True:
            pack, data = make_pack(200 * KIB)
            path = f"{STORAGE}/sessions/{session}/packs/{pack}"
            try:
                answer = await client.request(
                    "PUT", path, headers={"authorization": f"Bearer {token}"}, body=data
                )
            except EdgeError:
                return
            if answer.status == 202:
                self.acknowledged.add(pack)
            else:
                assert answer.status == 429
                await trio.sleep(0.02)


def intact(path, pack):
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == pack


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [KILLS, pytest.param(500, marks=pytest.mark.soak)])
async def test_no_acknowledged_pack_is_lost_by_kill_9_at_any_moment(tmp_path, seeded_random, kills):
    world = World(tmp_path)
    for _ in range(kills):
        process, port = await world.start()
        async with trio.open_nursery() as nursery:
            client = HttpClient("::1", port)
            for _ in range(SENDERS):
                nursery.start_soon(world.send_for_ever, client)
            await trio.sleep(seeded_random.uniform(0.01, 0.25))
            process.send_signal(signal.SIGKILL)
        await client.aclose()
        await process.wait()
        await process.stdout.aclose()
        await check(world)
    assert len(world.acknowledged) >= kills


async def check(world):
    """Open what the kill left, as the next start does, and look for every acknowledged pack."""
    async with open_rig(world.directory, bytes_max=64 << 20) as rig:
        totals = await rig.spool.totals()
        assert totals.lost_packs == 0
        here = 0
        for pack in world.acknowledged:
            row = await rig.database.read(spool_rows.get_pack, world.identity[0], pack)
            if row is not None and row.state is PackState.SPOOLED:
                assert intact(rig.spool.path(pack), pack)
                here += 1
            else:
                assert intact(world.directory / "service" / pack, pack)
        files = list((world.directory / "spool/packs").iterdir())
        assert len(files) == totals.spooled_packs
        assert list((world.directory / "spool/parts").iterdir()) == []
