"""The keys the engine works with: what a device needs to write, and what an owner needs to read.

Rules: secrets never appear in `repr`. Loading, wrapping and storing them is `nas_agent/keys/`.
"""

from __future__ import annotations

import attrs

from wire.signing import SigningKey


@attrs.frozen
class EpochKeys:
    """Random per device and epoch. `epoch` is 32 hex digits, `id_key` 32 bytes, `chunk_seed` 1 to 2^63 - 1.

    Losing them costs a full upload under a new epoch, never a restore (they are sealed in every session header).
    """

    epoch: str
    id_key: bytes = attrs.field(repr=False)
    chunk_seed: int = attrs.field(repr=False)


@attrs.frozen
class ReceiptTrust:
    """Whose receipts make a generation durable: the pinned service root (32 bytes) and its delegation blob."""

    service_root: bytes
    receipt_key_cert: bytes


@attrs.frozen
class DeviceKeys:
    """All a NAS needs to write. `box_public` and `contract_sign_public` (32 bytes) are pinned at pairing or init.

    `receipt_trust` is None for a directory, which signs no receipts.
    """

    contract: str
    device: SigningKey
    device_cert: bytes
    box_public: bytes
    contract_sign_public: bytes
    epoch: EpochKeys
    receipt_trust: ReceiptTrust | None = None


@attrs.frozen
class OwnerKeys:
    """All that is needed to read every backup of a contract. Keys of 32 bytes."""

    contract: str
    box_public: bytes
    box_secret: bytes = attrs.field(repr=False)
    contract_sign_public: bytes
