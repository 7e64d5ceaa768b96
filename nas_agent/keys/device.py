"""What one NAS keeps: its own signing key, its certificate, the epoch keys, and only the public half of the contract's.

With these it can write and sign backups of the contract, and read none (design §6.4). A new epoch means a full upload:
the epoch keys decide chunk IDs and cut points.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Final

import attrs
import msgspec

from nas_agent.core.vault_keys import DeviceKeys, EpochKeys, OwnerKeys
from nas_agent.keys.contract import ContractPublic, ContractSecret, group_hex
from nas_agent.keys.errors import KeyFileError
from wire.errors import WireError
from wire.signing import SEED_BYTES, SigningKey
from wire.vault.session import CHUNK_SEED_MAX, ID_KEY_BYTES, DeviceCert, open_device_cert, sign_device_cert

_VERSION: Final = 1
_EPOCH_BYTES: Final = 16

_Hex16 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
_Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class _DeviceFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    v: int
    contract: str
    contract_box_key: _Hex32
    contract_sign_key: _Hex32
    device_seed: _Hex32
    certificate: bytes
    epoch: _Hex16
    id_key: _Hex32
    chunk_seed: Annotated[int, msgspec.Meta(ge=1, le=CHUNK_SEED_MAX)]


def make_device(contract: ContractSecret, *, contract_id: str, name: str, now_s: float) -> DeviceKeys:
    """Draw new device and epoch keys and certify the device; `name` (≤ 128 characters) is shown to the owner."""
    key = SigningKey(secrets.token_bytes(SEED_BYTES))
    return DeviceKeys(
        contract=contract_id,
        device=key,
        device_cert=_certify(contract, key, contract_id, name, now_s),
        box_public=contract.public.box_key,
        contract_sign_public=contract.public.sign_key,
        epoch=EpochKeys(
            epoch=secrets.token_hex(_EPOCH_BYTES),
            id_key=secrets.token_bytes(ID_KEY_BYTES),
            chunk_seed=secrets.randbelow(CHUNK_SEED_MAX) + 1,
        ),
    )


def certify_again(
    keys: DeviceKeys, contract: ContractSecret, *, contract_id: str, name: str, now_s: float
) -> DeviceKeys:
    """Return the same device certified for another contract number (the first one was made up at `init`)."""
    certificate = _certify(contract, keys.device, contract_id, name, now_s)
    return attrs.evolve(keys, contract=contract_id, device_cert=certificate)


def owner_keys(contract: ContractSecret, contract_id: str) -> OwnerKeys:
    """Return what reading needs; lives as long as one restore."""
    return OwnerKeys(
        contract=contract_id,
        box_public=contract.public.box_key,
        box_secret=contract.box_secret,
        contract_sign_public=contract.public.sign_key,
    )


def contract_public(keys: DeviceKeys) -> ContractPublic:
    """Return the contract's public half as this device pinned it."""
    return ContractPublic(keys.box_public, keys.contract_sign_public)


def device_fingerprint(keys: DeviceKeys) -> str:
    """Return the device key as a human compares it: 32 hex digits in groups."""
    return group_hex(keys.device.public[:16])


def encode_device(keys: DeviceKeys) -> bytes:
    """Return the content of the device key file."""
    file = _DeviceFile(
        v=_VERSION,
        contract=keys.contract,
        contract_box_key=keys.box_public.hex(),
        contract_sign_key=keys.contract_sign_public.hex(),
        device_seed=keys.device.seed.hex(),
        certificate=keys.device_cert,
        epoch=keys.epoch.epoch,
        id_key=keys.epoch.id_key.hex(),
        chunk_seed=keys.epoch.chunk_seed,
    )
    return msgspec.json.format(msgspec.json.encode(file), indent=1) + b"\n"


def decode_device(data: bytes) -> DeviceKeys:
    """Read the device key file; raises `KeyFileError` when it is damaged, newer, or its certificate is another's."""
    try:
        file = msgspec.json.decode(data, type=_DeviceFile)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise KeyFileError(
            f"the device key file cannot be read ({error}); run `nas-agent init` anew"
        ) from error
    if file.v != _VERSION:
        raise KeyFileError(
            f"the device key file has version {file.v}, expected {_VERSION}: upgrade nas-agent"
        )
    key = SigningKey(bytes.fromhex(file.device_seed))
    sign_public = bytes.fromhex(file.contract_sign_key)
    try:
        certificate = open_device_cert(file.certificate, contract_sign_key=sign_public)
    except WireError as error:
        raise KeyFileError(f"the device certificate does not hold ({error})") from error
    if (certificate.device_key, certificate.contract) != (key.public.hex(), file.contract):
        raise KeyFileError(
            "the device certificate is for another device or contract: the key file was altered"
        )
    return DeviceKeys(
        contract=file.contract,
        device=key,
        device_cert=file.certificate,
        box_public=bytes.fromhex(file.contract_box_key),
        contract_sign_public=sign_public,
        epoch=EpochKeys(file.epoch, bytes.fromhex(file.id_key), file.chunk_seed),
    )


def _certify(contract: ContractSecret, key: SigningKey, contract_id: str, name: str, now_s: float) -> bytes:
    certificate = DeviceCert(
        contract=contract_id, device_key=key.public.hex(), name=name, issued_at=int(now_s)
    )
    return sign_device_cert(contract.signing_key, certificate)
