"""Pack bytes in and out (protocols.md §3).

Steps of `put_pack` across blob store and database, and why a crash at any of them is harmless:
 1. `begin_upload` (one transaction): the pack has its place in the quota, or is refused before its first byte is read.
    Crash after it: the place lapses after `UPLOAD_LIFE_S`.
 2. The bytes go to a temporary blob while SHA-256 runs; then form, frames and device signature are checked.
    Crash: the temporary blob is removed when the store opens again.
 3. `publish`: the blob is durable under a key that was never used before. Crash: a blob without a row; `sweep`
    finds it by the missing incarnation.
 4. `finish_upload` (one transaction): the row is *live*, index rows and quota with it.
    Only now is "stored" answered. Crash after it: the NAS asks again and hears "stored".
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator
from typing import Final

import attrs
import trio

from carrier.storage import facts
from carrier.storage import outcomes as out
from carrier.storage.inspect import inspect_pack
from carrier.storage.outcomes import Code, Refused
from carrier.storage.ports import BlobWriter
from carrier.storage.services import StorageService
from wire.errors import UpgradeNeededError, WireError
from wire.ids import RandomId, Sha256Hex
from wire.storage import PACK_BYTES_MAX, PackState

PIECE_BYTES: Final = 1 << 20
"""Bytes gathered before a worker thread writes and hashes them; also the size of pieces read back."""

CHECK_EVERY_S: Final = 1.0
"""A pack on its way out is stopped within this time of a lock (AZK-15: ≤ 5 s)."""

CLEANUP_TIMEOUT_S: Final = 10


@attrs.frozen
class PackPut:
    """The pack is stored; `new` is False when the same bytes were stored before."""

    new: bool
    state: PackState


async def put_pack(
    service: StorageService,
    given: facts.SessionFacts,
    name: str,
    size_bytes: int | None,
    body: AsyncIterator[bytes],
) -> PackPut | Refused:
    """Store one pack of the session's device, or find it stored.

    Args:
        service: the storage service.
        given: a checked append session.
        name: SHA-256 of the pack, hex.
        size_bytes: the declared length; None is refused.
        body: the bytes; not touched when the pack is refused for its size or for a full quota.

    After cancellation nothing is stored and the place in the quota is given back.
    """
    upload = _read_upload(name, size_bytes)
    if isinstance(upload, Refused):
        return upload
    begun = await service.worker.run(
        service.stores.packs.begin_upload, given, upload, int(service.clock.now_s())
    )
    match begun:
        case out.QuotaFull():
            return _quota_full(begun)
        case out.SessionStopped():
            return await service.why_stopped(given)
        case out.PackStored():
            return await _confirm(given, upload, body)
        case out.UploadGranted():
            return await _receive(service, given, upload, body)


def _read_upload(name: str, size_bytes: int | None) -> facts.Upload | Refused:
    try:
        sha256 = bytes.fromhex(Sha256Hex.parse(name).text)
    except WireError as error:
        return Refused(Code.BAD_FORMAT, str(error))
    if size_bytes is None:
        return Refused(Code.BAD_FORMAT, "expected a Content-Length")
    if not 0 < size_bytes <= PACK_BYTES_MAX:
        return Refused(Code.TOO_LARGE, f"expected a pack of 1 to {PACK_BYTES_MAX} bytes, got {size_bytes}")
    return facts.Upload(RandomId.from_bytes(secrets.token_bytes(16)), sha256, size_bytes)


async def _confirm(
    given: facts.SessionFacts, upload: facts.Upload, body: AsyncIterator[bytes]
) -> PackPut | Refused:
    """Answer for a pack that is stored already, once the bytes that came are the same."""
    digest = hashlib.sha256()
    async for data in body:
        digest.update(data)
    if digest.digest() != upload.sha256:
        return _bad_hash(upload)
    return PackPut(new=False, state=PackState(state="stored", lease_until=given.lease_until))


async def _receive(
    service: StorageService, given: facts.SessionFacts, upload: facts.Upload, body: AsyncIterator[bytes]
) -> PackPut | Refused:
    writer: BlobWriter | None = None
    finished = False
    try:
        writer = await service.worker.run(service.blobs.begin)
        done = await _write_and_finish(service, given, upload, body, writer)
        finished = isinstance(done, PackPut)
        return done
    finally:
        with trio.move_on_after(CLEANUP_TIMEOUT_S) as scope:
            scope.shield = True
            if writer is not None:
                await service.worker.run(writer.discard)
            if not finished:
                await service.worker.run(service.stores.packs.drop_upload, upload)


async def _write_and_finish(  # noqa: PLR0911 - one per outcome
    service: StorageService,
    given: facts.SessionFacts,
    upload: facts.Upload,
    body: AsyncIterator[bytes],
    writer: BlobWriter,
) -> PackPut | Refused:
    digest = await _write(service, body, writer)
    if digest != upload.sha256:
        return _bad_hash(upload)
    try:
        pack = await service.worker.run(inspect_pack, writer.read, upload.size_bytes, device=given.device)
    except UpgradeNeededError as error:
        return Refused(Code.UPGRADE_NEEDED, str(error))
    except WireError as error:
        return Refused(Code.BAD_FORMAT, str(error))
    key = facts.object_key(given.contract, upload.sha256, upload.incarnation.text)
    await service.worker.run(writer.publish, key)
    stored = await service.worker.run(
        service.stores.packs.finish_upload, given, upload, pack, int(service.clock.now_s())
    )
    if stored != out.PackStored(new=True):
        await service.worker.run(service.blobs.delete, key)
    match stored:
        case out.PackStored():
            return PackPut(new=stored.new, state=PackState(state="stored", lease_until=given.lease_until))
        case out.PackForeign():
            return Refused(Code.BAD_FORMAT, "the pack was made in a session of another device or epoch")
        case out.UploadLapsed():
            return Refused(Code.UNAVAILABLE, "the upload took too long and lost its place: send it again")
        case out.SessionStopped():
            return await service.why_stopped(given)


async def _write(service: StorageService, body: AsyncIterator[bytes], writer: BlobWriter) -> bytes:
    """Write the body in pieces and return its SHA-256."""
    digest = hashlib.sha256()

    def take(piece: bytes) -> None:
        writer.write(piece)
        digest.update(piece)

    gathered = bytearray()
    async for data in body:
        gathered += data
        if len(gathered) >= PIECE_BYTES:
            await service.worker.run(take, bytes(gathered))
            gathered.clear()
    await service.worker.run(take, bytes(gathered))
    return digest.digest()


@attrs.frozen
class PackBytes:
    """Part of a stored pack: `length_bytes` from `offset` of `pack.size_bytes`."""

    pack: facts.StoredPack
    offset: int
    length_bytes: int


async def find_pack(
    service: StorageService, given: facts.SessionFacts, name: str
) -> facts.StoredPack | Refused:
    """Return a live pack of the session's contract."""
    try:
        sha256 = bytes.fromhex(Sha256Hex.parse(name).text)
    except WireError as error:
        return Refused(Code.NOT_FOUND, str(error))
    pack = await service.worker.run(service.stores.packs.find_pack, given.contract, sha256)
    return pack or Refused(Code.NOT_FOUND, f"no pack {name}")


class TransferStoppedError(Exception):
    """A transfer was cut because its session may not read any more (AZK-15)."""


async def read_pack(
    service: StorageService, given: facts.SessionFacts, part: PackBytes
) -> AsyncIterator[bytes]:
    """Iterate over the bytes in pieces; stops with `TransferStoppedError` within a second of a lock."""
    checked_at_s = service.clock.monotonic_s()
    position, end = part.offset, part.offset + part.length_bytes
    while position < end:
        if service.clock.monotonic_s() - checked_at_s >= CHECK_EVERY_S:
            device = await service.worker.run(
                service.stores.contracts.find_device, given.device, int(service.clock.now_s())
            )
            if device is None or device.state is not facts.DeviceState.ACTIVE or not device.contract_runs:
                raise TransferStoppedError(f"session {given.session}: device stopped in mid-transfer")
            checked_at_s = service.clock.monotonic_s()
        length = min(PIECE_BYTES, end - position)
        yield await service.worker.run(service.blobs.read, part.pack.key, position, length)
        position += length


def _quota_full(full: out.QuotaFull) -> Refused:
    text = f"the pack of {full.needed_bytes} bytes does not fit: {full.used_bytes} of {full.limit_bytes} are used"
    return Refused(Code.QUOTA_FULL, text, extra=attrs.asdict(full))


def _bad_hash(upload: facts.Upload) -> Refused:
    return Refused(Code.BAD_HASH, f"expected bytes with SHA-256 {upload.sha256.hex()}, got others")
