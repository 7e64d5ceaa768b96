"""What both sides of a pairing compute (design §4, protocols §5): commitment and the six digits.

The NAS commits to its key and nonce before it sees the gateway's nonce, so neither side, nor anybody between them,
can choose values that make the digits agree. All inputs are 32 raw bytes; digits are a big-endian integer mod 10^6.
"""

from __future__ import annotations

import hashlib

from wire.errors import FormatError

PAIR_FIELD_BYTES = 32
_COMMITMENT = b"hgw/pair/1"
_DIGITS = b"hgw/pair-digits/1"


def pair_commitment(device_key: bytes, nonce_n: bytes) -> bytes:
    """Return the 32-byte commitment of the NAS to its device key and nonce."""
    _check_lengths(device_key, nonce_n)
    return hashlib.sha256(_COMMITMENT + device_key + nonce_n).digest()


def pair_digits(certificate_sha256: bytes, device_key: bytes, nonce_g: bytes, nonce_n: bytes) -> str:
    """Return the six digits a human compares; `certificate_sha256` is of the DER certificate each side sees."""
    _check_lengths(certificate_sha256, device_key, nonce_g, nonce_n)
    digest = hashlib.sha256(_DIGITS + certificate_sha256 + device_key + nonce_g + nonce_n).digest()
    return f"{int.from_bytes(digest, 'big') % 1_000_000:06d}"


def _check_lengths(*values: bytes) -> None:
    for value in values:
        if len(value) != PAIR_FIELD_BYTES:
            raise FormatError(
                f"pairing: expected values of {PAIR_FIELD_BYTES} bytes, got one of {len(value)}"
            )
