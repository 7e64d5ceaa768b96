"""Device certificates and session headers (vault-format.md §3, §4).

Rules
- A header proves itself: it holds the certificate, which holds the device key that signed the header.
- The secrets are sealed to the contract's box key: who can write a session cannot read it again later.
- It does not do: drawing keys (the caller passes them), deciding which contract or device to trust.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Final

import attrs
import msgspec
from nacl import bindings
from nacl.exceptions import CryptoError

from wire.errors import FormatError, SignatureError
from wire.signing import Context, SigningKey, sign_blob, unverified_payload, verify_blob
from wire.vault.document import VERSION, decode_document

SESSION_KEY_BYTES: Final = 32
ID_KEY_BYTES: Final = 32
CHUNK_SEED_MAX: Final = (1 << 63) - 1
"""pyfastcdc doubles the seed in 64 bits, so 63 are usable."""
HEADER_BYTES_MAX: Final = 16 << 10

Hex16 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Base64 = Annotated[str, msgspec.Meta(max_length=8 << 10)]
_SEED_BYTES: Final = 8


class DeviceCert(msgspec.Struct, frozen=True, kw_only=True):
    """What the contract's owner says about one NAS: this key may write backups of this contract."""

    v: int = VERSION
    contract: str
    device_key: Hex32
    name: Annotated[str, msgspec.Meta(max_length=128)]
    issued_at: int


class SessionHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The public part of a session. `sequence` is that of the generation being made, ≥ 1."""

    v: int = VERSION
    contract: str
    device_cert: _Base64
    epoch: Hex16
    session: Hex16
    backup_set: str
    sequence: Annotated[int, msgspec.Meta(ge=1)]
    created_at: int
    box_key: Hex32
    sealed: _Base64
    critical: tuple[str, ...] = ()

    @property
    def cert_blob(self) -> bytes:
        """The device certificate as a signed blob; raises `FormatError` if it is no base64."""
        return _unbase64(self.device_cert)


@attrs.frozen
class SessionSecrets:
    """What `sealed` holds; never in `repr`."""

    session_key: bytes = attrs.field(repr=False)
    id_key: bytes = attrs.field(repr=False)
    chunk_seed: int = attrs.field(repr=False)


@attrs.frozen
class VerifiedHeader:
    """A header whose certificate and signature hold, with the device it belongs to."""

    header: SessionHeader
    cert: DeviceCert
    device_key: bytes


def sign_device_cert(contract_key: SigningKey, cert: DeviceCert) -> bytes:
    """Return the signed certificate of a device."""
    return sign_blob(contract_key, Context.DEVICE_CERT, msgspec.json.encode(cert))


def open_device_cert(blob: bytes, *, contract_sign_key: bytes) -> DeviceCert:
    """Return a certificate once the contract's signing key (32 bytes) signed it.

    Raises `SignatureError`, `FormatError` or `UpgradeNeededError`.
    """
    return decode_document(
        "device certificate", verify_blob(blob, Context.DEVICE_CERT, contract_sign_key), DeviceCert
    )


def seal_secrets(secrets: SessionSecrets, *, box_key: bytes) -> str:
    """Return the `sealed` field: the secrets in a sealed box for the contract's box key (32 bytes)."""
    if not 0 < secrets.chunk_seed <= CHUNK_SEED_MAX:
        message = "chunk seed: expected 1 to 2^63 - 1"
        raise FormatError(message)
    plain = secrets.session_key + secrets.id_key + secrets.chunk_seed.to_bytes(_SEED_BYTES, "big")
    return base64.b64encode(bindings.crypto_box_seal(plain, box_key)).decode()


def sign_header(device_key: SigningKey, header: SessionHeader) -> bytes:
    """Return the signed header."""
    return sign_blob(device_key, Context.SESSION_HEADER, msgspec.json.encode(header))


def open_header(blob: bytes, *, contract_sign_key: bytes) -> VerifiedHeader:
    """Return a header once the contract certified its device and the device signed it.

    Raises `SignatureError` for either signature, `FormatError` for the form or for a certificate of another
    contract, `UpgradeNeededError` for a newer version.
    """
    if len(blob) > HEADER_BYTES_MAX:
        message = f"session header: expected at most {HEADER_BYTES_MAX} bytes, got {len(blob)}"
        raise FormatError(message)
    claimed = decode_document("session header", unverified_payload(blob), SessionHeader)
    cert = open_device_cert(claimed.cert_blob, contract_sign_key=contract_sign_key)
    device_key = bytes.fromhex(cert.device_key)
    header = decode_document(
        "session header", verify_blob(blob, Context.SESSION_HEADER, device_key), SessionHeader
    )
    if header.contract != cert.contract:
        message = "session header: its certificate is for another contract"
        raise FormatError(message)
    return VerifiedHeader(header, cert, device_key)


def unverified_header(blob: bytes) -> SessionHeader:
    """Return a header without any signature check: for a relay that only needs its names."""
    return decode_document("session header", unverified_payload(blob), SessionHeader)


def unseal_secrets(header: SessionHeader, *, box_public: bytes, box_secret: bytes) -> SessionSecrets:
    """Return the secrets of a session with the contract's box key pair (32 bytes each).

    Raises `SignatureError` if the box does not open with this key, `FormatError` if it holds something else.
    """
    try:
        plain = bindings.crypto_box_seal_open(_unbase64(header.sealed), box_public, box_secret)
    except (CryptoError, TypeError, ValueError) as error:
        message = f"session {header.session}: the sealed key does not open with this contract's key"
        raise SignatureError(message) from error
    if len(plain) != SESSION_KEY_BYTES + ID_KEY_BYTES + _SEED_BYTES:
        message = f"session {header.session}: the sealed key has {len(plain)} bytes"
        raise FormatError(message)
    seed = int.from_bytes(plain[-_SEED_BYTES:], "big")
    return SessionSecrets(plain[:SESSION_KEY_BYTES], plain[SESSION_KEY_BYTES:-_SEED_BYTES], seed)


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, ValueError) as error:
        message = "session header: expected standard base64"
        raise FormatError(message) from error
