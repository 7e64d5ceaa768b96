"""Random histories against a model (style §12): whatever line, service, NAS and power do, an acknowledged pack is here
whole, stored, or rejected with a reason; and once all is well again, nothing is left waiting. HGW_SEED replays one.
"""

from __future__ import annotations

import hashlib

import attrs
import pytest
import trio
from relay_kit import FakeService, Nas, make_pack, open_rig, refusal

from hgwd.adapters import spool_rows
from hgwd.core.spool import PackState

STEPS_PER_LIFE = 12
LIVES = 4
MOODS = {
    "well": None,
    "unwell": refusal(503, "unavailable"),
    "full": refusal(507, "quota-full"),
    "over": refusal(410, "session-over"),
    "elsewhere": refusal(403, "line-not-contract"),
    "never": refusal(403, "contract-ended"),
}


@attrs.define
class History:
    random: object
    service: FakeService = attrs.field(factory=FakeService)
    packs: dict = attrs.field(factory=dict)
    identity: tuple = ()
    said: list = attrs.field(factory=list)

    async def nas(self, rig):
        if not self.identity:
            nas = await rig.pair()
            await nas.open()
            self.identity = (nas.device, nas.token, nas.session)
        return Nas(rig, *self.identity)

    async def live(self, rig):
        """One life of the process: some steps, then the power goes."""
        nas = await self.nas(rig)
        rig.forward()
        for _ in range(STEPS_PER_LIFE):
            step = self.random.choice(
                [self.offer, self.offer, self.offer, self.repeat, self.lie, self.turn, self.reopen]
            )
            await step(nas)
            await trio.sleep(self.random.choice([0, 0, 0.01, 0.03]))

    async def offer(self, nas):
        pack, data = make_pack(2048)
        answer = await nas.put(pack, data)
        if answer.status == 202:
            self.packs[pack] = data
        else:
            assert answer.status in {410, 429, 507}

    async def repeat(self, nas):
        if self.packs:
            pack, data = self.random.choice(sorted(self.packs.items()))
            assert (await nas.put(pack, data)).status in {200, 202, 409, 410, 429, 507}

    async def lie(self, nas):
        pack, _ = make_pack()
        assert (await nas.put(pack, b"other bytes")).status in {400, 410, 429, 507}

    async def turn(self, nas):
        mood = self.random.choice(sorted(MOODS))
        self.said.append(mood)
        self.service.always = MOODS[mood]
        self.service.down = self.random.random() < 0.3

    async def reopen(self, nas):
        answer = await nas.ask("POST", "/sessions", b"statement")
        if answer.status == 201:
            await self.adopt(nas, answer)
            await nas.state(*sorted(self.packs)[:1000])

    async def adopt(self, nas, answer):
        nas.session = answer.body.split(b'"session": "')[1][:32].decode()
        self.identity = (nas.device, nas.token, nas.session)

    async def check(self, rig):
        for pack, data in self.packs.items():
            row = await rig.database.read(spool_rows.get_pack, self.identity[0], pack)
            if row.state is PackState.SPOOLED:
                assert hashlib.sha256(rig.spool.path(pack).read_bytes()).hexdigest() == pack
            elif row.state is PackState.STORED:
                assert self.service.packs[pack] == data
            else:
                assert (row.state, row.reason) == (PackState.REJECTED, "contract-ended")
        assert (await rig.spool.totals()).lost_packs == 0


@pytest.mark.parametrize(
    "number", [*range(4), *(pytest.param(n, marks=pytest.mark.soak) for n in range(4, 200))]
)
async def test_no_history_loses_an_acknowledged_pack(tmp_path, seeded_random, number):
    history = History(seeded_random)
    options = {"service": history.service, "hold_s": 0.05, "bytes_max": 120 * 1024}
    for _ in range(LIVES):
        async with open_rig(tmp_path, **options) as rig:
            await history.live(rig)
        async with open_rig(tmp_path, **options) as rig:
            await history.check(rig)
    history.service.always, history.service.down = None, False
    async with open_rig(tmp_path, **options) as rig:
        nas = await history.nas(rig)
        await history.reopen(nas)
        rig.forward()
        await rig.settled()
        await history.check(rig)
        kept = {row.pack for row in await rig.database.read(spool_rows.packs_here)}
        assert {path.name for path in (tmp_path / "spool/packs").iterdir()} == kept
        assert (await rig.spool.totals()).rejected_packs == len(kept)
