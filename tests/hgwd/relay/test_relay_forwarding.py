"""Forwarding (design §6): nothing leaves the spool before it is stored, whatever the line and the service say."""

from __future__ import annotations

import errno
import json
import secrets

import attrs
import trio
from relay_kit import KIB, Answer, FakeService, code_of, make_pack, open_rig, refusal

from hgwd.adapters import spool_rows
from hgwd.core.spool import PackState
from runtime.errors import Unavailable


async def spooled(rig, count=3):
    nas = await rig.pair()
    await nas.open()
    packs = [make_pack() for _ in range(count)]
    for pack in packs:
        assert (await nas.put(*pack)).status == 202
    return nas, packs


async def test_packs_go_in_the_order_of_their_acknowledgement_and_leave_when_stored(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas, packs = await spooled(rig, 8)
        rig.forward()
        await rig.settled()
        assert sorted(rig.service.packs) == sorted(pack for pack, _ in packs)
        assert list((tmp_path / "spool/packs").iterdir()) == []
        assert (await nas.state(*(pack for pack, _ in packs))).body == bytes([2] * 8)
        assert rig.forwarder.stats.forwarded_bytes == 8 * 10 * KIB


async def test_a_new_pack_wakes_the_forwarder(tmp_path):
    async with open_rig(tmp_path) as rig:
        rig.forward()
        await trio.sleep(0.05)
        _, packs = await spooled(rig, 1)
        with trio.fail_after(2):
            await rig.settled()
        assert packs[0][0] in rig.service.packs


async def test_a_cut_line_keeps_every_pack_and_forwarding_resumes(tmp_path):
    service = FakeService(down=True)
    async with open_rig(tmp_path, service=service) as rig:
        service.down = False
        nas, packs = await spooled(rig, 2)
        service.down = True
        rig.forward()
        with trio.fail_after(5):
            while rig.forwarder.stats.failures == 0:
                await trio.sleep(0.01)
        assert (await rig.spool.totals()).spooled_packs == 2
        assert (await nas.state(*(pack for pack, _ in packs))).body == bytes(
            [1, 1]
        )  # known here: no line needed
        unknown = secrets.token_hex(32)
        answer = await nas.state(packs[0][0], unknown)
        assert (answer.status, code_of(answer)) == (503, "line-down")
        assert "retry-after" in answer.headers
        assert (await nas.put(*make_pack())).status == 202  # still taken in while there is room
        service.down = False
        await rig.settled()
        assert {pack for pack, _ in packs} <= set(service.packs)


async def test_a_lost_answer_costs_a_repetition_and_nothing_else(tmp_path):
    async with open_rig(tmp_path) as rig:
        _, packs = await spooled(rig, 1)
        rig.service.packs[packs[0][0]] = packs[0][1]  # the service stored it, the answer got lost
        rig.forward()
        await rig.settled()
        assert rig.service.order == [packs[0][0]]


async def test_an_unwell_service_is_asked_again(tmp_path):
    async with open_rig(tmp_path) as rig:
        await spooled(rig, 1)
        rig.service.put_answers += [Answer(503, {}, b"x"), refusal(500, "internal")]
        rig.forward()
        await rig.settled()
        assert rig.forwarder.stats.failures == 2


async def test_a_full_quota_holds_the_session_and_is_told_before_the_next_byte(tmp_path):
    async with open_rig(tmp_path, hold_s=0.5) as rig:
        nas, packs = await spooled(rig, 2)
        rig.service.always = refusal(507, "quota-full", needed_bytes=10, limit_bytes=5, used_bytes=4)
        rig.forward()
        with trio.fail_after(5):
            while nas.session not in rig.forwarder.held:
                await trio.sleep(0.01)
        for answer in (await nas.put(*make_pack()), await nas.state(packs[0][0]), await nas.commit()):
            assert answer.status == 507
            body = json.loads(answer.body)
            assert (body["code"], body["needed_bytes"], body["limit_bytes"], body["used_bytes"]) == (
                "quota-full",
                10,
                5,
                4,
            )
        assert (await rig.spool.totals()).spooled_packs == 2
        rig.service.always = None  # the owner bought more
        await rig.settled()
        assert {pack for pack, _ in packs} == set(rig.service.packs)
        assert (await nas.commit()).status == 201


async def test_a_refusal_for_now_is_told_to_the_nas_that_waits_for_its_packs(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas, packs = await spooled(rig, 1)
        rig.service.put_answers.append(refusal(403, "line-not-contract"))
        rig.forward()
        with trio.fail_after(5):
            while nas.session not in rig.forwarder.held:
                await trio.sleep(0.01)
        answer = await nas.state(packs[0][0])
        assert (answer.status, code_of(answer)) == (403, "line-not-contract")
        assert (await nas.put(*make_pack())).status == 202  # the spool still takes what fits


async def test_a_held_session_does_not_hold_up_another(tmp_path):
    async with open_rig(tmp_path) as rig:
        held, _ = await spooled(rig, 1)
        rig.service.put_answers.append(refusal(403, "line-not-contract"))
        rig.forward()
        with trio.fail_after(5):
            while held.session not in rig.forwarder.held:
                await trio.sleep(0.01)
        _, packs = await spooled(rig, 2)
        await rig.settled(1)
        assert {pack for pack, _ in packs} == set(rig.service.packs)


async def test_a_session_that_is_over_keeps_its_packs_for_the_next_one(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas, packs = await spooled(rig, 2)
        old = nas.session
        rig.service.always = refusal(410, "session-over")
        rig.forward()
        with trio.fail_after(5):
            while (await rig.spool.session(old)).over_reason is None:
                await trio.sleep(0.01)
        for answer in (await nas.put(*make_pack()), await nas.state(packs[0][0]), await nas.commit()):
            assert (answer.status, code_of(answer)) == (410, "session-over")
        await trio.sleep(0.05)
        assert (await rig.spool.totals()).spooled_packs == 2
        rig.service.always = None
        await nas.open()
        assert (await nas.state(packs[0][0])).body == bytes([1])  # asking moves it to the new session
        assert (await nas.put(*packs[1])).status == 202  # offering it again does, too
        await rig.settled()
        assert set(rig.service.packs) == {pack for pack, _ in packs}


async def test_a_refusal_for_good_is_told_and_freed_when_the_nas_ends_the_session(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas, packs = await spooled(rig, 1)
        rig.service.put_answers.append(refusal(403, "device-revoked"))
        rig.forward()
        await rig.settled()
        assert (await nas.state(packs[0][0])).body == bytes([PackState.REJECTED])
        answer = await nas.put(*packs[0])
        assert (answer.status, code_of(answer)) == (409, "conflict")
        assert "device-revoked" in json.loads(answer.body)["message"]
        assert (await nas.ask("DELETE", f"/sessions/{nas.session}")).status == 204
        assert list((tmp_path / "spool/packs").iterdir()) == []


async def test_a_pack_that_rotted_on_flash_is_asked_for_again_and_never_stored(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas, packs = await spooled(rig, 1)
        path = tmp_path / "spool/packs" / packs[0][0]
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(data)
        rig.forward()
        await rig.settled()
        assert rig.service.packs == {}
        assert (await nas.state(packs[0][0])).body == bytes([0])
        assert (await rig.spool.totals()).lost_packs == 1
        assert "pack_damaged" in rig.log.events()
        assert (await nas.put(*packs[0])).status == 202
        await rig.settled()
        assert packs[0][0] in rig.service.packs


async def test_a_pack_that_cannot_be_opened_just_now_is_not_taken_for_lost(tmp_path):
    async with open_rig(tmp_path) as rig:
        _, packs = await spooled(rig, 1)
        rig.files.fail["path"] = errno.EMFILE
        rig.forward()
        with trio.fail_after(10):
            while not rig.forwarder.stats.failures:
                await trio.sleep(0.01)
        totals = await rig.spool.totals()
        assert (totals.spooled_packs, totals.lost_packs) == (1, 0)
        assert (tmp_path / "spool/packs" / packs[0][0]).read_bytes() == packs[0][1]
        del rig.files.fail["path"]
        await rig.settled()
        assert packs[0][0] in rig.service.packs


async def test_a_pack_offered_again_while_it_is_sent_is_stored_only_on_the_services_word(tmp_path):
    """It was sent in the older session: only that session's lease protects it until the service is asked in the newer."""
    async with open_rig(tmp_path, service=FakeService(gate=trio.Event())) as rig:
        nas, packs = await spooled(rig, 1)
        rig.forward()
        with trio.fail_after(10):
            while not rig.spool._sending:
                await trio.sleep(0.01)
        await nas.open()
        assert (await nas.put(*packs[0])).status == 202
        rig.service.gate.set()
        await rig.settled()
        assert (await nas.state(packs[0][0])).body == bytes([PackState.STORED])
        assert [path for _, path, _, _ in rig.service.asked if path.endswith(f"{nas.session}/state")]


async def test_a_service_that_calls_whole_bytes_wrong_makes_them_rejected_not_lost(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas, packs = await spooled(rig, 1)
        rig.service.put_answers.append(refusal(400, "bad-hash"))
        rig.forward()
        await rig.settled()
        assert (await nas.state(packs[0][0])).body == bytes([PackState.REJECTED])


async def test_commit_waits_for_the_last_pack_and_may_be_repeated(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas, _ = await spooled(rig, 2)
        answer = await nas.commit()
        assert (answer.status, code_of(answer)) == (409, "draining")
        assert json.loads(answer.body)["waiting_packs"] == 2
        assert [request for request in rig.service.asked if request[1].endswith("commit")] == []
        rig.forward()
        await rig.settled()
        assert [(await nas.commit()).body for _ in range(2)] == [b"receipt", b"receipt"]
        listed = await rig.devices.list_all()
        assert listed[0].last_durable_at_s is not None


async def test_a_session_with_packs_under_way_cannot_be_ended(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas, _ = await spooled(rig, 1)
        answer = await nas.ask("DELETE", f"/sessions/{nas.session}")
        assert (answer.status, code_of(answer)) == (409, "draining")
        assert (await rig.spool.totals()).spooled_packs == 1


async def test_ending_a_session_that_the_service_refuses_for_now_frees_what_it_left(tmp_path):
    """The NAS has seen the reason and gives up: its word is the acknowledgement (design §6, *rejected*)."""
    async with open_rig(tmp_path) as rig:
        nas, _ = await spooled(rig, 2)
        rig.service.always = refusal(507, "quota-full")
        rig.forward()
        with trio.fail_after(5):
            while nas.session not in rig.forwarder.held:
                await trio.sleep(0.01)
        assert (await nas.ask("DELETE", f"/sessions/{nas.session}")).status == 204
        assert (await rig.spool.totals()).spooled_packs == 0
        assert list((tmp_path / "spool/packs").iterdir()) == []


async def test_a_session_ended_while_its_pack_is_under_way_harms_nobody(tmp_path):
    async with open_rig(tmp_path) as rig:
        nas, _ = await spooled(rig, 1)
        rig.service.gate = trio.Event()
        rig.forward()
        with trio.fail_after(5):
            while not rig.service.gate.statistics().tasks_waiting:
                await trio.sleep(0.01)
        await rig.spool.drop_session(nas.session)
        rig.service.gate.set()
        _, packs = await spooled(rig, 2)
        await rig.settled()
        assert {pack for pack, _ in packs} <= set(rig.service.packs)


async def test_a_busy_database_of_our_own_pauses_forwarding_and_does_not_end_it(tmp_path):
    async with open_rig(tmp_path) as rig:
        _, packs = await spooled(rig, 2)
        read, failures = rig.database.read, [Unavailable("busy", retry_after_s=0.1)] * 2

        async def busy_read(fn, *arguments):
            if fn is spool_rows.next_to_forward and failures:
                raise failures.pop()
            return await read(fn, *arguments)

        rig.spool._db = BusyDatabase(busy_read, rig.database.run)
        rig.forward()
        await rig.settled()
        assert {pack for pack, _ in packs} == set(rig.service.packs)
        assert failures == []
        assert rig.forwarder.stats.failures == 2


@attrs.frozen
class BusyDatabase:
    read: object
    run: object
