"""Values that pass between service, stores and domain. Keys and hashes are raw bytes; times unix seconds."""

from __future__ import annotations

import enum
from collections.abc import Callable

import attrs

from wire.ids import BackupSetName, ContractId, RandomId
from wire.storage import Receipt

ReceiptMaker = Callable[[Receipt], bytes]
"""Signs a receipt; pure and quick, called inside the commit's transaction."""


class DeviceState(enum.StrEnum):
    """A device may work, is locked for now (AZK-15), or is revoked for good."""

    ACTIVE = "active"
    LOCKED = "locked"
    REVOKED = "revoked"


class Mode(enum.StrEnum):
    """What a session may do: write, or read. Never both."""

    APPEND = "append"
    READ = "read"


@attrs.frozen
class Code:
    """A single-use enrolment code, by its hash."""

    sha256: bytes
    valid_to: int


@attrs.frozen
class DeviceClaim:
    """What a device that enrols has shown, its statement and certificate verified."""

    contract: ContractId
    device: bytes
    cert: bytes
    code_sha256: bytes
    box_key: bytes
    sign_key: bytes


@attrs.frozen
class DeviceFacts:
    """An enrolled device."""

    device: bytes
    contract: ContractId
    state: DeviceState
    contract_runs: bool
    sign_key: bytes
    lines: frozenset[int]


@attrs.frozen
class NewSession:
    """A session to open. `header` and `epoch` are empty in read mode."""

    session: RandomId
    token_sha256: bytes
    contract: ContractId
    device: bytes
    backup_set: BackupSetName
    mode: Mode
    epoch: str
    header: bytes
    gateway_key: bytes
    lease_until: int


@attrs.frozen
class SessionFacts:
    """An open or past session as it stands now."""

    session: RandomId
    contract: ContractId
    device: bytes
    backup_set: BackupSetName
    mode: Mode
    epoch: str
    gateway_key: bytes
    lease_until: int
    closed: bool
    device_state: DeviceState
    contract_runs: bool
    lines: frozenset[int]


@attrs.frozen
class Upload:
    """A pack on its way in; `incarnation` makes its object key unique for ever."""

    incarnation: RandomId
    sha256: bytes
    size_bytes: int


@attrs.frozen
class PackFacts:
    """What the verified trailer of a pack says. `chunks` are (chunk ID, offset, length)."""

    session: RandomId
    device: bytes
    size_bytes: int
    chunks: tuple[tuple[bytes, int, int], ...]


@attrs.frozen
class StoredPack:
    """A pack with its object."""

    pack_id: int
    contract: ContractId
    sha256: bytes
    incarnation: str
    size_bytes: int

    @property
    def key(self) -> str:
        """The object key."""
        return object_key(self.contract, self.sha256, self.incarnation)


@attrs.frozen
class CommitClaim:
    """A commit whose root was verified under the session's device key."""

    root: bytes
    root_sha256: bytes
    sequence: int
    parent_sha256: bytes | None
    refs: bytes
    refs_sha256: bytes


@attrs.frozen
class GenerationRow:
    """A generation as stored."""

    generation: RandomId
    device: bytes
    sequence: int
    root_sha256: bytes
    root: bytes
    receipt: bytes
    received_at: int
    trashed_at: int
    in_trash: bool
    stored_bytes: int


def object_key(contract: ContractId, sha256: bytes, incarnation: str) -> str:
    """Return the object key of a pack: contract, hash and random incarnation, never used again."""
    return f"{contract}/{sha256.hex()}-{incarnation}"
