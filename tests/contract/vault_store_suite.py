"""The contract of `nas_agent.ports.VaultStore`, as tests. Every engine subclasses `VaultStoreContract`.

A subclass gives the fixture `rig`: `rig.store()` returns a new client of the same vault, `rig.device` the keys of an
enrolled device of contract `CONTRACT`, backup set `set`, `rig.other` those of a second one. Reading may need another
client than appending: both come from `rig.store()`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

from nas_agent.core.vault_keys import DeviceKeys
from nas_agent.ports import (
    PACK_STORED,
    PACK_UNKNOWN,
    Committed,
    Missing,
    Opened,
    PackAccepted,
    Refusal,
    VaultStore,
)
from tests.contract.vault_maker import ListRefs, MadeSession, make_session
from wire.vault.frame import parse_frame_header
from wire.vault.root import root_hash, unverified_root
from wire.vault.session import open_header


class Rig(Protocol):
    @property
    def device(self) -> DeviceKeys: ...

    @property
    def other(self) -> DeviceKeys: ...

    def store(self, device: DeviceKeys | None = None) -> VaultStore: ...


async def opened(
    rig: Rig, sequence: int = 1, device: DeviceKeys | None = None
) -> tuple[VaultStore, MadeSession, Opened]:
    store, made = rig.store(device), make_session(device or rig.device, sequence=sequence)
    answer = await store.open_session("append", "set", made.header)
    assert isinstance(answer, Opened), answer
    return store, made, answer


async def put(store: VaultStore, made: MadeSession, *chunks: bytes) -> list[bytes]:
    pack = made.pack(chunks)
    answer = await store.put_pack(pack.name, pack.data)
    assert isinstance(answer, PackAccepted), answer
    return [made.id_of(chunk) for chunk in chunks]


async def make_generation(rig: Rig, *chunks: bytes, sequence: int = 1, parent: str | None = None) -> bytes:
    store, made, _ = await opened(rig, sequence)
    refs = ListRefs(await put(store, made, *chunks))
    blob = made.root(refs, sequence=sequence, parent=parent)
    answer = await store.commit(blob, refs)
    assert isinstance(answer, Committed), answer
    await store.close()
    return blob


async def plant(rig: Rig, ids: Sequence[bytes], *, sequence: int) -> None:
    """Store frames of `rig.other` under these IDs, and a generation that needs them."""
    store, made, answer = await opened(rig, sequence, rig.other)
    head = answer.head.root_sha256 if answer.head else None
    pack = made.pack_under(ids)
    assert isinstance(await store.put_pack(pack.name, pack.data), PackAccepted)
    refs = ListRefs(ids)
    assert isinstance(await store.commit(made.root(refs, sequence=sequence, parent=head), refs), Committed)
    await store.close()


async def _is_by(reader: VaultStore, generation: str, device: DeviceKeys) -> bool:
    blob = await reader.read_root(generation)
    assert not isinstance(blob, Refusal)
    return unverified_root(blob).device_key == device.device.public.hex()


async def read_session(rig: Rig) -> VaultStore:
    store = rig.store()
    assert isinstance(await store.open_session("read", "set", None), Opened)
    return store


class VaultStoreContract:
    async def test_a_new_backup_set_has_no_head(self, rig: Rig) -> None:
        store, _, answer = await opened(rig)
        assert answer.head is None
        await store.close()

    async def test_have_names_exactly_the_chunks_that_were_put(self, rig: Rig) -> None:
        store, made, _ = await opened(rig)
        first, second = await put(store, made, b"one" * 100, b"two" * 100)
        assert list(await store.have((second, bytes(32), first))) == [True, False, True]
        await store.close()

    async def test_a_pack_put_twice_is_accepted_twice_and_kept_once(self, rig: Rig) -> None:
        store, made, _ = await opened(rig)
        pack = made.pack([b"same" * 50])
        data = memoryview(bytes(pack.data))
        first = await store.put_pack(pack.name, data)
        second = await store.put_pack(pack.name, data)
        assert isinstance(first, PackAccepted)
        assert isinstance(second, PackAccepted)
        assert (first.new, second.new) == (True, False)
        await store.close()

    async def test_states_tell_stored_from_unknown(self, rig: Rig) -> None:
        store, made, _ = await opened(rig)
        pack = made.pack([b"x" * 99])
        await store.put_pack(pack.name, pack.data)
        assert list(await store.pack_states((pack.name, "0" * 64))) == [PACK_STORED, PACK_UNKNOWN]
        await store.close()

    async def test_a_pack_whose_trailer_another_device_signed_is_refused(self, rig: Rig) -> None:
        store, made, _ = await opened(rig)
        stranger = MadeSession(
            made.device,
            type(made.keys)(made.keys.session, made.keys.session_key, made.keys.algorithm, _other_key()),
            made.header,
        )
        pack = stranger.pack([b"planted" * 20])
        answer = await store.put_pack(pack.name, pack.data)
        assert isinstance(answer, Refusal)
        assert answer.code == "bad-format"
        assert list(await store.pack_states((pack.name,))) == [PACK_UNKNOWN]
        await store.close()

    async def test_a_commit_makes_a_generation_that_a_reader_finds_byte_for_byte(self, rig: Rig) -> None:
        store, made, _ = await opened(rig)
        pack = made.pack([b"a" * 5000, b"b" * 5000])
        data = bytes(pack.data)
        await store.put_pack(pack.name, pack.data)
        refs = ListRefs([item.chunk for item in pack.items])
        blob = made.root(refs)
        committed = await store.commit(blob, refs)
        assert isinstance(committed, Committed)
        await store.close()
        reader = await read_session(rig)
        (info,) = await reader.list_generations()  # type: ignore[misc]
        assert (info.sequence, info.root_sha256) == (1, root_hash(blob))
        assert info.generation == committed.generation
        assert info.stored_bytes == len(data)
        assert await reader.read_root(info.generation) == blob
        assert await reader.read_receipt(info.generation) == committed.receipt
        places = await reader.locate(info.generation, [pack.items[1].chunk, bytes(32)])
        assert not isinstance(places, Refusal)
        at = places[0]
        assert at is not None
        assert places[1] is None
        assert (at.pack, at.offset, at.length) == (pack.name, pack.items[1].offset, pack.items[1].length)
        frame = await reader.read_pack_range(at.pack, at.offset, at.length)
        assert frame == data[at.offset : at.offset + at.length]
        assert await reader.read_session_header(made.keys.session.hex()) == made.header
        await reader.close()

    async def test_the_same_commit_again_gives_the_same_answer(self, rig: Rig) -> None:
        store, made, _ = await opened(rig)
        refs = ListRefs(await put(store, made, b"z" * 77))
        blob = made.root(refs)
        first = await store.commit(blob, refs)
        assert isinstance(first, Committed)
        assert await store.commit(blob, refs) == first
        await store.close()

    async def test_a_commit_of_chunks_that_are_not_there_names_them_and_keeps_nothing(self, rig: Rig) -> None:
        store, made, _ = await opened(rig)
        (there,) = await put(store, made, b"there" * 9)
        gone = made.id_of(b"gone")
        refs = ListRefs([there, gone])
        assert await store.commit(made.root(refs), refs) == Missing((gone,))
        await store.close()
        reader = await read_session(rig)
        assert await reader.list_generations() == ()
        await reader.close()

    async def test_a_commit_on_another_parent_than_the_head_is_refused(self, rig: Rig) -> None:
        blob = await make_generation(rig, b"first")
        store, made, answer = await opened(rig, sequence=2)
        assert answer.head is not None
        assert (answer.head.sequence, answer.head.root_sha256) == (1, root_hash(blob))
        refs = ListRefs(await put(store, made, b"second"))
        wrong = made.root(refs, sequence=2, parent=hashlib.sha256(b"another").hexdigest())
        refused = await store.commit(wrong, refs)
        assert isinstance(refused, Refusal)
        assert refused.code == "parent-mismatch"
        good = await store.commit(made.root(refs, sequence=2, parent=root_hash(blob)), refs)
        assert isinstance(good, Committed)
        await store.close()

    async def test_references_that_differ_from_the_signed_ones_are_refused(self, rig: Rig) -> None:
        store, made, _ = await opened(rig)
        one, two = await put(store, made, b"one", b"two")
        answer = await store.commit(made.root(ListRefs([one, two])), ListRefs([one]))
        assert isinstance(answer, Refusal)
        await store.close()

    async def test_what_is_not_there_is_not_found(self, rig: Rig) -> None:
        await make_generation(rig, b"something")
        reader = await read_session(rig)
        for answer in (
            await reader.read_root("0" * 32),
            await reader.locate("0" * 32, [bytes(32)]),
            await reader.read_pack_range("0" * 64, 0, 10),
            await reader.read_session_header("0" * 32),
        ):
            assert isinstance(answer, Refusal)
            assert answer.code == "not-found"
        await reader.close()

    async def test_each_generation_finds_the_frames_of_its_own_device_whoever_came_first(
        self, rig: Rig
    ) -> None:
        """A NAS gone bad plants frames under the IDs of another one: before it, after it, and in a generation too."""
        chunk_ids = [make_session(rig.device).id_of(b"ours")]
        await plant(rig, chunk_ids, sequence=1)
        await make_generation(rig, b"ours")
        await plant(rig, chunk_ids, sequence=2)
        reader = await read_session(rig)
        listed = await reader.list_generations()
        assert not isinstance(listed, Refusal)
        found: dict[str, set[str]] = {}
        for info in listed:
            blob = await reader.read_root(info.generation)
            assert not isinstance(blob, Refusal)
            places = await reader.locate(info.generation, chunk_ids)
            assert not isinstance(places, Refusal)
            (at,) = places
            assert at is not None
            frame = await reader.read_pack_range(at.pack, at.offset, at.length)
            assert not isinstance(frame, Refusal)
            session = parse_frame_header(frame).session.hex()
            header = await reader.read_session_header(session)
            assert not isinstance(header, Refusal)
            verified = open_header(header, contract_sign_key=rig.device.contract_sign_public)
            writer = verified.device_key.hex()
            found.setdefault(unverified_root(blob).device_key, set()).add(writer)
        await reader.close()
        assert found == {key: {key} for key in (d.device.public.hex() for d in (rig.device, rig.other))}

    async def test_a_chunk_that_only_another_device_has_is_not_located(self, rig: Rig) -> None:
        chunk_ids = [make_session(rig.device).id_of(b"never sent")]
        await plant(rig, chunk_ids, sequence=1)
        await make_generation(rig, b"ours")
        reader = await read_session(rig)
        listed = await reader.list_generations()
        assert not isinstance(listed, Refusal)
        ours = [info.generation for info in listed if await _is_by(reader, info.generation, rig.device)]
        assert list(await reader.locate(ours[0], chunk_ids)) == [None]  # type: ignore[arg-type]
        await reader.close()

    async def test_closing_twice_and_before_opening_is_harmless(self, rig: Rig) -> None:
        store, _, _ = await opened(rig)
        await store.close()
        await store.close()
        await rig.store().close()


def _other_key():  # type: ignore[no-untyped-def]
    from wire.signing import SigningKey

    return SigningKey(b"\x55" * 32)
