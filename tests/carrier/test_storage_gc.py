"""Key-less collection: nothing that is referenced or protected is ever deleted; scrub and rebuild (design §6.7)."""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter

import pytest
import sqlalchemy as sa

from carrier.engines.sql import quota
from carrier.engines.sql.schema import chunk as chunk_table
from carrier.engines.sql.schema import pack as pack_table
from carrier.engines.sql.schema import session_pack as session_pack_table
from carrier.engines.sql.schema import storage_contract
from carrier.storage.outcomes import Code, Committed, GcReport, Refused
from carrier.storage.packs import PackPut
from carrier.storage.tables import CONDEMNED_S, LEASE_S, ORPHAN_AGE_S
from wire.ids import BackupSetName

DAY_S = 86_400


def blob_path(world, name):
    (path,) = (world.directory / "blobs").glob(f"*/??/{name.hex()}-*")
    return path


async def committed(world, chunks):
    given = await world.session(await world.open())
    name = await world.store(given, chunks)
    done = await world.storage.commit(given, world.nas.commit_body(given.session.text, chunks))
    assert isinstance(done, Committed)
    await world.storage.close_session(given)
    return name, done


async def collect(world, *, after_s=CONDEMNED_S):
    """Condemn, wait, delete."""
    first = world.carrier.admin.gc()
    world.clock.advance(after_s)
    world.carrier.directory.refresh()
    return first, world.carrier.admin.gc()


async def test_unreferenced_pack_of_a_closed_session_goes_and_frees_its_quota(enrolled):
    world = enrolled
    given = await world.session(await world.open())
    await world.store(given, [os.urandom(32)])
    assert world.carrier.admin.gc().packs_condemned == 0, "the open session protects it"
    await world.storage.close_session(given)
    condemned, deleted = await collect(world)
    assert (condemned.packs_condemned, condemned.packs_deleted) == (1, 0)
    assert deleted.packs_deleted == 1
    assert world.blob_names() == []
    assert world.carrier.admin.read_usage(world.contract).used_bytes == 0


async def test_lease_protects_for_fourteen_days_without_contact(enrolled):
    world = enrolled
    given = await world.session(await world.open())
    await world.store(given, [os.urandom(32)])
    world.clock.advance(LEASE_S - 1)
    assert world.carrier.admin.gc().packs_condemned == 0
    world.clock.advance(1)
    assert world.carrier.admin.gc().packs_condemned == 1


async def test_referenced_pack_stays(enrolled):
    world = enrolled
    await committed(world, [os.urandom(32)])
    world.clock.advance(1000 * DAY_S)
    _, second = await collect(world)
    assert second == GcReport(0, 0, 0, 0, 0, 0)
    assert len(world.blob_names()) == 1


async def test_dry_run_says_and_changes_nothing(enrolled):
    world = enrolled
    given = await world.session(await world.open())
    await world.store(given, [os.urandom(32)])
    await world.storage.close_session(given)
    before = (world.dump(), world.blob_names())
    assert world.carrier.admin.gc(dry_run=True).packs_condemned == 1
    assert (world.dump(), world.blob_names()) == before


@pytest.mark.parametrize("by", ["have", "state", "put", "commit"])
async def test_condemned_pack_is_revived_by_use(enrolled, by):
    world = enrolled
    given = await world.session(await world.open())
    chunk = os.urandom(32)
    data = world.nas.pack(given.session.text, [chunk])
    await world.put(given, data)
    await world.storage.close_session(given)
    world.carrier.admin.gc()
    assert world.carrier.admin.read_usage(world.contract).used_bytes == 0
    later = await world.session(await world.open())
    match by:
        case "have":
            assert await world.storage.have(later, (chunk,)) == b"\1"
        case "state":
            assert await world.storage.pack_states(later, (hashlib.sha256(data).digest(),)) == b"\2"
        case "put":
            assert not (await world.put(later, data)).new
        case _:
            body = world.nas.commit_body(later.session.text, [chunk])
            assert isinstance(await world.storage.commit(later, body), Committed)
    assert world.carrier.admin.read_usage(world.contract).used_bytes == len(data)
    _, second = await collect(world)
    assert second.packs_deleted == 0
    assert len(world.blob_names()) == 1


async def test_revival_never_passes_the_quota(enrolled):
    world = enrolled
    given = await world.session(await world.open())
    chunk = os.urandom(32)
    data = world.nas.pack(given.session.text, [chunk])
    await world.put(given, data)
    await world.storage.close_session(given)
    world.carrier.admin.gc()
    limit = 10 * 2**30
    with world.carrier.database.write() as connection:
        connection.execute(sa.update(storage_contract).values(used_bytes=limit - len(data) + 1))
    later = await world.session(await world.open())
    assert await world.storage.have(later, (chunk,)) == b"\0"
    assert (await world.put(later, data)).code is Code.QUOTA_FULL
    with world.carrier.database.write() as connection:
        connection.execute(sa.update(storage_contract).values(used_bytes=limit - len(data)))
    assert not (await world.put(later, data)).new
    assert world.carrier.admin.read_usage(world.contract).used_bytes == limit


async def test_deleting_pack_is_missing_and_comes_back_under_another_key(enrolled):
    """*deleting* cannot be revived; the same bytes get a new incarnation, so a late delete cannot hit them."""
    world = enrolled
    given = await world.session(await world.open())
    chunk = os.urandom(32)
    data = world.nas.pack(given.session.text, [chunk])
    await world.put(given, data)
    await world.storage.close_session(given)
    world.carrier.admin.gc()
    world.clock.advance(CONDEMNED_S)
    world.carrier.directory.refresh()
    (old,) = world.carrier.admin.stores.gc.claim_condemned(int(world.clock.now_s()), dry_run=False)
    later = await world.session(await world.open())
    assert await world.storage.have(later, (chunk,)) == b"\0"
    body = world.nas.commit_body(later.session.text, [chunk])
    assert (await world.storage.commit(later, body)).code is Code.MISSING
    assert (await world.put(later, data)).new
    assert isinstance(await world.storage.commit(later, body), Committed)
    report = world.carrier.admin.gc()
    assert report.packs_deleted == 1, "the interrupted deletion is completed"
    (name,) = world.blob_names()
    assert name != old.key
    assert world.carrier.admin.scrub() == ()


async def test_pack_that_the_collector_claimed_after_it_was_read_is_not_revived(enrolled):
    """On PostgreSQL a commit may have read the pack as condemned while the collector claims it: its bytes will go."""
    world = enrolled
    given = await world.session(await world.open())
    await world.store(given, [os.urandom(32)])
    await world.storage.close_session(given)
    world.carrier.admin.gc()
    later = await world.session(await world.open())
    now_s = int(world.clock.now_s())
    with world.carrier.database.write() as connection:
        contract = quota.lock_contract(connection, later.contract)
        (read_before,) = connection.execute(sa.select(pack_table)).all()
        assert read_before.state == "condemned"
        connection.execute(sa.update(pack_table).values(state="deleting"))
        assert quota.revive(connection, contract, later, [read_before], now_s) == set()
    assert world.carrier.admin.read_usage(world.contract).used_bytes == 0
    assert world.carrier.admin.gc().packs_deleted == 1


async def test_trash_keeps_the_bytes_for_thirty_days(enrolled):
    world = enrolled
    chunk = os.urandom(32)
    _, done = await committed(world, [chunk])
    parent = hashlib.sha256(_root(world, done)).hexdigest()
    for number in range(2, 12):
        given = await world.session(await world.open())
        body = world.nas.commit_body(given.session.text, [], sequence=number, parent=parent)
        parent = hashlib.sha256(body[4 : 4 + int.from_bytes(body[:4], "big")]).hexdigest()
        assert isinstance(await world.storage.commit(given, body), Committed)
        await world.storage.close_session(given)
    usage = world.carrier.admin.read_usage(world.contract)
    assert (usage.generations, usage.trashed) == (10, 1)
    world.clock.advance(30 * DAY_S - 1)
    assert world.carrier.admin.gc().packs_condemned == 0
    world.clock.advance(1)
    assert world.carrier.admin.gc().packs_condemned == 1


def _root(world, done):
    store = world.storage.stores.generations
    return store.find_generation(world.contract, done.generation).root


async def test_crash_between_publish_and_row_leaves_an_orphan_that_only_the_operator_removes(enrolled):
    world = enrolled
    writer = world.storage.blobs.begin()
    writer.write(b"published, then the power went")
    key = f"{world.contract}/{'ab' * 32}-{'cd' * 16}"
    writer.publish(key)
    blob = world.directory / "blobs" / world.contract.text / "ab" / f"{'ab' * 32}-{'cd' * 16}"
    assert world.carrier.admin.gc().orphans == 0, "too young: its upload may still be running"
    old_s = world.clock.now_s() - ORPHAN_AGE_S
    os.utime(blob, (old_s, old_s))
    assert world.carrier.admin.gc() == GcReport(0, 0, 0, 0, 1, 0)
    assert blob.exists()
    assert world.carrier.admin.gc(remove_orphans=True).orphans_deleted == 1
    assert not blob.exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "swapped"])
async def test_scrub_names_damaged_packs_and_the_generations_that_need_them(enrolled, damage):
    world = enrolled
    name, done = await committed(world, [os.urandom(32)])
    other = await world.session(await world.open())
    sound = await world.store(other, [os.urandom(32)])
    path = blob_path(world, name)
    data = path.read_bytes()
    match damage:
        case "flip":
            changed = bytes([*data[:100], data[100] ^ 4, *data[101:]])
        case "cut":
            changed = data[:-1]
        case "swapped":
            changed = blob_path(world, sound).read_bytes()
        case _:
            changed = None
    path.unlink()
    if changed is not None:
        path.write_bytes(changed)
    (found,) = world.carrier.admin.scrub()
    assert (found.sha256, found.generations) == (name.hex(), (done.generation.text,))
    assert found.cause


async def test_index_is_rebuilt_from_trailers_without_any_key(enrolled):
    world = enrolled
    chunks = [os.urandom(32) for _ in range(4)]
    name, done = await committed(world, chunks)
    asked = (done.generation.text, tuple(chunks))
    with world.carrier.database.write() as connection:
        connection.execute(sa.delete(chunk_table))
    reading = await world.session(await world.open(mode="read"))
    assert await world.storage.locate(reading, *asked) == [None] * 4
    report = world.carrier.admin.rebuild_index()
    assert (report.refreshed, report.added, report.damaged) == (1, 0, ())
    assert [place[0] for place in await world.storage.locate(reading, *asked)] == [name] * 4
    assert world.carrier.admin.rebuild_index() == report


async def test_row_that_was_lost_comes_back_and_is_not_collected(enrolled):
    world = enrolled
    given = await world.session(await world.open())
    chunk = os.urandom(32)
    await world.store(given, [chunk])
    with world.carrier.database.write() as connection:
        for table in (chunk_table, session_pack_table, pack_table):
            connection.execute(sa.delete(table))
        connection.execute(sa.update(storage_contract).values(used_bytes=0))
    report = world.carrier.admin.rebuild_index()
    assert (report.added, report.skipped) == (1, 0)
    assert await world.storage.have(given, (chunk,)) == b"\1"
    await world.storage.close_session(given)
    assert world.carrier.admin.gc().packs_condemned == 0
    assert world.carrier.admin.read_usage(world.contract).packs == 1


async def test_rebuild_skips_damaged_and_foreign_blobs(enrolled):
    world = enrolled
    name, _ = await committed(world, [os.urandom(32)])
    path = blob_path(world, name)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1])
    report = world.carrier.admin.rebuild_index()
    assert (report.refreshed, report.added, len(report.damaged)) == (0, 0, 1)


ROOM_BYTES = 60_000
STEPS = 250


class Walk:
    """A random life of one NAS beside a model; after every step each generation is readable and quota is exact.

    The service is the real one, over SQLite and files. `seed` replays a walk.
    """

    def __init__(self, world, seed):
        self.world = world
        self.random = random.Random(seed)
        self.pad = 10 * 2**30 - ROOM_BYTES
        with world.carrier.database.write() as connection:
            connection.execute(sa.update(storage_contract).values(used_bytes=self.pad))
        self.chunks = [bytes([number]) * 32 for number in range(12)]
        self.sessions, self.head, self.generations = [], (0, None), {}
        self.seen = Counter()

    async def step(self):
        steps = {
            self.open_session: 3,
            self.put: 5,
            self.have: 2,
            self.commit: 5,
            self.close: 3,
            self.wait: 3,
            self.collect: 5,
            self.claim_and_crash: 1,
        }
        (chosen,) = self.random.choices(list(steps), weights=list(steps.values()))
        if self.sessions or chosen in {self.open_session, self.wait, self.collect, self.claim_and_crash}:
            await chosen()
        self.check_generations()
        self.check_quota()

    async def open_session(self):
        if len(self.sessions) < 3:
            opened = await self.world.open()
            self.sessions.append([await self.world.session(opened), opened, set()])

    async def put(self):
        given, _, promised = self.random.choice(self.sessions)
        names = self.random.sample(self.chunks, self.random.randint(1, 4))
        data = self.world.nas.pack(given.session.text, names, frame_bytes=self.random.randint(200, 3000))
        answer = await self.world.put(given, data)
        if isinstance(answer, PackPut):
            promised.update(names)
        else:
            assert answer.code is Code.QUOTA_FULL
            self.seen["full"] += 1

    async def have(self):
        given, _, promised = self.random.choice(self.sessions)
        answer = await self.world.storage.have(given, tuple(self.chunks))
        there = {name for name, state in zip(self.chunks, answer, strict=True) if state}
        assert promised <= there, "what a session was told is there, is there"
        promised |= there

    async def commit(self):
        given, _, promised = self.random.choice(self.sessions)
        unsure = self.random.random() < 0.4
        pool = self.chunks if unsure else sorted(promised)
        refs = self.random.sample(pool, self.random.randint(0, min(5, len(pool))))
        sequence, parent = self.head
        body = self.world.nas.commit_body(given.session.text, refs, sequence=sequence + 1, parent=parent)
        answer = await self.world.storage.commit(given, body)
        if isinstance(answer, Refused):
            assert answer.code is Code.MISSING
            assert not set(refs) <= promised
            self.seen["missing"] += 1
            return
        root = body[4 : 4 + int.from_bytes(body[:4], "big")]
        self.head = (sequence + 1, hashlib.sha256(root).hexdigest())
        self.generations[answer.generation] = sorted(refs)
        self.seen["committed"] += 1

    async def close(self):
        entry = self.random.choice(self.sessions)
        await self.world.storage.close_session(entry[0])
        self.sessions.remove(entry)

    async def wait(self):
        hours = self.random.choice([1, 2, 24 * 15])
        self.world.clock.advance(hours * 3600)
        self.world.carrier.directory.refresh()
        if hours * 3600 >= LEASE_S:
            self.sessions.clear()
        for entry in self.sessions:
            entry[0] = await self.world.session(entry[1])

    async def collect(self):
        report = self.world.carrier.admin.gc()
        self.seen["condemned"] += report.packs_condemned
        self.seen["deleted"] += report.packs_deleted
        self.seen["expired"] += report.generations_expired

    async def claim_and_crash(self):
        """The collector dies between claiming and deleting; the next run goes on."""
        now_s = int(self.world.clock.now_s())
        self.world.carrier.admin.stores.gc.claim_condemned(now_s, dry_run=False)

    def check_generations(self):
        store, contract = self.world.storage.stores, self.world.contract
        listed = store.generations.list_generations(contract, BackupSetName.parse("home"))
        names = {row.generation for row in listed}
        self.generations = {name: refs for name, refs in self.generations.items() if name in names}
        assert names == set(self.generations)
        places = []
        for name, refs in self.generations.items():
            places += store.packs.locate(contract, name, refs)
        assert None not in places, "a chunk of a generation is gone"
        blobs = {blob.key: blob.size_bytes for blob in self.world.storage.blobs.list_blobs()}
        for name in {place[0] for place in places}:
            pack = store.packs.find_pack(contract, name)
            assert blobs[pack.key] == pack.size_bytes

    def check_quota(self):
        usage = self.world.carrier.admin.read_usage(self.world.contract)
        live = sa.select(sa.func.coalesce(sa.func.sum(pack_table.c.size_bytes), 0)).where(
            pack_table.c.state == "live"
        )
        with self.world.carrier.database.read() as connection:
            assert usage.used_bytes == self.pad + connection.execute(live).scalar_one()
        assert usage.used_bytes + usage.reserved_bytes + usage.in_flight_bytes <= usage.limit_bytes


@pytest.mark.parametrize("seed", [1, 2])
async def test_random_life_loses_no_generation_and_no_byte_of_quota(enrolled, seed):
    walk = Walk(enrolled, seed)
    for number in range(STEPS):
        try:
            await walk.step()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, step {number}: {error}") from error
    assert enrolled.carrier.admin.scrub() == ()
    happened = {"committed", "condemned", "deleted", "expired", "missing", "full"}
    assert {name for name in happened if not walk.seen[name]} == set(), "the walk must reach every case"
