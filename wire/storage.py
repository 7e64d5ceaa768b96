"""Messages of the storage protocol (docs/internals/protocols.md §3), spoken NAS → gateway → service.

Rules
- Requests refuse unknown fields; answers and signed documents accept them (a newer service may say more).
- Times are unix seconds, sizes bytes, keys and hashes lower-case hex, signed blobs standard base64.
- A receipt counts only after `verify_receipt`: its key must be delegated by the service root the NAS pinned.
- It does not do: the vault format (`wire/vault/`), any decision, any I/O.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from wire.errors import FormatError, SignatureError, UpgradeNeededError
from wire.signing import Context, SigningKey, sign_blob, unverified_payload, verify_blob

IDS_PER_REQUEST_MAX: Final = 4096
"""Chunk IDs or pack names in one `have`, `state` or `locate` request."""
ID_BYTES: Final = 32
LOCATION_BYTES: Final = 48
PACK_BYTES_MAX: Final = 64 << 20
ROOT_BYTES_MAX: Final = 64 << 10
COMMIT_BYTES_MAX: Final = 64 << 20
"""Root and references of one commit: two million chunks."""

HEADER_GATEWAY: Final = "hgw-gateway"
HEADER_SESSION: Final = "hgw-session"

STATE_UNKNOWN: Final = 0
STATE_SPOOLED: Final = 1
STATE_STORED: Final = 2
STATE_REJECTED: Final = 3

_Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
_Base64 = Annotated[str, msgspec.Meta(max_length=12 << 10)]
_T = TypeVar("_T", bound=msgspec.Struct)


class DeviceEnrol(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of statement `device-enrol`; the signer is the device key that `device_cert` names."""

    contract: str
    enrolment_code: Annotated[str, msgspec.Meta(max_length=64)]
    device_cert: _Base64
    contract_box_key: _Hex32
    contract_sign_key: _Hex32


class SessionOpen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of statement `session-open`; `session_header` (base64 signed blob) in append mode only."""

    contract: str
    backup_set: str
    mode: Literal["append", "read"]
    session_header: _Base64 | None = None


class GatewayRelay(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of statement `gateway-relay`: the request the gateway passes on, byte for byte."""

    method: str
    path: str
    body_sha256: _Hex32


class DeviceEnrolled(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `POST devices`."""

    device: str
    receipt_key_cert: str
    service_root: str


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The newest generation of a device in a backup set."""

    sequence: int
    root_sha256: str


class SessionOpened(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `POST sessions`. Bytes within `reserved_bytes` will not meet a full quota."""

    session: str
    token: str
    lease_until: int
    limit_bytes: int
    used_bytes: int
    reserved_bytes: int
    head: Head | None


class PackState(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `PUT pack`."""

    state: Literal["spooled", "stored"]
    lease_until: int | None = None


class GenerationItem(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `GET generations`. `keep_until` is the earliest time its bytes may go."""

    generation: str
    sequence: int
    root_sha256: str
    received_at: int
    keep_until: int
    stored_bytes: int
    in_trash: bool


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What the service promises for one generation; signed by `receipt_key` (context `receipt/1`).

    `packs` is the number of distinct packs the generation needs and `stored_bytes` their size; `refs_sha256` is
    over the sorted references as committed; `keep_until` is the earliest time the bytes may go.
    """

    v: int = 1
    contract: str
    device: str
    backup_set: str
    epoch: str
    sequence: int
    generation: str
    root_sha256: str
    refs_sha256: str
    packs: int
    stored_bytes: int
    received_at: int
    keep_until: int
    receipt_key: _Hex32


class ReceiptKey(msgspec.Struct, frozen=True, kw_only=True):
    """Delegation of the online receipt key by the offline service root (context `receipt-key/1`)."""

    v: int = 1
    receipt_key: _Hex32
    not_after: int


def sign_receipt(key: SigningKey, receipt: Receipt) -> bytes:
    """Return the signed blob of a receipt."""
    return sign_blob(key, Context.RECEIPT, msgspec.json.encode(receipt))


def sign_receipt_key(root: SigningKey, receipt_key: bytes, *, not_after: int) -> bytes:
    """Return the delegation of `receipt_key` (32 bytes) until `not_after`, signed by the service root."""
    return sign_blob(
        root,
        Context.RECEIPT_KEY,
        msgspec.json.encode(ReceiptKey(receipt_key=receipt_key.hex(), not_after=not_after)),
    )


def verify_receipt_key(cert: bytes, *, service_root: bytes) -> ReceiptKey:
    """Return the delegation once the pinned service root (32 bytes) signed it.

    Raises `SignatureError`, `FormatError` or `UpgradeNeededError`.
    """
    return _decode("receipt key", verify_blob(cert, Context.RECEIPT_KEY, service_root), ReceiptKey)


def verify_receipt(blob: bytes, *, cert: bytes, service_root: bytes) -> Receipt:
    """Return the receipt once its key is delegated by `service_root` and was valid when it was given.

    Raises `SignatureError` for a wrong signature, key or time, `FormatError` or `UpgradeNeededError` for the form.
    """
    delegation = verify_receipt_key(cert, service_root=service_root)
    receipt = _decode(
        "receipt", verify_blob(blob, Context.RECEIPT, bytes.fromhex(delegation.receipt_key)), Receipt
    )
    if receipt.receipt_key != delegation.receipt_key:
        raise SignatureError(f"receipt: names key {receipt.receipt_key[:16]}…, signed by another")
    if receipt.received_at > delegation.not_after:
        raise SignatureError(
            f"receipt: given at {receipt.received_at}, its key ended at {delegation.not_after}"
        )
    return receipt


def unverified_receipt(blob: bytes) -> Receipt:
    """Return a receipt without checking its signature: for display only."""
    return _decode("receipt", unverified_payload(blob), Receipt)


def to_base64(blob: bytes) -> str:
    """Return standard base64."""
    return base64.b64encode(blob).decode()


def from_base64(text: str) -> bytes:
    """Return the bytes of standard base64, or raise `FormatError`."""
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError("expected standard base64") from error


def split_ids(data: bytes, *, ids_max: int = IDS_PER_REQUEST_MAX) -> tuple[bytes, ...]:
    """Return the 32-byte IDs in a request body; `FormatError` unless 0 to `ids_max` whole IDs."""
    count, rest = divmod(len(data), ID_BYTES)
    if rest or count > ids_max:
        raise FormatError(f"expected 0 to {ids_max} IDs of {ID_BYTES} bytes, got {len(data)} bytes")
    return tuple(data[start : start + ID_BYTES] for start in range(0, len(data), ID_BYTES))


def join_commit(root: bytes, refs: tuple[bytes, ...]) -> bytes:
    """Return the body of a commit: length of the root, the root, the sorted distinct references."""
    return len(root).to_bytes(4, "big") + root + b"".join(sorted(set(refs)))


def split_commit(data: bytes) -> tuple[bytes, bytes]:
    """Return (signed root, references) of a commit body.

    Raises `FormatError` unless the references are whole, sorted and distinct: so one set has one hash.
    """
    root_bytes = int.from_bytes(data[:4], "big")
    if len(data) < 4 or not 0 < root_bytes <= min(ROOT_BYTES_MAX, len(data) - 4):
        raise FormatError(f"commit: expected a root of 1 to {ROOT_BYTES_MAX} bytes, got length {root_bytes}")
    refs = data[4 + root_bytes :]
    if len(refs) % ID_BYTES:
        raise FormatError(f"commit: expected references of {ID_BYTES} bytes each, got {len(refs)} bytes")
    if any(
        refs[at : at + ID_BYTES] >= refs[at + ID_BYTES : at + 2 * ID_BYTES]
        for at in range(0, len(refs) - ID_BYTES, ID_BYTES)
    ):
        raise FormatError("commit: expected sorted, distinct references")
    return data[4 : 4 + root_bytes], refs


class _Version(msgspec.Struct, frozen=True):
    v: int


def _decode(what: str, payload: bytes, kind: type[_T]) -> _T:
    try:
        version = msgspec.json.decode(payload, type=_Version).v
        if version != 1:
            raise UpgradeNeededError(f"{what}: expected version 1, got {version}: upgrade needed")
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{what}: {error}") from error
