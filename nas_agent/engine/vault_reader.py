"""Reading a vault with the owner's keys: whom to believe, and how to open a chunk (vault-format.md §9).

Rules
- Nothing the store says is used before a certified device's signature covers it; each refusal has its name.
- Session secrets are opened on demand and kept for a bounded number of sessions.
- It does not do: writing a tree (restore does), choosing a generation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

import attrs

from nas_agent.core.vault_keys import OwnerKeys
from nas_agent.errors import DamagedChunkError, StoreRefusedError, VaultRefusedError
from nas_agent.ports import GenerationInfo, Location, Refusal, VaultStore
from runtime.errors import RemoteError
from wire.errors import FormatError, SignatureError, UpgradeNeededError, WireError
from wire.vault.frame import FRAME_HEADER_BYTES, FrameHeader, open_frame, parse_frame_header
from wire.vault.manifest import decode_items
from wire.vault.root import (
    ChainVerdict,
    GenerationRoot,
    Manifest,
    check_chain,
    open_root,
    root_hash,
    unverified_root,
)
from wire.vault.session import (
    SessionSecrets,
    VerifiedHeader,
    open_device_cert,
    open_header,
    unseal_secrets,
    unverified_header,
)

SESSIONS_KEPT_MAX: Final = 256
RANGE_BYTES_MAX: Final = 2 << 20
IDS_PER_CALL_MAX: Final = 1024
_T = TypeVar("_T")


@attrs.frozen
class Anchor:
    """The newest generation the reader knows to exist, e.g. from the NAS's verified receipt."""

    device_key: bytes
    sequence: int
    root_sha256: str


@attrs.frozen
class GenerationView:
    """A generation whose root was verified. `device` is the name in the certificate."""

    info: GenerationInfo
    root: GenerationRoot
    device: str
    device_key: bytes


@attrs.frozen
class Frame:
    """A frame fetched from the store, with the secrets to open it."""

    header: FrameHeader
    data: memoryview = attrs.field(repr=False)
    secrets: SessionSecrets = attrs.field(repr=False)


class VaultReader:
    """One read session. `open` first."""

    def __init__(self, store: VaultStore, keys: OwnerKeys, backup_set: str) -> None:
        """Remember whom to ask and whom to believe."""
        self._store = store
        self._keys = keys
        self._backup_set = backup_set
        self._sessions: OrderedDict[str, tuple[VerifiedHeader, SessionSecrets]] = OrderedDict()

    async def open(self) -> None:
        """Open the read session; raises `StoreRefusedError`."""
        _granted(await self._store.open_session("read", self._backup_set, None))

    async def generations(self, anchor: Anchor | None) -> tuple[tuple[GenerationView, ...], ChainVerdict]:
        """Return every listed generation, verified, and what the chain says.

        Raises `VaultRefusedError` if anything listed does not verify, or the chain contradicts itself or `anchor`.
        """
        listed = _granted(await self._store.list_generations())
        views = [await self._verified(info) for info in listed]
        absent: set[int] = set()
        devices = {view.device_key for view in views} | ({anchor.device_key} if anchor else set())
        for device_key in sorted(devices):
            roots = {v.info.root_sha256: v.root for v in views if v.device_key == device_key}
            known = (
                (anchor.sequence, anchor.root_sha256) if anchor and anchor.device_key == device_key else None
            )
            verdict = check_chain(roots, anchor=known)
            if verdict.refusal is not None:
                raise VaultRefusedError(verdict.refusal, verdict.detail)
            absent.update(verdict.absent)
        return tuple(views), ChainVerdict(None, "", tuple(sorted(absent)))

    async def secrets(self, session: str) -> tuple[VerifiedHeader, SessionSecrets]:
        """Return the verified header of a session and its secrets.

        Raises `VaultRefusedError` (`device-not-certified`, `header-signature`, `header-foreign`, `header-sealed`).
        """
        found = self._sessions.get(session)
        if found is None:
            found = self._open_session(session, _granted(await self._store.read_session_header(session)))
            self._sessions[session] = found
            if len(self._sessions) > SESSIONS_KEPT_MAX:
                self._sessions.popitem(last=False)
        return found

    async def locate(self, view: GenerationView, ids: Sequence[bytes]) -> dict[bytes, Location]:
        """Say where chunks of a generation are; those the store does not have are left out."""
        found: dict[bytes, Location] = {}
        for start in range(0, len(ids), IDS_PER_CALL_MAX):
            part = ids[start : start + IDS_PER_CALL_MAX]
            answers = _granted(await self._store.locate(view.info.generation, part))
            if len(answers) != len(part):
                raise RemoteError(f"locate: expected {len(part)} answers, got {len(answers)}")
            found.update({c: at for c, at in zip(part, answers, strict=True) if at is not None})
        return found

    async def read_range(self, pack: str, offset: int, length: int) -> bytes | None:
        """Return a range of a pack, None if it is not there."""
        answer = await self._store.read_pack_range(pack, offset, length)
        if isinstance(answer, Refusal):
            if answer.code == "not-found":
                return None
            raise StoreRefusedError(answer.code, answer.message)
        return answer if len(answer) == length else None

    async def frame(self, chunk: bytes, data: memoryview, root: GenerationRoot) -> Frame:
        """Return the frame of a chunk with the secrets of its session, checked against the generation.

        Raises `DamagedChunkError`.
        """
        try:
            header = parse_frame_header(data)
        except WireError as error:
            raise DamagedChunkError(chunk, str(error)) from error
        if header.chunk != chunk:
            raise DamagedChunkError(chunk, f"the store gave chunk {header.chunk.hex()[:16]}… instead")
        try:
            verified, secrets = await self.secrets(header.session.hex())
        except (VaultRefusedError, StoreRefusedError) as error:
            raise DamagedChunkError(chunk, f"chunk-foreign: its session: {error}") from error
        if (verified.device_key.hex(), verified.header.epoch) != (root.device_key, root.epoch):
            raise DamagedChunkError(chunk, "chunk-foreign: written by another device or epoch")
        return Frame(header, data, secrets)

    async def chunk(self, chunk: bytes, view: GenerationView) -> bytes:
        """Fetch and open one chunk of a generation; raises `DamagedChunkError`."""
        at = (await self.locate(view, (chunk,))).get(chunk)
        if at is None:
            raise DamagedChunkError(chunk, "not in the store")
        data = await self.read_range(at.pack, at.offset, at.length) if plausible(at) else None
        if data is None:
            raise DamagedChunkError(chunk, f"pack {at.pack[:16]}… is missing or too short")
        return open_checked(await self.frame(chunk, memoryview(data), view.root))

    async def manifest_chunks(self, view: GenerationView) -> list[tuple[bytes, int]]:
        """Return the (ID, length) list of the manifest's own chunks.

        Raises `VaultRefusedError` (`manifest-format`) or `DamagedChunkError`.
        """
        manifest: Manifest = view.root.manifest
        items = [(bytes.fromhex(chunk), length) for chunk, length in manifest.items]
        for _ in range(manifest.depth):
            below: list[tuple[bytes, int]] = []
            for chunk, length in items:
                data = await self.chunk(chunk, view)
                if len(data) != length:
                    raise VaultRefusedError(
                        "manifest-format", "a chunk list has another length than its parent says"
                    )
                try:
                    below.extend(decode_items(data))
                except FormatError as error:
                    raise VaultRefusedError("manifest-format", str(error)) from error
            items = below
        return items

    async def _verified(self, info: GenerationInfo) -> GenerationView:
        blob = _granted(await self._store.read_root(info.generation))
        if root_hash(blob) != info.root_sha256:
            raise VaultRefusedError(
                "root-mismatch", f"generation {info.generation}: its root has another hash"
            )
        try:
            claimed = unverified_root(blob)
        except UpgradeNeededError:
            raise
        except WireError as error:
            raise VaultRefusedError("root-format", f"generation {info.generation}: {error}") from error
        verified, _ = await self.secrets(claimed.session)
        try:
            root = open_root(blob, device_key=verified.device_key)
        except SignatureError as error:
            raise VaultRefusedError("root-signature", f"generation {info.generation}: {error}") from error
        except FormatError as error:
            raise VaultRefusedError("root-foreign", f"generation {info.generation}: {error}") from error
        header = verified.header
        asked = (self._keys.contract, self._backup_set, header.epoch, self._backup_set, info.sequence)
        if (root.contract, root.backup_set, root.epoch, header.backup_set, root.sequence) != asked:
            text = f"generation {info.generation}: of another contract, set, epoch or sequence than asked for"
            raise VaultRefusedError("root-foreign", text)
        return GenerationView(info, root, verified.cert.name, verified.device_key)

    def _open_session(self, session: str, blob: bytes) -> tuple[VerifiedHeader, SessionSecrets]:
        sign_key = self._keys.contract_sign_public
        try:
            cert_blob = unverified_header(blob).cert_blob
            open_device_cert(cert_blob, contract_sign_key=sign_key)
        except SignatureError as error:
            raise VaultRefusedError("device-not-certified", f"session {session}: {error}") from error
        except FormatError as error:
            raise VaultRefusedError("header-format", f"session {session}: {error}") from error
        try:
            verified = open_header(blob, contract_sign_key=sign_key)
        except SignatureError as error:
            raise VaultRefusedError("header-signature", f"session {session}: {error}") from error
        except FormatError as error:
            raise VaultRefusedError("header-foreign", f"session {session}: {error}") from error
        if (verified.header.session, verified.header.contract) != (session, self._keys.contract):
            raise VaultRefusedError(
                "header-foreign", f"session {session}: the store gave another one's header"
            )
        try:
            secrets = unseal_secrets(
                verified.header, box_public=self._keys.box_public, box_secret=self._keys.box_secret
            )
        except WireError as error:
            raise VaultRefusedError("header-sealed", str(error)) from error
        return verified, secrets


def open_checked(frame: Frame) -> bytes:
    """Open a frame; raises `DamagedChunkError`. CPU-bound: call it in a thread for bulk data."""
    try:
        return open_frame(
            frame.data, frame.header, session_key=frame.secrets.session_key, id_key=frame.secrets.id_key
        )
    except WireError as error:
        raise DamagedChunkError(frame.header.chunk, str(error)) from error


def plausible(at: Location) -> bool:
    """Say whether a location can be that of a frame: its length is bounded before anything is allocated."""
    return FRAME_HEADER_BYTES < at.length <= RANGE_BYTES_MAX * 4 and at.offset >= 0


def pick(views: Iterable[GenerationView], generation: str) -> GenerationView:
    """Return the generation a person named: its ID, its sequence number, or `latest` (by time received).

    Raises `StoreRefusedError` (`not-found`) if there is none or the number is ambiguous.
    """
    candidates = [v for v in views if generation in {v.info.generation, str(v.root.sequence), "latest"}]
    if generation == "latest":
        candidates = sorted(candidates, key=lambda v: (v.info.received_at, v.root.sequence))[-1:]
    if len(candidates) != 1:
        text = f"generation {generation}: expected one in the vault, found {len(candidates)}"
        raise StoreRefusedError("not-found", text)
    return candidates[0]


async def list_generations(
    store: VaultStore, keys: OwnerKeys, backup_set: str, *, anchor: Anchor | None = None
) -> tuple[tuple[GenerationView, ...], ChainVerdict]:
    """List the generations of a backup set, each verified; see `VaultReader.generations`."""
    reader = VaultReader(store, keys, backup_set)
    try:
        await reader.open()
        return await reader.generations(anchor)
    finally:
        await store.close()


def _granted(answer: _T | Refusal) -> _T:
    if isinstance(answer, Refusal):
        raise StoreRefusedError(answer.code, answer.message)
    return answer
