"""The directory engine of the vault store: the shared contract, and what only files can do wrong."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest

from nas_agent.adapters.directory_files import create_vault
from nas_agent.adapters.directory_store import GENERATIONS_MAX, DirectoryStore
from nas_agent.core.vault_keys import DeviceKeys
from nas_agent.keys.contract import ContractSecret
from nas_agent.ports import Committed, Missing, Opened, PackAccepted, Refusal
from runtime.clock import SystemClock
from runtime.errors import LocalError
from tests.contract.vault_maker import CONTRACT, ListRefs, make_device, make_session
from tests.contract.vault_store_suite import (
    VaultStoreContract,
    make_generation,
    opened,
    put,
    read_session,
)
from wire.vault.root import root_hash

SECRET = ContractSecret(b"\x11" * 32)


@attrs.frozen
class DirectoryRig:
    root: Path
    device: DeviceKeys
    other: DeviceKeys

    def store(self, device: DeviceKeys | None = None) -> DirectoryStore:
        return DirectoryStore(
            self.root, contract=CONTRACT, contract_sign_key=SECRET.public.sign_key, clock=SystemClock()
        )

    def packs(self) -> set[str]:
        return {path.name for path in (self.root / "packs").glob("*/*")}


@pytest.fixture
def rig(tmp_path: Path) -> DirectoryRig:
    create_vault(tmp_path / "vault", contract=CONTRACT, owner_copy=b"{}")
    return DirectoryRig(tmp_path / "vault", make_device(SECRET), make_device(SECRET, seed=2))


class TestDirectoryStore(VaultStoreContract):
    pass


async def test_a_vault_in_use_is_not_opened_by_a_second_writer_but_by_many_readers(rig: DirectoryRig) -> None:
    store, _, _ = await opened(rig)
    other = rig.store()
    answer = await other.open_session("append", "set", make_session(rig.device).header)
    assert isinstance(answer, Refusal)
    assert answer.code == "conflict"
    await store.close()
    readers = [await read_session(rig), await read_session(rig)]
    for reader in readers:
        await reader.close()


async def test_a_device_of_another_contract_cannot_write(rig: DirectoryRig) -> None:
    stranger = make_device(ContractSecret(b"\x22" * 32), seed=9)
    answer = await rig.store().open_session("append", "set", make_session(stranger).header)
    assert isinstance(answer, Refusal)
    assert answer.code == "refused"


async def test_a_directory_that_is_no_vault_or_anothers_is_refused_in_one_sentence(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, contract=CONTRACT, contract_sign_key=bytes(32), clock=SystemClock())
    with pytest.raises(LocalError, match=r"no vault\.json"):
        await store.open_session("read", "set", None)
    create_vault(tmp_path / "v", contract="AZK0000000002", owner_copy=b"")
    store = DirectoryStore(
        tmp_path / "v", contract=CONTRACT, contract_sign_key=bytes(32), clock=SystemClock()
    )
    with pytest.raises(LocalError, match="AZK0000000002"):
        await store.open_session("read", "set", None)
    with pytest.raises(LocalError, match="empty"):
        create_vault(tmp_path / "v", contract=CONTRACT, owner_copy=b"")


async def test_the_index_is_rebuilt_from_clear_trailers_without_any_key(rig: DirectoryRig) -> None:
    await make_generation(rig, b"one" * 1000, b"two" * 1000)
    reader = await read_session(rig)
    made = make_session(rig.device)
    ids = [made.id_of(b"one" * 1000), made.id_of(b"two" * 1000)]
    (info,) = await reader.list_generations()  # type: ignore[misc]
    before = (await reader.locate(info.generation, ids), await reader.list_generations())
    await reader.close()
    for path in rig.root.glob("index.sqlite*"):
        path.unlink()
    reader = await read_session(rig)
    assert (await reader.locate(info.generation, ids), await reader.list_generations()) == before
    await reader.close()


async def test_a_damaged_index_is_rebuilt(rig: DirectoryRig) -> None:
    await make_generation(rig, b"data")
    for path in rig.root.glob("index.sqlite-*"):
        path.unlink()
    (rig.root / "index.sqlite").write_bytes(b"SQLite format 3\0" + os.urandom(8000))
    reader = await read_session(rig)
    assert len(await reader.list_generations()) == 1  # type: ignore[arg-type]
    await reader.close()


async def test_a_pack_that_was_named_but_not_indexed_before_a_crash_is_found_again(rig: DirectoryRig) -> None:
    store, made, _ = await opened(rig)
    pack = made.pack([b"just written" * 100])
    store._files.write_pack(pack.name, pack.data)  # type: ignore[attr-defined]  # the crash: no index rows
    os.close(store._lock_fd)  # type: ignore[attr-defined]  # a dead process holds no lock
    store, _, _ = await opened(rig)
    assert list(await store.have([pack.items[0].chunk])) == [True]
    await store.close()


async def test_a_root_whose_rows_were_lost_is_listed_again(rig: DirectoryRig) -> None:
    blob = await make_generation(rig, b"kept")
    store = rig.store()
    await store.open_session("read", "set", None)
    store._index.remove_generation(root_hash(blob)[:32])  # type: ignore[union-attr]
    await store.close()
    reader = await read_session(rig)
    assert [info.root_sha256 for info in await reader.list_generations()] == [root_hash(blob)]  # type: ignore[union-attr]
    await reader.close()


async def test_a_planted_root_file_is_not_listed(rig: DirectoryRig) -> None:
    await make_generation(rig, b"good")
    (path,) = rig.root.glob("generations/*/*/*.root")
    other = path.with_name("0000000002.root")
    other.write_bytes(bytes(64) + path.read_bytes()[64:])
    other.with_suffix(".local").write_bytes(path.with_suffix(".local").read_bytes())
    reader = await read_session(rig)
    assert [info.sequence for info in await reader.list_generations()] == [1]  # type: ignore[union-attr]
    await reader.close()


async def test_the_eleventh_generation_drops_the_oldest_and_its_packs_azk_70(rig: DirectoryRig) -> None:
    parent = None
    shared = b"in every generation" * 50
    for sequence in range(1, GENERATIONS_MAX + 2):
        store, made, _ = await opened(rig, sequence)
        there = list(await store.have([made.id_of(shared)]))
        ids = await put(store, made, f"only {sequence}".encode(), *([] if there[0] else [shared]))
        refs = ListRefs([*ids, made.id_of(shared)])
        blob = made.root(refs, sequence=sequence, parent=parent)
        answer = await store.commit(blob, refs)
        assert isinstance(answer, Committed)
        parent = root_hash(blob)
        await store.close()
    reader = await read_session(rig)
    listed = await reader.list_generations()
    assert [info.sequence for info in listed] == list(range(2, 12))  # type: ignore[union-attr]
    # The first pack holds the shared chunk too: needed by all, so it stays.
    assert len(rig.packs()) == GENERATIONS_MAX + 1
    await reader.close()


async def test_collection_deletes_packs_nobody_needs_and_no_others(rig: DirectoryRig) -> None:
    parent, names = None, []
    for sequence in range(1, GENERATIONS_MAX + 3):
        store, made, _ = await opened(rig, sequence)
        pack = made.pack([f"only {sequence}".encode() * 100])
        names.append(pack.name)
        await store.put_pack(pack.name, pack.data)
        refs = ListRefs([pack.items[0].chunk])
        blob = made.root(refs, sequence=sequence, parent=parent)
        assert isinstance(await store.commit(blob, refs), Committed)
        parent = root_hash(blob)
        await store.close()
    assert rig.packs() == set(names[2:])


@pytest.mark.parametrize("damage", ["gone", "cut short", "one bit"])
async def test_nothing_is_collected_while_the_references_of_a_generation_are_damaged(
    rig: DirectoryRig, damage: str
) -> None:
    parent = None
    for sequence in range(1, GENERATIONS_MAX + 3):
        if sequence == GENERATIONS_MAX:  # damaged before anything is collected
            damage_file(next(rig.root.glob("generations/*/*/0000000005.refs")), damage)
        data = b"generation %d" % sequence
        parent = root_hash(await make_generation(rig, data * 100, sequence=sequence, parent=parent))
    assert len(rig.packs()) == GENERATIONS_MAX + 2


def damage_file(path: Path, damage: str) -> None:
    data = bytearray(path.read_bytes())
    match damage:
        case "gone":
            path.unlink()
        case "cut short":
            path.write_bytes(data[:-32])
        case _:
            data[7] ^= 1
            path.write_bytes(data)


async def test_packs_of_an_interrupted_session_are_kept_for_its_lease(rig: DirectoryRig) -> None:
    store, made, _ = await opened(rig)
    pack = made.pack([b"interrupted" * 100])
    await store.put_pack(pack.name, pack.data)
    os.close(store._lock_fd)  # type: ignore[attr-defined]
    other = make_device(SECRET, seed=3)
    rig = attrs.evolve(rig, device=other)
    parent = None
    for sequence in range(1, GENERATIONS_MAX + 3):
        blob = await make_generation(rig, b"g%d" % sequence, sequence=sequence, parent=parent)
        parent = root_hash(blob)
    assert pack.name in rig.packs()


async def test_another_devices_chunks_never_answer_for_ours(rig: DirectoryRig) -> None:
    store, made, _ = await opened(rig)
    (ours,) = await put(store, made, b"ours")
    await store.close()
    other = attrs.evolve(rig, device=make_device(SECRET, seed=5))
    store, foreign, _ = await opened(other)
    assert list(await store.have([ours])) == [False]
    refs = ListRefs([ours])
    assert await store.commit(foreign.root(refs), refs) == Missing((ours,))
    await store.close()


async def test_a_write_that_fails_leaves_no_half_pack_and_may_be_repeated(rig: DirectoryRig) -> None:
    import resource
    import signal

    store, made, _ = await opened(rig)
    pack = made.pack([os.urandom(200_000)])
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
        with pytest.raises(OSError):
            await store.put_pack(pack.name, pack.data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert rig.packs() == set()
    assert isinstance(await store.put_pack(pack.name, pack.data), PackAccepted)
    await store.close()


async def test_references_out_of_order_are_refused(rig: DirectoryRig) -> None:
    store, made, _ = await opened(rig)
    ids = sorted(await put(store, made, b"1", b"2", b"3"), reverse=True)
    refs = ListRefs(ids, keep_order=True)
    answer = await store.commit(made.root(refs), refs)
    assert isinstance(answer, Refusal)
    await store.close()


async def test_an_opened_answer_knows_no_limit(rig: DirectoryRig) -> None:
    store, _, answer = await opened(rig)
    assert isinstance(answer, Opened)
    assert answer.limit_bytes == 0
    await store.close()
