"""The one import of python-tuf in `deliver`, and Ed25519 keys and signers over libsodium for it.

Rules
- securesystemslib imports boto3 when it finds it (0.2 s, 20 MB): it is hidden during the import.
- Every module of `deliver` takes TUF names from here, so that no import order brings boto3 back.
- It does not do: deciding which key signs what (`image_repository.py`, `director.py`), key files (`keystore.py`).
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from runtime.errors import LocalError
from wire.errors import SignatureError
from wire.signing import SigningKey, verify_detached

_HIDDEN: Final = ("boto3", "botocore")
PUBLIC_KEY_BYTES: Final = 32


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
    from securesystemslib.exceptions import UnverifiedSignatureError
    from securesystemslib.formats import encode_canonical
    from securesystemslib.signer import (  # type: ignore[attr-defined]  # its public names
        KEY_FOR_TYPE_AND_SCHEME,
        Key,
        Signature,
        Signer,
    )
    from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
    from tuf.api.metadata import (  # type: ignore[attr-defined]  # tuf's documented place for them
        DelegatedRole,
        Delegations,
        Metadata,
        MetaFile,
        Role,
        Root,
        Snapshot,
        TargetFile,
        Targets,
        Timestamp,
    )
    from tuf.api.serialization import DeserializationError, SerializationError
    from tuf.api.serialization.json import JSONSerializer

__all__ = [
    "DelegatedRole",
    "Delegations",
    "DeserializationError",
    "Key",
    "MetaFile",
    "Metadata",
    "RepositoryError",
    "Role",
    "Root",
    "SerializationError",
    "Snapshot",
    "SodiumKey",
    "SodiumSigner",
    "TargetFile",
    "Targets",
    "Timestamp",
    "UnsignedMetadataError",
    "encode",
    "sign",
    "tuf_key",
]


class SodiumKey(Key):
    """An Ed25519 public key verified by libsodium."""

    @classmethod
    def from_dict(cls, keyid: str, key_dict: dict[str, Any]) -> SodiumKey:
        """Return the key in TUF's form. Raises KeyError, TypeError or ValueError for another form."""
        keytype, scheme, keyval = cls._from_dict(key_dict)
        public = keyval.get("public")
        if not isinstance(public, str) or len(bytes.fromhex(public)) != PUBLIC_KEY_BYTES:
            raise ValueError(f"ed25519 key {keyid[:16]}: expected {PUBLIC_KEY_BYTES} bytes in hex")
        return cls(keyid, keytype, scheme, keyval, key_dict)

    def to_dict(self) -> dict[str, Any]:
        """Return TUF's form of the key."""
        return self._to_dict()

    def verify_signature(self, signature: Signature, data: bytes) -> None:
        """Raise `UnverifiedSignatureError` unless `signature` is this key's over `data`."""
        try:
            verify_detached(bytes.fromhex(signature.signature), data, bytes.fromhex(self.keyval["public"]))
        except (ValueError, SignatureError) as error:
            raise UnverifiedSignatureError(f"signature of key {self.keyid[:16]} does not verify") from error


KEY_FOR_TYPE_AND_SCHEME[("ed25519", "ed25519")] = SodiumKey


class SodiumSigner(Signer):
    """Signs TUF metadata with one of our Ed25519 keys."""

    def __init__(self, key: SigningKey) -> None:
        self._key = key
        self._public = tuf_key(key.public)

    @property
    def public_key(self) -> Key:
        """The TUF form of the public half."""
        return self._public

    @classmethod
    def from_priv_key_uri(cls, *_args: object, **_kwargs: object) -> Signer:
        """Not offered: keys come from `keystore.py`, never from a URI."""
        raise LocalError("signing keys: expected a key file of deliver.signing.keystore, got a URI")

    def sign(self, payload: bytes) -> Signature:
        """Return the signature over `payload`."""
        return Signature(self._public.keyid, self._key.sign(payload).hex())


def tuf_key(public: bytes) -> Key:
    """Return the TUF form of a raw Ed25519 public key (32 bytes); its key ID is the hash of that form."""
    keyval = {"public": public.hex()}
    form = {"keytype": "ed25519", "scheme": "ed25519", "keyval": keyval}
    keyid = hashlib.sha256(str(encode_canonical(form)).encode()).hexdigest()
    return SodiumKey(keyid, "ed25519", "ed25519", keyval)


def sign(metadata: Metadata[Any], keys: Iterable[SigningKey]) -> Metadata[Any]:
    """Replace the signatures of `metadata` by those of `keys`; returns it."""
    metadata.signatures.clear()
    for key in keys:
        metadata.sign(SodiumSigner(key), append=True)
    return metadata


def encode(metadata: Metadata[Any]) -> bytes:
    """Return the compact JSON form that is written to files."""
    return metadata.to_bytes(JSONSerializer(compact=True))
