"""Makes keys, packs, headers and roots for tests of vault stores, without the backup engine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence

import attrs

from nas_agent.core.packing import BUFFER_BYTES, FinishedPack, PackBuilder, SessionKeys
from nas_agent.core.vault_keys import DeviceKeys, EpochKeys, OwnerKeys
from nas_agent.keys.contract import ContractSecret
from wire.signing import SigningKey
from wire.storage import to_base64
from wire.vault.frame import Algorithm, Codec, chunk_id, frame_body
from wire.vault.root import GenerationRoot, Manifest, sign_root
from wire.vault.session import (
    DeviceCert,
    SessionHeader,
    SessionSecrets,
    seal_secrets,
    sign_device_cert,
    sign_header,
)

CONTRACT = "AZK0000000001"


def make_device(contract: ContractSecret, *, seed: int = 1, name: str = "nas", epoch: int = 1) -> DeviceKeys:
    """Keys of a device, the same for the same arguments."""
    key = SigningKey(bytes([seed]) * 32)
    cert = DeviceCert(contract=CONTRACT, device_key=key.public.hex(), name=name, issued_at=1_700_000_000)
    return DeviceKeys(
        contract=CONTRACT,
        device=key,
        device_cert=sign_device_cert(contract.signing_key, cert),
        box_public=contract.public.box_key,
        contract_sign_public=contract.public.sign_key,
        epoch=EpochKeys(epoch.to_bytes(16, "big").hex(), bytes([seed, epoch]) * 16, 1234567 + seed),
    )


def make_owner(contract: ContractSecret) -> OwnerKeys:
    """The owner's reading keys."""
    return OwnerKeys(
        contract=CONTRACT,
        box_public=contract.public.box_key,
        box_secret=contract.box_secret,
        contract_sign_public=contract.public.sign_key,
    )


@attrs.frozen
class MadeSession:
    """A session of a device with its signed header."""

    device: DeviceKeys
    keys: SessionKeys
    header: bytes

    def pack(self, chunks: Sequence[bytes]) -> FinishedPack:
        """A pack of these chunks, stored raw."""
        builder = PackBuilder(self.keys, os.urandom(32), memoryview(bytearray(BUFFER_BYTES)))
        for chunk in chunks:
            builder.add(self.id_of(chunk), frame_body(Codec.RAW, len(chunk), chunk))
        return builder.finish()

    def pack_under(self, ids: Sequence[bytes]) -> FinishedPack:
        """A pack of frames that open, under IDs that are not theirs."""
        builder = PackBuilder(self.keys, os.urandom(32), memoryview(bytearray(BUFFER_BYTES)))
        for planted in ids:
            builder.add(planted, frame_body(Codec.RAW, 7, b"planted"))
        return builder.finish()

    def id_of(self, chunk: bytes) -> bytes:
        """The ID of a chunk in this device's epoch."""
        return chunk_id(self.device.epoch.id_key, chunk)

    def root(
        self, refs: ListRefs, *, sequence: int = 1, parent: str | None = None, **changes: object
    ) -> bytes:
        """A signed root over `refs`; its manifest is not readable, a store does not read it."""
        fields: dict[str, object] = {
            "contract": CONTRACT,
            "backup_set": "set",
            "device_key": self.device.device.public.hex(),
            "epoch": self.device.epoch.epoch,
            "sequence": sequence,
            "session": self.keys.session.hex(),
            "created_at": 1_700_000_000 + sequence,
            "parent": parent,
            "manifest": Manifest(depth=0, items=(), bytes=0),
            "files": 0,
            "logical_bytes": 0,
            "complete": True,
            "refs_count": refs.count,
            "refs_sha256": refs.sha256,
        }
        return sign_root(self.device.device, GenerationRoot(**(fields | changes)))  # type: ignore[arg-type]


def make_session(device: DeviceKeys, *, sequence: int = 1, backup_set: str = "set") -> MadeSession:
    """A fresh session of a device."""
    session, session_key = os.urandom(16), os.urandom(32)
    header = SessionHeader(
        contract=CONTRACT,
        device_cert=to_base64(device.device_cert),
        epoch=device.epoch.epoch,
        session=session.hex(),
        backup_set=backup_set,
        sequence=sequence,
        created_at=1_700_000_000,
        box_key=device.box_public.hex(),
        sealed=seal_secrets(
            SessionSecrets(session_key, device.epoch.id_key, device.epoch.chunk_seed),
            box_key=device.box_public,
        ),
    )
    keys = SessionKeys(session, session_key, Algorithm.AES_256_GCM, device.device)
    return MadeSession(device, keys, sign_header(device.device, header))


class ListRefs:
    """References held in a list."""

    def __init__(self, ids: Sequence[bytes], *, keep_order: bool = False) -> None:
        self._ids = list(ids) if keep_order else sorted(set(ids))

    @property
    def count(self) -> int:
        return len(self._ids)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(b"".join(self._ids)).hexdigest()

    def blocks(self) -> Iterator[bytes]:
        for start in range(0, len(self._ids), 1000):
            yield b"".join(self._ids[start : start + 1000])
