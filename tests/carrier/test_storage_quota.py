"""Quota is exact: ciphertext of live packs, each once, 507 before the first byte (AZK-03, AZK-08)."""

from __future__ import annotations

import os

import attrs
import pytest
import sqlalchemy as sa
import trio

from carrier.engines.sql.schema import storage_contract
from carrier.storage.outcomes import Code, Refused
from carrier.storage.packs import PackPut, put_pack
from carrier.storage.tables import UPLOAD_LIFE_S
from wire.signing import generate_key

STEP = 256 * 2**20
LIMIT = 10 * 2**30


def usage(world):
    return world.carrier.admin.read_usage(world.contract)


def fill(world, used_bytes):
    """Pretend that packs of so many bytes are stored."""
    with world.carrier.database.write() as connection:
        connection.execute(sa.update(storage_contract).values(used_bytes=used_bytes))


class Unread:
    """A body that must not be touched."""

    def __aiter__(self):
        raise AssertionError("the body was read")


async def test_pack_that_does_not_fit_is_refused_before_its_first_byte(enrolled):
    world = enrolled
    fill(world, LIMIT - 999)
    given = await world.session(await world.open())
    answer = await put_pack(world.storage, given, "ab" * 32, 1000, Unread())
    assert answer.code is Code.QUOTA_FULL
    assert answer.extra == {"needed_bytes": 1000, "limit_bytes": LIMIT, "used_bytes": LIMIT - 999}


async def test_pack_that_fits_to_the_byte_is_stored(enrolled):
    world = enrolled
    data_bytes = len(world.nas.pack("ab" * 16, [os.urandom(32)]))
    fill(world, LIMIT - data_bytes)
    given = await world.session(await world.open())
    await world.store(given, [os.urandom(32)])
    assert usage(world).used_bytes == LIMIT
    assert usage(world).reserved_bytes == 0
    answer = await put_pack(world.storage, given, "ab" * 32, 1, Unread())
    assert answer.code is Code.QUOTA_FULL


async def test_bonus_makes_room_and_its_end_only_stops_uploads(enrolled):
    """AZK-08: over capacity nothing is deleted; reading goes on."""
    world = enrolled
    fill(world, LIMIT)
    given = await world.session(await world.open())
    data = world.nas.pack(given.session.text, [os.urandom(32)])
    assert (await world.put(given, data)).code is Code.QUOTA_FULL
    start = int(world.clock.now_s())
    world.carrier.admin.set_entitlement(world.contract, "remote-support")
    assert usage(world).limit_bytes == 15 * 2**30
    assert isinstance(await world.put(given, data), PackPut)
    world.carrier.admin.set_entitlement(
        world.contract, "remote-support", valid_from=start, valid_to=start + 60
    )
    world.clock.advance(40 * 86_400)
    world.carrier.directory.refresh()
    assert usage(world).limit_bytes == LIMIT
    later = await world.session(await world.open())
    answer = await world.put(later, world.nas.pack(later.session.text, [os.urandom(32)]))
    assert answer.code is Code.QUOTA_FULL
    assert usage(world).packs == 1
    await world.session(await world.open(mode="read"))


async def test_session_reserves_a_step_and_spends_from_it(enrolled):
    world = enrolled
    opened = await world.open()
    assert opened.reserved_bytes == STEP
    given = await world.session(opened)
    name = await world.store(given, [os.urandom(32)])
    assert name
    assert usage(world).reserved_bytes + usage(world).used_bytes == STEP


async def test_many_crashed_runs_hold_one_reservation(enrolled):
    world = enrolled
    for _ in range(45):
        await world.open()
    assert usage(world).reserved_bytes == STEP
    reading = await world.open(mode="read")
    assert reading.reserved_bytes == 0


async def test_reservation_of_one_device_is_out_of_reach_for_another(enrolled):
    world = enrolled
    other = attrs.evolve(world.nas, key=generate_key())
    code = world.carrier.admin.add_code(world.contract)
    await world.enrol(other, code)
    fill(world, LIMIT - STEP)
    mine = await world.open()
    theirs = await world.open(nas=other)
    assert (mine.reserved_bytes, theirs.reserved_bytes) == (STEP, 0)
    answer = await put_pack(world.storage, await world.session(theirs), "ab" * 32, 1, Unread())
    assert answer.code is Code.QUOTA_FULL
    await world.storage.close_session(await world.session(mine))
    assert (await world.open(nas=other)).reserved_bytes == STEP


async def test_reservation_ends_with_the_lease(enrolled):
    world = enrolled
    await world.open()
    world.clock.advance(14 * 86_400)
    assert usage(world).reserved_bytes == 0


async def test_upload_that_breaks_off_gives_its_place_back(enrolled):
    world = enrolled
    given = await world.session(await world.open())

    async def broken():
        yield b"x" * 100
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await put_pack(world.storage, given, "ab" * 32, 1000, broken())
    assert (usage(world).in_flight_bytes, world.blob_names()) == (0, [])
    assert list((world.directory / "blobs" / "incoming").iterdir()) == []


async def test_cancelled_upload_gives_its_place_back(enrolled):
    world = enrolled
    given = await world.session(await world.open())

    async def endless():
        yield b"x" * 100
        await trio.sleep_forever()

    with trio.move_on_after(0.1):
        await put_pack(world.storage, given, "ab" * 32, 1000, endless())
    assert usage(world).in_flight_bytes == 0
    assert list((world.directory / "blobs" / "incoming").iterdir()) == []


async def test_upload_that_takes_too_long_is_not_stored(enrolled):
    world = enrolled
    given = await world.session(await world.open())
    data = world.nas.pack(given.session.text, [os.urandom(32)])

    async def slow():
        yield data
        world.clock.advance(UPLOAD_LIFE_S)

    import hashlib

    answer = await put_pack(world.storage, given, hashlib.sha256(data).hexdigest(), len(data), slow())
    assert isinstance(answer, Refused)
    assert answer.code is Code.UNAVAILABLE
    assert world.blob_names() == []
    assert usage(world).used_bytes == 0


async def test_parallel_uploads_never_pass_the_limit(enrolled):
    """H14: many streams at the edge; what is stored is exact, what is refused names its bytes."""
    world = enrolled
    given = await world.session(await world.open())
    packs = [world.nas.pack(given.session.text, [os.urandom(32)]) for _ in range(24)]
    room = sum(len(data) for data in packs[:10])
    await world.storage.close_session(given)
    fill(world, LIMIT - room)
    given = await world.session(await world.open())
    packs = [world.nas.pack(given.session.text, [os.urandom(32)]) for _ in range(24)]
    answers = []

    async def send(data):
        answers.append(await world.put(given, data))

    async with trio.open_nursery() as nursery:
        for data in packs:
            nursery.start_soon(send, data)
    stored = [answer for answer in answers if isinstance(answer, PackPut)]
    refused = [answer for answer in answers if isinstance(answer, Refused)]
    assert len(stored) == 10
    assert {answer.code for answer in refused} == {Code.QUOTA_FULL}
    assert usage(world).used_bytes == LIMIT
    assert len(world.blob_names()) == 10


async def test_same_pack_sent_twice_at_once_is_stored_once(enrolled):
    world = enrolled
    given = await world.session(await world.open())
    data = world.nas.pack(given.session.text, [os.urandom(32)])
    answers = []

    async def send():
        answers.append(await world.put(given, data))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(send)
    assert sum(answer.new for answer in answers) == 1
    assert usage(world).used_bytes == len(data)
    assert len(world.blob_names()) == 1
