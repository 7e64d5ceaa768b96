"""A NAS enrols, opens a session, stores packs, commits, and reads everything back."""

from __future__ import annotations

import hashlib
import os

from carrier.storage import facts
from carrier.storage.outcomes import Committed
from carrier.storage.packs import PackBytes, PackPut, find_pack, read_pack
from wire.storage import verify_receipt
from wire.vault.session import unverified_header


async def test_backup_is_committed_with_a_receipt_and_read_back(enrolled):
    world = enrolled
    opened = await world.open()
    given = await world.session(opened, facts.Mode.APPEND)
    chunks = [os.urandom(32) for _ in range(5)]
    data = world.nas.pack(given.session.text, chunks)
    first = await world.put(given, data)
    assert isinstance(first, PackPut)
    assert first.new
    assert not (await world.put(given, data)).new
    assert await world.storage.have(given, (*chunks, b"x" * 32)) == b"\1\1\1\1\1\0"
    assert await world.storage.pack_states(given, (hashlib.sha256(data).digest(), b"x" * 32)) == b"\2\0"

    body = world.nas.commit_body(given.session.text, chunks)
    done = await world.storage.commit(given, body)
    assert isinstance(done, Committed)
    receipt = verify_receipt(
        done.receipt, cert=world.storage.receipts.cert, service_root=world.root_key.public
    )
    assert (receipt.sequence, receipt.packs, receipt.stored_bytes) == (1, 1, len(data))
    assert receipt.device == world.nas.key.public.hex()

    reading = await world.session(await world.open(mode="read"), facts.Mode.READ)
    (item,) = await world.storage.list_generations(reading)
    assert item.root_sha256 == receipt.root_sha256
    row = await world.storage.read_generation(reading, item.generation)
    assert row.receipt == done.receipt
    assert row.root == body[4 : 4 + int.from_bytes(body[:4], "big")]
    (place, unknown) = await world.storage.locate(reading, item.generation, (chunks[3], b"x" * 32))
    assert unknown is None
    pack = await find_pack(world.storage, reading, place[0].hex())
    parts = [part async for part in read_pack(world.storage, reading, PackBytes(pack, place[1], place[2]))]
    assert b"".join(parts) == data[place[1] : place[1] + place[2]]
    header = await world.storage.read_header(reading, given.session.text)
    assert unverified_header(header).session == given.session.text


async def test_used_bytes_are_those_of_live_packs_each_once(enrolled):
    world = enrolled
    given = await world.session(await world.open())
    data = world.nas.pack(given.session.text, [os.urandom(32)])
    for _ in range(3):
        await world.put(given, data)
    usage = world.carrier.admin.read_usage(world.contract)
    assert usage.used_bytes == len(data)
    assert usage.reserved_bytes == 256 * 2**20 - len(data)
    assert usage.in_flight_bytes == 0
