"""Commits: once, in order, with the same receipt when repeated; retention, trash, races (design §6.6, §6.8)."""

from __future__ import annotations

import hashlib
import os

import pytest
import trio

from carrier.storage.outcomes import Code, Committed, Refused
from carrier.storage.tables import TRASH_S
from wire.errors import SignatureError
from wire.signing import generate_key
from wire.storage import unverified_receipt, verify_receipt

DAY_S = 86_400


async def backup(world, number, chunks, *, session=None, parent=None):
    """Commit generation `number`; returns (Committed, root hash)."""
    given = session or await world.session(await world.open())
    body = world.nas.commit_body(given.session.text, chunks, sequence=number, parent=parent, files=number)
    root = body[4 : 4 + int.from_bytes(body[:4], "big")]
    done = await world.storage.commit(given, body)
    assert isinstance(done, Committed), done
    return done, hashlib.sha256(root).hexdigest()


async def test_repeated_commit_returns_the_same_receipt_even_much_later(enrolled):
    world = enrolled
    given = await world.session(await world.open())
    chunk = os.urandom(32)
    await world.store(given, [chunk])
    body = world.nas.commit_body(given.session.text, [chunk])
    first = await world.storage.commit(given, body)
    world.clock.advance(1000)
    before = world.dump()
    again = await world.storage.commit(given, body)
    assert (first.new, again.new, again.receipt) == (True, False, first.receipt)
    assert world.dump() == before


async def test_same_root_with_other_references_conflicts_not_silently(enrolled):
    """Cannot be reached through a valid root (its hash covers the references); the store refuses all the same."""
    from carrier.storage import facts
    from carrier.storage.outcomes import CommitConflict

    world = enrolled
    given = await world.session(await world.open())
    chunk = os.urandom(32)
    await world.store(given, [chunk])
    claim = facts.CommitClaim(
        root=b"root", root_sha256=b"r" * 32, sequence=1, parent_sha256=None, refs=chunk, refs_sha256=b"1" * 32
    )
    import attrs

    sign = world.storage.receipts.sign
    store = world.storage.stores.generations
    assert isinstance(store.commit(given, claim, sign, 1_790_000_000), Committed)
    other = attrs.evolve(claim, refs_sha256=b"2" * 32)
    assert store.commit(given, other, sign, 1_790_000_000) == CommitConflict()


async def test_generations_continue_each_other(enrolled):
    world = enrolled
    given = await world.session(await world.open())
    chunk = os.urandom(32)
    await world.store(given, [chunk])
    _, first = await backup(world, 1, [chunk], session=given)
    opened = await world.open()
    assert (opened.head.sequence, opened.head.root_sha256) == (1, first)
    _, second = await backup(world, 2, [chunk], parent=first)
    body = world.nas.commit_body(given.session.text, [chunk], sequence=3, parent=first)
    refusal = await world.storage.commit(await world.session(await world.open()), body)
    assert refusal.code is Code.PARENT_MISMATCH
    assert refusal.extra == {"sequence": 2, "root_sha256": second}


async def test_two_commits_racing_make_one_generation(enrolled):
    world = enrolled
    one, two = await world.session(await world.open()), await world.session(await world.open())
    chunk = os.urandom(32)
    await world.store(one, [chunk])
    answers = []

    async def commit(given, files):
        body = world.nas.commit_body(given.session.text, [chunk], files=files)
        answers.append(await world.storage.commit(given, body))

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(commit, (one, two)[number % 2], number + 1)
    assert sum(isinstance(answer, Committed) for answer in answers) == 1
    refused = [answer for answer in answers if isinstance(answer, Refused)]
    assert {answer.code for answer in refused} == {Code.PARENT_MISMATCH}
    assert world.carrier.admin.read_usage(world.contract).generations == 1


async def test_racing_repetitions_get_one_receipt(enrolled):
    world = enrolled
    given = await world.session(await world.open())
    chunk = os.urandom(32)
    await world.store(given, [chunk])
    body = world.nas.commit_body(given.session.text, [chunk])
    receipts = set()

    async def commit():
        receipts.add((await world.storage.commit(given, body)).receipt)

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(commit)
    assert len(receipts) == 1


async def test_empty_backup_is_a_generation(enrolled):
    world = enrolled
    done, _ = await backup(world, 1, [])
    assert unverified_receipt(done.receipt).stored_bytes == 0


async def test_receipt_holds_only_under_the_pinned_root(enrolled):
    world = enrolled
    done, root_sha256 = await backup(world, 1, [])
    cert = world.storage.receipts.cert
    receipt = verify_receipt(done.receipt, cert=cert, service_root=world.root_key.public)
    assert (receipt.root_sha256, receipt.received_at) == (root_sha256, int(world.clock.now_s()))
    assert receipt.keep_until == receipt.received_at + TRASH_S
    with pytest.raises(SignatureError):
        verify_receipt(done.receipt, cert=cert, service_root=generate_key().public)
    with pytest.raises(SignatureError):
        verify_receipt(
            bytes([done.receipt[0] ^ 1]) + done.receipt[1:], cert=cert, service_root=world.root_key.public
        )


async def test_AZK_70_eleventh_generation_goes_to_the_trash_and_after_thirty_days_it_is_gone(enrolled):
    world = enrolled
    parent, dropped = None, []
    for number in range(1, 12):
        done, parent = await backup(world, number, [], parent=parent)
        dropped += done.dropped
        world.clock.advance(DAY_S)
        world.carrier.directory.refresh()
    assert len(dropped) == 1
    reading = await world.session(await world.open(mode="read"))
    items = await world.storage.list_generations(reading)
    assert len(items) == 11
    assert [item.generation for item in items if item.in_trash] == dropped
    world.clock.advance(TRASH_S - DAY_S - 1)
    assert world.carrier.admin.gc().generations_expired == 0
    world.clock.advance(1)
    assert world.carrier.admin.gc().generations_expired == 1
    world.carrier.directory.refresh()
    reading = await world.session(await world.open(mode="read"))
    assert len(await world.storage.list_generations(reading)) == 10
    assert (await world.storage.read_generation(reading, dropped[0])).code is Code.NOT_FOUND


async def test_head_outlives_the_expiry_of_its_generation(enrolled):
    """The chain goes on from what was committed last, whatever retention dropped."""
    world = enrolled
    parent = None
    for number in range(1, 13):
        _, parent = await backup(world, number, [], parent=parent)
    world.clock.advance(TRASH_S)
    world.carrier.admin.gc()
    world.carrier.directory.refresh()
    opened = await world.open()
    assert (opened.head.sequence, opened.head.root_sha256) == (12, parent)


async def test_each_backup_set_has_its_own_chain(enrolled):
    world = enrolled
    _, first = await backup(world, 1, [])
    given = await world.session(await world.open(backup_set="photos"))
    body = world.nas.commit_body(given.session.text, [], backup_set="photos")
    assert isinstance(await world.storage.commit(given, body), Committed)
    assert (await world.open()).head.root_sha256 == first


async def test_commit_of_more_references_than_one_query_holds_finds_each(enrolled):
    world = enrolled
    given = await world.session(await world.open())
    chunks = sorted(os.urandom(32) for _ in range(1301))
    await world.store(given, chunks[:700])
    await world.store(given, chunks[700:-1])
    answer = await world.storage.commit(given, world.nas.commit_body(given.session.text, chunks))
    assert (answer.code, answer.extra["chunks"]) == (Code.MISSING, [chunks[-1].hex()])
    done = await world.storage.commit(given, world.nas.commit_body(given.session.text, chunks[:-1]))
    assert unverified_receipt(done.receipt).packs == 2
    assert await world.storage.have(given, tuple(chunks)) == b"\1" * 1300 + b"\0"
