"""Ed25519 signed blobs with domain separation (protocols §1).

A signed blob is `signature(64) ‖ payload`. The signature covers `"hgw/" ‖ context ‖ 0x00 ‖ payload`, so a signature
made for one use never serves another. Verify first, parse after: `verify_blob` returns the very bytes that were signed.
"""

from __future__ import annotations

import enum

import attrs
from nacl import bindings
from nacl.exceptions import BadSignatureError

from wire.errors import FormatError, SignatureError

SEED_BYTES = 32
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
BLOB_BYTES_MAX = 16 << 20


class Context(enum.StrEnum):
    """What a signature is for; part of the signed bytes."""

    STATEMENT = "statement/1"
    RECEIPT = "receipt/1"
    RECEIPT_KEY = "receipt-key/1"
    PACK = "pack/1"
    SESSION_HEADER = "session-header/1"
    GENERATION_ROOT = "generation-root/1"
    DEVICE_CERT = "device-cert/1"
    TIME = "time/1"


@attrs.frozen
class SigningKey:
    """An Ed25519 key pair; `seed` is the secret (32 bytes) and never appears in `repr`."""

    seed: bytes = attrs.field(repr=False)
    public: bytes = attrs.field(init=False)
    _expanded: bytes = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if len(self.seed) != SEED_BYTES:
            message = f"signing key seed: expected {SEED_BYTES} bytes, got {len(self.seed)}"
            raise FormatError(message)
        public, expanded = bindings.crypto_sign_seed_keypair(self.seed)
        object.__setattr__(self, "public", public)
        object.__setattr__(self, "_expanded", expanded)

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte detached signature over exactly these bytes (no context added)."""
        return bindings.crypto_sign(message, self._expanded)[:SIGNATURE_BYTES]


def generate_key() -> SigningKey:
    """Return a fresh key from the operating system's randomness."""
    return SigningKey(bindings.randombytes(SEED_BYTES))


def verify_detached(signature: bytes, message: bytes, public_key: bytes) -> None:
    """Raise `SignatureError` unless `signature` is `public_key`'s over exactly `message`."""
    if len(signature) != SIGNATURE_BYTES or len(public_key) != PUBLIC_KEY_BYTES:
        message_text = (
            f"expected a signature of {SIGNATURE_BYTES} and a key of {PUBLIC_KEY_BYTES} bytes, "
            f"got {len(signature)} and {len(public_key)}"
        )
        raise SignatureError(message_text)
    try:
        bindings.crypto_sign_open(signature + message, public_key)
    except BadSignatureError as error:
        message_text = f"signature does not verify under key {public_key.hex()[:16]}…"
        raise SignatureError(message_text) from error


def sign_blob(key: SigningKey, context: Context, payload: bytes) -> bytes:
    """Return `signature ‖ payload` under `context`."""
    return key.sign(_signed_bytes(context, payload)) + payload


def verify_blob(blob: bytes, context: Context, public_key: bytes) -> bytes:
    """Return the payload of a signed blob once its signature holds.

    Raises:
        SignatureError: too short, or not signed by `public_key` under `context`.
    """
    if not SIGNATURE_BYTES <= len(blob) <= BLOB_BYTES_MAX:
        message = f"signed blob: expected {SIGNATURE_BYTES} to {BLOB_BYTES_MAX} bytes, got {len(blob)}"
        raise SignatureError(message)
    payload = blob[SIGNATURE_BYTES:]
    verify_detached(blob[:SIGNATURE_BYTES], _signed_bytes(context, payload), public_key)
    return payload


def unverified_payload(blob: bytes) -> bytes:
    """Return the payload without any check: only to learn which key to verify with."""
    return blob[SIGNATURE_BYTES:]


def _signed_bytes(context: Context, payload: bytes) -> bytes:
    return b"hgw/" + context.value.encode() + b"\0" + payload
