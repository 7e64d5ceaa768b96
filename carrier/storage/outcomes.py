"""What the storage service and its stores can answer: frozen types, matched with `assert_never` at the edge."""

from __future__ import annotations

import enum

import attrs

from wire.ids import ContractId, CustomerId, RandomId


class Code(enum.StrEnum):
    """Refusals as protocols.md §2 names them."""

    BAD_FORMAT = "bad-format"
    BAD_HASH = "bad-hash"
    CLOCK = "clock"
    REFUSED = "refused"
    LINE_UNKNOWN = "line-unknown"
    LINE_NOT_CONTRACT = "line-not-contract"
    GATEWAY_ENDED = "gateway-ended"
    DEVICE_REVOKED = "device-revoked"
    CONTRACT_ENDED = "contract-ended"
    NOT_FOUND = "not-found"
    MISSING = "missing"
    CONFLICT = "conflict"
    STALE_EPOCH = "stale-epoch"
    PARENT_MISMATCH = "parent-mismatch"
    SESSION_OVER = "session-over"
    TOO_LARGE = "too-large"
    UPGRADE_NEEDED = "upgrade-needed"
    UNAVAILABLE = "unavailable"
    QUOTA_FULL = "quota-full"


@attrs.frozen
class Refused:
    """The request changed nothing. `message` is for the peer; `reason` for our log only."""

    code: Code
    message: str
    reason: str = ""
    extra: dict[str, object] = attrs.field(factory=dict)


@attrs.frozen
class OpeningNotice:
    """開通のご案内: what the contractor gets on paper (AZK-18b). The code is shown once and kept as a hash."""

    contract: ContractId
    customer_id: CustomerId
    plan: str
    capacity_bytes: int
    enrolment_code: str
    code_valid_to: int
    service_root: str


@attrs.frozen
class ContractAdded:
    """The contract runs."""

    contract: ContractId
    line_id: int


@attrs.frozen
class ContractTaken:
    """A contract with this ID exists."""

    contract: ContractId


@attrs.frozen
class LineMissing:
    """No running line has this customer ID."""

    customer_id: CustomerId


@attrs.frozen
class PlanUnknown:
    """The plan is not in the table of AZK-01, or its tier is not sold (AZK-09)."""

    plan: str


@attrs.frozen
class DeviceAdded:
    """The device is enrolled."""

    device: bytes
    first: bool


@attrs.frozen
class DeviceRefused:
    """Nothing was enrolled and no code was spent. `reason` stays in the log."""

    reason: str


@attrs.frozen
class Usage:
    """Bytes of one contract: `used` counts live packs' ciphertext once each (AZK-03)."""

    contract: ContractId
    plan: str
    limit_bytes: int
    used_bytes: int
    in_flight_bytes: int
    reserved_bytes: int
    packs: int
    generations: int
    trashed: int
    devices: int


@attrs.frozen
class SessionGranted:
    """The session is open."""

    session: RandomId
    lease_until: int
    limit_bytes: int
    used_bytes: int
    reserved_bytes: int
    head: tuple[int, bytes] | None


@attrs.frozen
class SessionConflict:
    """The session ID is taken by another header, device or a closed session."""


@attrs.frozen
class ContractOver:
    """The contract ended meanwhile."""


@attrs.frozen
class SessionStopped:
    """Between check and write the session was closed, the device stopped or the contract ended."""


@attrs.frozen
class UploadGranted:
    """The pack has its place in the quota."""

    reserved_bytes: int


@attrs.frozen
class PackStored:
    """The pack is stored and protected by the session's lease."""

    new: bool


@attrs.frozen
class PackForeign:
    """The trailer names another device, or a session that is not of this device and epoch."""


@attrs.frozen
class UploadLapsed:
    """The upload took longer than `UPLOAD_LIFE_S` and lost its place."""


@attrs.frozen
class QuotaFull:
    """The pack does not fit; nothing of it was read (AZK-03)."""

    needed_bytes: int
    limit_bytes: int
    used_bytes: int


@attrs.frozen
class Committed:
    """The generation is durable. A repeated commit gives the same receipt."""

    receipt: bytes
    generation: RandomId
    new: bool
    dropped: tuple[str, ...] = ()


@attrs.frozen
class ChunksMissing:
    """These chunks are not live for the device and epoch: send them again (first 4,096 of `count`)."""

    chunks: tuple[bytes, ...]
    count: int


@attrs.frozen
class ParentMismatch:
    """The root does not continue the newest generation of device and backup set."""

    sequence: int
    root_sha256: bytes | None


@attrs.frozen
class CommitConflict:
    """The same root was committed with other references."""


class Rebuilt(enum.StrEnum):
    """What became of one blob when the index was rebuilt."""

    REFRESHED = "refreshed"
    ADDED = "added"
    ON_ITS_WAY_OUT = "on-its-way-out"
    DEVICE_UNKNOWN = "device-unknown"


@attrs.frozen
class GcReport:
    """What one collection did (or would do)."""

    generations_expired: int
    packs_condemned: int
    packs_deleted: int
    bytes_deleted: int
    orphans: int
    orphans_deleted: int


@attrs.frozen
class Damage:
    """A live pack whose blob is missing or has other bytes; `generations` need it."""

    sha256: str
    contract: ContractId
    cause: str
    generations: tuple[str, ...]


@attrs.frozen
class RebuildReport:
    """What a rebuild of the index found, per blob."""

    refreshed: int
    added: int
    skipped: int
    damaged: tuple[str, ...]
