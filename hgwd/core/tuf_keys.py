"""The one door to `tuf.api`: imports it without boto3 and cryptography, and verifies Ed25519 with libsodium.

Rules
- Import TUF classes in hgwd from here only. `securesystemslib` imports every signing back-end it can find; on a
  gateway that would pull `boto3` (85 MB) and `cryptography` into the always-on process (design §5.8).
- A module that is already imported stays as it is: in tests and in the conformance client the full set of key
  types is wanted, so they import `cryptography` first.
- It does not sign: gateways verify only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from nacl import bindings
from nacl.exceptions import BadSignatureError

_HIDDEN: Final = ("boto3", "botocore", "cryptography", "google", "azure", "hvac", "PyKCS11", "asn1crypto")
PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64


@contextmanager
def _hidden_modules() -> Iterator[None]:
    absent = [name for name in _HIDDEN if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment]  # documented way to make an import fail
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


with _hidden_modules():
    from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
    from securesystemslib.signer import (  # type: ignore[attr-defined]  # its public names
        KEY_FOR_TYPE_AND_SCHEME,
        Key,
        Signature,
    )
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import (  # type: ignore[attr-defined]  # tuf's documented place for them
        DelegatedRole,
        Metadata,
        MetaFile,
        Root,
        Signed,
        Snapshot,
        TargetFile,
        Targets,
        Timestamp,
    )
    from tuf.api.serialization import DeserializationError

    # Imported lazily by tuf at its first parse: bring it in while the hidden modules are still hidden.
    from tuf.api.serialization import json as _tuf_json

__all__ = [
    "DelegatedRole",
    "DeserializationError",
    "Key",
    "MetaFile",
    "Metadata",
    "RepositoryError",
    "Root",
    "Signature",
    "Signed",
    "Snapshot",
    "SodiumKey",
    "TargetFile",
    "Targets",
    "Timestamp",
    "distinct_key_count",
]
_ = _tuf_json


class SodiumKey(Key):
    """An Ed25519 public key verified by libsodium: 45 times faster than securesystemslib's own fallback."""

    @classmethod
    def from_dict(cls, keyid: str, key_dict: dict[str, Any]) -> SodiumKey:
        """Return the key in TUF's form. Raises KeyError, TypeError or ValueError for another form."""
        keytype, scheme, keyval = cls._from_dict(key_dict)
        public = keyval.get("public")
        if not isinstance(public, str) or len(bytes.fromhex(public)) != PUBLIC_KEY_BYTES:
            message = f"ed25519 key {keyid[:16]}: expected {PUBLIC_KEY_BYTES} bytes in hex"
            raise ValueError(message)
        return cls(keyid, keytype, scheme, keyval, key_dict)

    def to_dict(self) -> dict[str, Any]:
        """Return TUF's form of the key."""
        return self._to_dict()

    def verify_signature(self, signature: Signature, data: bytes) -> None:
        """Raise `UnverifiedSignatureError` unless `signature` is this key's over `data`."""
        try:
            raw = bytes.fromhex(signature.signature)
            public = bytes.fromhex(self.keyval["public"])
        except ValueError as error:
            message = f"signature of key {self.keyid[:16]}: expected hex digits"
            raise VerificationError(message) from error
        if len(raw) != SIGNATURE_BYTES or signature.keyid != self.keyid:
            message = f"signature of key {self.keyid[:16]}: expected {SIGNATURE_BYTES} bytes, got {len(raw)}"
            raise UnverifiedSignatureError(message)
        try:
            bindings.crypto_sign_open(raw + data, public)
        except BadSignatureError as error:
            message = f"signature does not verify under key {self.keyid[:16]}"
            raise UnverifiedSignatureError(message) from error


def distinct_key_count(keys: dict[str, Key]) -> int:
    """Return how many different public keys stand behind key IDs: one key under two IDs counts once (TUF 5.2)."""
    return len({(key.keytype, key.scheme, repr(sorted(key.keyval.items()))) for key in keys.values()})


KEY_FOR_TYPE_AND_SCHEME[("ed25519", "ed25519")] = SodiumKey
