"""A store that has database, blobs and every public key, and lies: each lie is refused by its name (design §6.5).

`LyingStore` changes answers on the way; the vault behind it is whole. Nothing may reach the sink unless the lie is about
a data chunk, which costs the files that need it and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import pytest

from nas_agent.core.packing import SessionKeys
from nas_agent.engine.vault_reader import Anchor
from nas_agent.errors import DamagedChunkError, VaultRefusedError
from nas_agent.keys.contract import ContractSecret
from nas_agent.ports import GenerationInfo, Location, Refusal, VaultStore
from tests.contract.vault_maker import MadeSession, make_device, make_session
from tests.nas_agent.engine_rig import SECRET, EngineRig, MemorySink, make_rig, plain, some_tree
from wire.signing import Context, SigningKey, sign_blob
from wire.vault.root import root_hash, sign_root, unverified_root
from wire.vault.session import sign_header, unverified_header


class LyingStore:
    """Passes everything on, except for what a test replaces."""

    def __init__(self, inner: VaultStore) -> None:
        self._inner = inner
        self.on_list: Callable[[tuple[GenerationInfo, ...]], tuple[GenerationInfo, ...]] = lambda listed: (
            listed
        )
        self.on_root: Callable[[str, bytes], bytes] = lambda _, blob: blob
        self.on_header: Callable[[str, bytes], bytes] = lambda _, blob: blob
        self.on_range: Callable[[str, int, bytes], bytes | Refusal] = lambda _name, _offset, data: data
        self.on_locate: Callable[[Sequence[bytes], list[Location | None]], list[Location | None]] = (
            lambda _, places: places
        )

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    async def list_generations(self) -> tuple[GenerationInfo, ...] | Refusal:
        listed = await self._inner.list_generations()
        assert not isinstance(listed, Refusal)
        return self.on_list(listed)

    async def read_root(self, generation: str) -> bytes | Refusal:
        blob = await self._inner.read_root(generation)
        return self.on_root(generation, b"" if isinstance(blob, Refusal) else blob)

    async def read_session_header(self, session: str) -> bytes | Refusal:
        blob = await self._inner.read_session_header(session)
        return self.on_header(session, b"" if isinstance(blob, Refusal) else blob)

    async def locate(self, generation: str, ids: Sequence[bytes]) -> Sequence[Location | None] | Refusal:
        places = await self._inner.locate(generation, ids)
        assert not isinstance(places, Refusal)
        return self.on_locate(ids, list(places))

    async def read_pack_range(self, name: str, offset: int, length: int) -> bytes | Refusal:
        data = await self._inner.read_pack_range(name, offset, length)
        return data if isinstance(data, Refusal) else self.on_range(name, offset, data)


@attrs.define
class Scene:
    """A vault with three generations, and what an attacker knows of it."""

    rig: EngineRig
    infos: list[GenerationInfo] = attrs.field(factory=list)
    roots: dict[str, bytes] = attrs.field(factory=dict)
    headers: dict[str, bytes] = attrs.field(factory=dict)
    files: dict[bytes, bytes] = attrs.field(factory=dict)

    async def refusal(self, lie: Callable[[LyingStore], None], *, anchor: Anchor | None = None) -> str:
        """Restore through a store that lies so; return the name it was refused by. Nothing was written."""
        sink = MemorySink()
        with pytest.raises((VaultRefusedError, DamagedChunkError)) as caught:
            await self._restore(lie, sink, anchor)
        assert sink.touched == 0
        return caught.value.reason if isinstance(caught.value, VaultRefusedError) else caught.value.code

    async def _restore(
        self, lie: Callable[[LyingStore], None], sink: MemorySink, anchor: Anchor | None = None
    ):
        def wrap(inner: VaultStore) -> VaultStore:
            store = LyingStore(inner)
            lie(store)
            return store  # type: ignore[return-value]

        return await attrs.evolve(self.rig, wrap=wrap).restore(sink, anchor=anchor)

    async def damage(self, lie: Callable[[LyingStore], None]) -> tuple[MemorySink, object]:
        """Restore through a store that lies about data; return what came of it."""
        sink = MemorySink()
        return sink, await self._restore(lie, sink)

    @property
    def newest(self) -> GenerationInfo:
        return self.infos[-1]

    @property
    def anchor(self) -> Anchor:
        device_key = self.rig.device.device.public
        return Anchor(device_key, self.newest.sequence, self.newest.root_sha256)


_MADE: list[Scene] = []


@pytest.fixture
async def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """One vault for all tests here: they only read."""
    if not _MADE:
        _MADE.append(await make_scene(tmp_path_factory.mktemp("hostile")))
    return _MADE[0]


async def make_scene(base: Path) -> Scene:
    scene = Scene(make_rig(base))
    source = some_tree(small=20, large=1)
    for number in range(3):
        source.files[b"changing"] = attrs.evolve(
            source.files[b"empty"], data=b"v%d" % number, ctime_ns=number
        )
        result = await scene.rig.backup(source)
        assert result.state == "durable"
    scene.files = plain(source)
    store = scene.rig.store()
    await store.open_session("read", "set", None)
    scene.infos = list(await store.list_generations())  # type: ignore[arg-type]
    for info in scene.infos:
        blob = await store.read_root(info.generation)
        assert isinstance(blob, bytes)
        scene.roots[info.generation] = blob
        session = unverified_root(blob).session
        header = await store.read_session_header(session)
        assert isinstance(header, bytes)
        scene.headers[session] = header
    await store.close()
    return scene


async def test_the_truth_is_restored(scene: Scene) -> None:
    sink, result = await scene.damage(lambda store: None)
    assert sink.files == scene.files
    assert result.complete  # type: ignore[attr-defined]


async def test_a_root_with_one_bit_flipped(scene: Scene) -> None:
    def lie(store: LyingStore) -> None:
        store.on_root = lambda _, blob: blob[:-2] + bytes([blob[-2] ^ 1]) + blob[-1:]

    assert await scene.refusal(lie) == "root-mismatch"


async def test_a_root_with_one_bit_flipped_listed_under_its_new_hash(scene: Scene) -> None:
    blob = bytearray(scene.roots[scene.newest.generation])
    position = blob.index(b'"files":') + 8
    blob[position] ^= 1
    assert await scene.refusal(_substitute(scene, bytes(blob))) == "root-signature"


async def test_an_older_root_shown_as_the_newest(scene: Scene) -> None:
    old = scene.roots[scene.infos[0].generation]
    assert await scene.refusal(_substitute(scene, old)) in {"root-foreign", "chain-fork"}


async def test_an_older_root_shown_as_the_newest_with_its_sequence(scene: Scene) -> None:
    def lie(store: LyingStore) -> None:
        store.on_list = lambda listed: listed[:1]

    assert await scene.refusal(lie, anchor=scene.anchor) == "generation-hidden"


async def test_the_newest_generation_hidden(scene: Scene) -> None:
    def lie(store: LyingStore) -> None:
        store.on_list = lambda listed: listed[:-1]

    assert await scene.refusal(lie, anchor=scene.anchor) == "generation-hidden"


async def test_every_generation_hidden(scene: Scene) -> None:
    def lie(store: LyingStore) -> None:
        store.on_list = lambda listed: ()

    assert await scene.refusal(lie, anchor=scene.anchor) == "generation-hidden"


async def test_a_generation_in_the_middle_hidden_is_reported_as_absent(scene: Scene) -> None:
    def lie(store: LyingStore) -> None:
        store.on_list = lambda listed: (listed[0], listed[2])

    sink, result = await scene.damage(lie)
    assert result.absent == (2,)  # type: ignore[attr-defined]
    assert sink.files == scene.files


async def test_a_generation_made_by_a_device_of_another_contract(scene: Scene) -> None:
    stranger = make_session(make_device(ContractSecret(b"\x77" * 32), seed=7), sequence=3)
    blob = _resigned(scene, stranger)
    assert await scene.refusal(_substitute(scene, blob, stranger)) == "device-not-certified"


async def test_a_generation_signed_by_a_key_that_borrows_a_certified_header(scene: Scene) -> None:
    root = unverified_root(scene.roots[scene.newest.generation])
    blob = sign_root(SigningKey(b"\x99" * 32), root)
    assert await scene.refusal(_substitute(scene, blob)) == "root-signature"


async def test_a_header_re_signed_by_a_stranger(scene: Scene) -> None:
    def lie(store: LyingStore) -> None:
        store.on_header = lambda _, blob: sign_header(SigningKey(b"\x99" * 32), unverified_header(blob))

    assert await scene.refusal(lie) == "header-signature"


async def test_a_root_signed_for_another_use(scene: Scene) -> None:
    import msgspec

    root = unverified_root(scene.roots[scene.newest.generation])
    blob = sign_blob(scene.rig.device.device, Context.STATEMENT, msgspec.json.encode(root))
    assert await scene.refusal(_substitute(scene, blob)) == "root-signature"


async def test_the_header_of_another_session(scene: Scene) -> None:
    other = scene.headers[unverified_root(scene.roots[scene.infos[0].generation]).session]

    def lie(store: LyingStore) -> None:
        store.on_header = lambda _, blob: other

    assert await scene.refusal(lie) == "header-foreign"


async def test_a_header_sealed_to_another_contract_key(scene: Scene) -> None:
    device = attrs.evolve(scene.rig.device, box_public=ContractSecret(b"\x66" * 32).public.box_key)
    made = make_session(device, sequence=3)
    blob = _resigned(scene, made)
    assert await scene.refusal(_substitute(scene, blob, made)) == "header-sealed"


async def test_a_fork_by_the_devices_own_key_is_seen(scene: Scene) -> None:
    """What a stolen device key can do: it cannot rewrite history that other generations name."""
    made = make_session(scene.rig.device, sequence=2)
    root = unverified_root(scene.roots[scene.infos[1].generation])
    forged = _changed(root, made, files=1)
    assert await scene.refusal(_substitute(scene, forged, made, at=1)) == "chain-broken"


async def test_a_second_generation_with_the_same_sequence(scene: Scene) -> None:
    made = make_session(scene.rig.device, sequence=3)
    forged = _changed(unverified_root(scene.roots[scene.newest.generation]), made, files=1)
    info = attrs.evolve(scene.newest, generation="f" * 32, root_sha256=root_hash(forged))

    def lie(store: LyingStore) -> None:
        store.on_list = lambda listed: (*listed, info)
        store.on_root = lambda generation, blob: forged if generation == info.generation else blob
        store.on_header = lambda session, blob: made.header if session == made.keys.session.hex() else blob

    assert await scene.refusal(lie) == "chain-fork"


async def test_the_receipt_of_the_nas_contradicts_a_listed_generation(scene: Scene) -> None:
    anchor = attrs.evolve(scene.anchor, root_sha256="0" * 64)
    assert await scene.refusal(lambda store: None, anchor=anchor) == "chain-broken"


async def test_a_manifest_chunk_with_one_bit_flipped(scene: Scene) -> None:
    assert await scene.refusal(_flip_chunk(_manifest_chunk(scene))) == "damaged-chunk"


async def test_a_manifest_chunk_replaced_by_another_chunk(scene: Scene) -> None:
    manifest = _manifest_chunk(scene)

    def lie(store: LyingStore) -> None:
        def relocate(ids: Sequence[bytes], places: list[Location | None]) -> list[Location | None]:
            wrong = Location(places[0].pack, 24, places[0].length) if places[0] else None  # type: ignore[union-attr]
            return [wrong if chunk == manifest else at for chunk, at in zip(ids, places, strict=True)]

        store.on_locate = relocate

    assert await scene.refusal(lie) == "damaged-chunk"


async def test_a_manifest_chunk_that_is_gone(scene: Scene) -> None:
    manifest = _manifest_chunk(scene)

    def lie(store: LyingStore) -> None:
        store.on_locate = lambda ids, places: [
            None if chunk == manifest else at for chunk, at in zip(ids, places, strict=True)
        ]

    assert await scene.refusal(lie) == "damaged-chunk"


async def test_a_flipped_bit_in_a_data_chunk_costs_the_files_in_it_and_no_others(scene: Scene) -> None:
    sink, good = MemorySink(), MemorySink()
    await scene.rig.restore(good)
    span = good.entries[b"large/random0"].content[2]
    sink, result = await scene.damage(_flip_chunk(span.chunk))
    assert [(p.path, p.reason) for p in result.problems] == [(b"large/random0", "damaged-chunk")]  # type: ignore[attr-defined]
    assert sink.files == {path: data for path, data in scene.files.items() if path != b"large/random0"}


async def test_a_missing_pack_costs_the_files_in_it_and_no_others(scene: Scene) -> None:
    good = MemorySink()
    await scene.rig.restore(good)
    store = scene.rig.store()
    await store.open_session("read", "set", None)
    newest = scene.infos[-1].generation
    (at,) = await store.locate(newest, [good.entries[b"large/random0"].content[0].chunk])  # type: ignore[misc]
    lost = {
        path
        for path, entry in good.entries.items()
        for place in (await store.locate(newest, [span.chunk for span in entry.content]))  # type: ignore[union-attr]
        if place.pack == at.pack
    }
    await store.close()

    def lie(store: LyingStore) -> None:
        store.on_range = lambda name, _, data: Refusal("not-found", "gone") if name == at.pack else data

    if _manifest_pack(scene, at.pack):
        pytest.skip("the manifest is in the same pack")
    sink, result = await scene.damage(lie)
    assert {problem.path for problem in result.problems} == lost  # type: ignore[attr-defined]
    assert sink.files == {path: data for path, data in scene.files.items() if path not in lost}


async def test_a_chunk_of_another_device_of_the_contract_is_not_taken(scene: Scene) -> None:
    """A NAS gone bad writes a frame under our chunk's ID: same contract, certified, still foreign."""
    good = MemorySink()
    await scene.rig.restore(good)
    span = good.entries[b"large/random0"].content[0]
    other = make_session(make_device(SECRET, seed=4))
    keys: SessionKeys = other.keys
    from nas_agent.core.packing import BUFFER_BYTES, PackBuilder
    from wire.vault.frame import Codec, frame_body

    builder = PackBuilder(keys, bytes(32), memoryview(bytearray(BUFFER_BYTES)))
    builder.add(span.chunk, frame_body(Codec.RAW, 5, b"wrong"))
    pack = builder.finish()
    place = Location(pack.name, pack.items[0].offset, pack.items[0].length)

    def lie(store: LyingStore) -> None:
        inner = store._inner.read_pack_range

        async def read_pack_range(name: str, offset: int, length: int) -> bytes | Refusal:
            if name == pack.name:
                return bytes(pack.data[offset : offset + length])
            return await inner(name, offset, length)

        store.read_pack_range = read_pack_range  # type: ignore[method-assign]
        store.on_locate = lambda ids, places: [
            place if chunk == span.chunk else at for chunk, at in zip(ids, places, strict=True)
        ]
        store.on_header = lambda session, blob: other.header if session == keys.session.hex() else blob

    sink, result = await scene.damage(lie)
    (problem,) = result.problems  # type: ignore[attr-defined]
    assert problem.path == b"large/random0"
    assert "chunk-foreign" in problem.detail
    assert b"large/random0" not in sink.files


def _substitute(
    scene: Scene, blob: bytes, made: MadeSession | None = None, *, at: int = -1
) -> Callable[[LyingStore], None]:
    """Show `blob` as generation number `at`, under its own hash, with `made`'s header."""
    victim = scene.infos[at]

    def lie(store: LyingStore) -> None:
        store.on_list = lambda listed: tuple(
            attrs.evolve(info, root_sha256=root_hash(blob)) if info == victim else info for info in listed
        )
        store.on_root = lambda generation, good: blob if generation == victim.generation else good
        if made is not None:
            session = made.keys.session.hex()
            store.on_header = lambda asked, good: made.header if asked == session else good

    return lie


def _resigned(scene: Scene, made: MadeSession) -> bytes:
    return _changed(unverified_root(scene.roots[scene.newest.generation]), made)


def _changed(root: object, made: MadeSession, **changes: object) -> bytes:
    import msgspec

    device = made.device.device
    fields = {
        "session": made.keys.session.hex(),
        "device_key": device.public.hex(),
        "epoch": made.device.epoch.epoch,
    }
    return sign_root(device, msgspec.structs.replace(root, **fields, **changes))  # type: ignore[type-var]


def _manifest_chunk(scene: Scene) -> bytes:
    root = unverified_root(scene.roots[scene.newest.generation])
    return bytes.fromhex(root.manifest.items[0][0])


def _manifest_pack(scene: Scene, pack: str) -> bool:
    path = scene.rig.vault / "packs" / pack[:2] / pack
    return _manifest_chunk(scene) in path.read_bytes()


def _flip_chunk(chunk: bytes) -> Callable[[LyingStore], None]:
    """Flip one bit in the middle of the ciphertext of one chunk, wherever it is read."""

    def flip(_name: str, _offset: int, data: bytes) -> bytes:
        at = data.find(chunk)
        if at < 0:
            return data
        changed = bytearray(data)
        changed[at + 32 + 40] ^= 4
        return bytes(changed)

    def lie(store: LyingStore) -> None:
        store.on_range = flip

    return lie
