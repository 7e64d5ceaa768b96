"""The spool over real sockets and a real directory (design §6.10): acknowledged means on flash, refused leaves nothing."""

from __future__ import annotations

import errno
import hashlib
import json

import pytest
import trio
from relay_kit import KIB, FakeService, Nas, code_of, make_pack, open_rig, refusal

from hgwd.adapters import spool_rows
from hgwd.core.spool import OVER_KEEP_S, REJECTED_KEEP_S, SESSION_KEEP_S, PackState


def spool_files(directory):
    return sorted(
        path.name for folder in ("packs", "parts") for path in (directory / "spool" / folder).iterdir()
    )


async def test_a_pack_is_acknowledged_as_spooled_and_lies_on_flash_whole(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        await nas.open()
        pack, data = make_pack(300 * KIB)
        answer = await nas.put(pack, data)
        assert (answer.status, json.loads(answer.body)) == (202, {"state": "spooled"})
        assert spool_files(tmp_path) == [pack]
        assert hashlib.sha256((tmp_path / "spool/packs" / pack).read_bytes()).hexdigest() == pack
        order = [call for call in rig.files.calls if call in {"create", "sync", "publish"}]
        assert order == ["create", "sync", "publish"]
        assert (await rig.spool.totals()).spooled_packs == 1


async def test_the_same_pack_again_is_the_same_pack(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        await nas.open()
        pack, data = make_pack()
        assert [(await nas.put(pack, data)).status for _ in range(3)] == [202, 202, 202]
        assert (await rig.spool.totals()).spooled_bytes == len(data)
        assert rig.files.calls.count("create") == 1


async def test_wrong_hash_is_refused_and_leaves_nothing(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        await nas.open()
        pack, _ = make_pack()
        answer = await nas.put(pack, b"other bytes")
        assert (answer.status, code_of(answer)) == (400, "bad-hash")
        assert spool_files(tmp_path) == []
        assert (await rig.spool.totals()).spooled_packs == 0
        assert "sync" not in rig.files.calls


async def test_a_full_spool_refuses_before_the_first_byte_of_the_body(tmp_path):
    async with open_rig(tmp_path, bytes_max=100 * KIB) as rig:
        nas = await rig.pair()
        await nas.open()
        pack, data = make_pack(80 * KIB)
        assert (await nas.put(pack, data)).status == 202
        late, _ = make_pack(KIB)
        async with await trio.open_tcp_stream("::1", rig.port) as stream:
            await stream.send_all(
                f"PUT /lan/v1/storage/v1/sessions/{nas.session}/packs/{late} HTTP/1.1\r\nhost: x\r\n"
                f"authorization: Bearer {nas.token}\r\ncontent-length: 1024\r\nexpect: 100-continue\r\n\r\n".encode()
            )
            with trio.fail_after(5):
                head = await stream.receive_some(4096)
        assert head.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: " in head
        assert b"spool-full" in head
        assert rig.files.calls.count("create") == 1


async def test_a_pack_waits_a_moment_for_room_while_others_are_leaving(tmp_path):
    async with open_rig(tmp_path, bytes_max=100 * KIB, room_wait_s=5) as rig:
        nas = await rig.pair()
        await nas.open()
        await nas.put(*make_pack(80 * KIB))
        late = make_pack(10 * KIB)
        rig.service.gate = trio.Event()
        rig.forward()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def open_the_gate_later():
                await trio.sleep(0.1)
                rig.service.gate.set()

            with trio.fail_after(2):
                assert (await nas.put(*late)).status == 202
        rig.spool.line_up = lambda: False  # nothing leaves: no sense in waiting
        rig.service.down = True
        await nas.put(*make_pack(80 * KIB))
        with trio.fail_after(2):
            assert (await nas.put(*make_pack(10 * KIB))).status == 429


async def test_a_pack_larger_than_the_spool_is_not_worth_a_retry(tmp_path):
    async with open_rig(tmp_path, bytes_max=8 * KIB) as rig:
        nas = await rig.pair()
        await nas.open()
        pack, data = make_pack(9 * KIB)
        answer = await nas.put(pack, data)
        assert (answer.status, code_of(answer)) == (413, "too-large")


async def test_the_spool_is_shared_fairly_while_two_devices_want_it(tmp_path):
    async with open_rig(tmp_path, bytes_max=100 * KIB) as rig:
        greedy, other = await rig.pair("greedy"), await rig.pair("other")
        await greedy.open()
        await other.open()
        first = make_pack(10 * KIB)
        assert (await other.put(*first)).status == 202
        accepted = 0
        while (await greedy.put(*make_pack(10 * KIB))).status == 202:
            accepted += 1
        assert accepted == 4  # half of the 80 KiB below the mark
        assert (await other.put(*make_pack(10 * KIB))).status == 202


async def test_a_body_that_breaks_off_leaves_nothing(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        await nas.open()
        pack, data = make_pack(200 * KIB)
        async with await trio.open_tcp_stream("::1", rig.port) as stream:
            head = (
                f"PUT /lan/v1/storage/v1/sessions/{nas.session}/packs/{pack} HTTP/1.1\r\nhost: x\r\n"
                f"authorization: Bearer {nas.token}\r\ncontent-length: {len(data)}\r\n\r\n"
            )
            await stream.send_all(head.encode() + data[: 150 * KIB])
            with trio.fail_after(5):
                while "write" not in rig.files.calls:
                    await trio.sleep(0.01)
        with trio.fail_after(5):
            while spool_files(tmp_path):
                await trio.sleep(0.01)
        assert (await rig.spool.totals()).spooled_packs == 0


@pytest.mark.parametrize("call", ["sync", "publish", "write"])
async def test_a_failing_flash_is_never_acknowledged_and_never_asked_again(tmp_path, call):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        await nas.open()
        kept = make_pack()
        assert (await nas.put(*kept)).status == 202
        rig.files.calls.clear()
        rig.files.fail[call] = errno.EIO
        answer = await nas.put(*make_pack())
        assert (answer.status, code_of(answer)) == (503, "unavailable")
        assert rig.files.calls.count(call) == 1
        rig.files.fail.clear()
        rig.files.calls.clear()
        assert (await nas.put(*make_pack())).status == 503
        assert rig.files.calls == []
        assert rig.spool.failure is not None
        rig.forward()  # what was acknowledged before still goes out
        await rig.settled()
        assert kept[0] in rig.service.packs


async def test_an_fsync_that_says_no_space_is_a_failed_flash_not_a_full_one(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        await nas.open()
        rig.files.fail["sync"] = errno.ENOSPC
        assert (await nas.put(*make_pack())).status == 503
        assert rig.spool.failure is not None


@pytest.mark.parametrize("call", ["create", "write"])
async def test_a_flash_that_is_full_says_so_and_works_on_later(tmp_path, call):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        await nas.open()
        rig.files.fail[call] = errno.ENOSPC
        answer = await nas.put(*make_pack())
        assert (answer.status, code_of(answer)) == (429, "spool-full")
        rig.files.fail.clear()
        assert (await nas.put(*make_pack())).status == 202


async def test_recovery_marks_lost_packs_and_removes_what_was_never_acknowledged(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        await nas.open()
        packs = [make_pack() for _ in range(3)]
        for pack in packs:
            await nas.put(*pack)
        session, token = nas.session, nas.token
        service = rig.service
    (tmp_path / "spool/packs" / packs[0][0]).unlink()
    (tmp_path / "spool/packs" / packs[1][0]).write_bytes(b"short")
    (tmp_path / "spool/packs" / ("0" * 64)).write_bytes(b"never acknowledged")
    (tmp_path / "spool/parts/abc").write_bytes(b"part")
    recovered = []
    async with open_rig(tmp_path, service=service, recovered=recovered) as rig:
        found = recovered[0]
        assert (found.spooled_packs, found.lost_packs, found.removed_parts, found.removed_files) == (
            1,
            2,
            1,
            2,
        )
        assert spool_files(tmp_path) == [packs[2][0]]
        nas = Nas(rig, nas.device, token, session)
        assert (await nas.state(*(pack for pack, _ in packs))).body == bytes([0, 0, 1])
        assert (await rig.spool.totals()).lost_packs == 2
        assert (await nas.put(*packs[0])).status == 202  # sent again from the journal: the alarm shrinks
        assert (await rig.spool.totals()).lost_packs == 1


async def test_packs_are_forwarded_after_a_restart_while_the_nas_is_away(tmp_path):
    service = FakeService()
    async with open_rig(tmp_path, service=service) as rig:
        nas = await rig.pair()
        await nas.open()
        packs = [make_pack() for _ in range(3)]
        for pack in packs:
            await nas.put(*pack)
    async with open_rig(tmp_path, service=service) as rig:
        rig.forward()
        await rig.settled()
    assert service.order == [pack for pack, _ in packs]
    assert spool_files(tmp_path) == []


async def test_rejected_packs_stay_seven_days_and_are_then_freed(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        await nas.open()
        pack = make_pack()
        await nas.put(*pack)
        rig.service.put_answers.append(refusal(403, "gateway-ended"))
        rig.forward()
        await rig.settled()
        await rig.spool.tidy()
        assert (await rig.spool.totals()).rejected_packs == 1
        assert (await nas.state(pack[0])).body == bytes([PackState.REJECTED])
        rig.clock.advance(REJECTED_KEEP_S + 1)
        await rig.spool.tidy()
        assert (await rig.spool.totals()).rejected_packs == 0
        assert spool_files(tmp_path) == []


async def test_packs_of_a_session_that_nobody_renews_become_rejected_with_the_reason(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        await nas.open()
        pack = make_pack()
        await nas.put(*pack)
        await rig.spool.end_session(nas.session, "session-over")
        rig.clock.advance(OVER_KEEP_S - 1)
        await rig.spool.tidy()
        assert (await rig.spool.totals()).spooled_packs == 1
        rig.clock.advance(2)
        await rig.spool.tidy()
        row = await rig.database.read(spool_rows.get_pack, nas.device, pack[0])
        assert (row.state, row.reason) == (PackState.REJECTED, "session-over")


async def test_old_sessions_are_forgotten_unless_something_of_them_waits(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas = await rig.pair()
        done = await nas.open()
        waiting = await nas.open()
        await nas.put(*make_pack())
        rig.clock.advance(SESSION_KEEP_S)
        await rig.spool.tidy()
        assert await rig.spool.session(done) is not None
        rig.clock.advance(1)
        fresh = await nas.open()
        await rig.spool.tidy()
        assert await rig.spool.session(done) is None
        assert await rig.spool.session(waiting) is not None
        assert await rig.spool.session(fresh) is not None
