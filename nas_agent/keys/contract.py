"""The contract's key pairs: one 32-byte secret, from it a box key (opens sessions) and a signing key (certifies devices).

The wrapped copy is JSON: Argon2id makes a key from the passphrase, secretbox (XSalsa20-Poly1305) seals the secret.
The cost is written in the file, so a copy made today opens on tomorrow's program. No file access here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import unicodedata
from typing import Annotated, Final

import attrs
import msgspec
from nacl import bindings
from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id

from nas_agent.keys.errors import KeyFileError, WrongPassphraseError
from wire.signing import SigningKey

SECRET_BYTES: Final = 32
PASSPHRASE_CHARS_MIN: Final = 10
_WRAP_VERSION: Final = 1
_FINGERPRINT_BYTES: Final = 16


@attrs.frozen
class KdfCost:
    """Cost of Argon2id: passes over the memory, and its bytes (RFC 9106 §4: at least 64 MiB with 3 passes)."""

    passes: int = 4
    memory_bytes: int = 64 << 20


@attrs.frozen
class ContractPublic:
    """The public half, pinned by every device: X25519 box key and Ed25519 signing key, 32 bytes each."""

    box_key: bytes
    sign_key: bytes

    @property
    def fingerprint(self) -> str:
        """The form a human compares: eight groups of four hex digits."""
        digest = hashlib.sha256(b"hgw/contract/1" + self.box_key + self.sign_key).digest()
        return group_hex(digest[:_FINGERPRINT_BYTES])


@attrs.frozen
class ContractSecret:
    """The secret that opens every backup of the contract (32 bytes); never in `repr`, never on disk unwrapped."""

    secret: bytes = attrs.field(repr=False)

    @property
    def box_secret(self) -> bytes:
        """The X25519 secret key, 32 bytes."""
        return bindings.crypto_box_seed_keypair(_derive(self.secret, b"hgw contract box"))[1]

    @property
    def signing_key(self) -> SigningKey:
        """The Ed25519 key that certifies devices."""
        return SigningKey(_derive(self.secret, b"hgw contract sgn"))

    @property
    def public(self) -> ContractPublic:
        """The public half."""
        box_public = bindings.crypto_box_seed_keypair(_derive(self.secret, b"hgw contract box"))[0]
        return ContractPublic(box_key=box_public, sign_key=self.signing_key.public)


class _Wrapped(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    v: int
    kdf: str
    passes: Annotated[int, msgspec.Meta(ge=1, le=64)]
    memory_bytes: Annotated[int, msgspec.Meta(ge=8192, le=1 << 30)]
    salt: str
    sealed: str
    box_key: str
    sign_key: str


def generate_contract() -> ContractSecret:
    """Make a contract secret from the system's randomness."""
    return ContractSecret(bindings.randombytes(SECRET_BYTES))


def wrap_secret(contract: ContractSecret, passphrase: str, *, cost: KdfCost) -> bytes:
    """Return the owner's copy: the secret sealed under the passphrase, with the public keys beside it."""
    salt = bindings.randombytes(argon2id.SALTBYTES)
    nonce = bindings.randombytes(bindings.crypto_secretbox_NONCEBYTES)
    sealed = nonce + bindings.crypto_secretbox(
        contract.secret, nonce, _passphrase_key(passphrase, salt, cost)
    )
    public = contract.public
    wrapped = _Wrapped(
        v=_WRAP_VERSION,
        kdf="argon2id",
        passes=cost.passes,
        memory_bytes=cost.memory_bytes,
        salt=_to_text(salt),
        sealed=_to_text(sealed),
        box_key=public.box_key.hex(),
        sign_key=public.sign_key.hex(),
    )
    return msgspec.json.format(msgspec.json.encode(wrapped), indent=1) + b"\n"


def unwrap_secret(data: bytes, passphrase: str) -> ContractSecret:
    """Open the owner's copy.

    Raises:
        WrongPassphraseError: the passphrase is another.
        KeyFileError: not such a copy, of a newer version, or its public keys do not belong to its secret.
    """
    try:
        wrapped = msgspec.json.decode(data, type=_Wrapped)
        salt, sealed = _from_text(wrapped.salt), _from_text(wrapped.sealed)
    except (msgspec.MsgspecError, binascii.Error, ValueError) as error:
        message = (
            f"the contract key copy cannot be read ({error}): restore the file or use the recovery sheet"
        )
        raise KeyFileError(message) from error
    if (wrapped.v, wrapped.kdf) != (_WRAP_VERSION, "argon2id") or len(salt) != argon2id.SALTBYTES:
        message = f"the contract key copy has version {wrapped.v}, kdf {wrapped.kdf!r}: upgrade nas-agent"
        raise KeyFileError(message)
    key = _passphrase_key(passphrase, salt, KdfCost(wrapped.passes, wrapped.memory_bytes))
    contract = ContractSecret(_open_sealed(sealed, key))
    if (contract.public.box_key.hex(), contract.public.sign_key.hex()) != (wrapped.box_key, wrapped.sign_key):
        raise KeyFileError(
            "the contract key copy names other public keys than its secret has: it was altered"
        )
    return contract


def group_hex(data: bytes) -> str:
    """Return hex digits in groups of four."""
    text = data.hex()
    return " ".join(text[i : i + 4] for i in range(0, len(text), 4))


def _open_sealed(sealed: bytes, key: bytes) -> bytes:
    nonce_bytes = bindings.crypto_secretbox_NONCEBYTES
    if len(sealed) != nonce_bytes + SECRET_BYTES + bindings.crypto_secretbox_MACBYTES:
        raise KeyFileError("the contract key copy is cut short: restore the file or use the recovery sheet")
    try:
        return bindings.crypto_secretbox_open(sealed[nonce_bytes:], sealed[:nonce_bytes], key)
    except CryptoError as error:
        message = "wrong passphrase for the contract key: try again, or use the recovery sheet"
        raise WrongPassphraseError(message) from error


def _passphrase_key(passphrase: str, salt: bytes, cost: KdfCost) -> bytes:
    password = unicodedata.normalize("NFKC", passphrase).encode()
    return argon2id.kdf(
        bindings.crypto_secretbox_KEYBYTES, password, salt, opslimit=cost.passes, memlimit=cost.memory_bytes
    )


def _derive(secret: bytes, purpose: bytes) -> bytes:
    return hashlib.blake2b(b"", key=secret, person=purpose, digest_size=32).digest()


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _from_text(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
