"""Generation roots and the chain they form (vault-format.md §8, §9).

Rules: a root is believed only under a certified device key; the chain is checked over everything the store lists.
Verdicts are values with the names of vault-format.md §9. It does not do: reading manifests, any I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Final

import attrs
import msgspec

from wire.errors import FormatError
from wire.ids import BackupSetName
from wire.signing import Context, SigningKey, sign_blob, unverified_payload, verify_blob
from wire.vault.document import VERSION, decode_document
from wire.vault.session import Hex16, Hex32

ROOT_BYTES_MAX: Final = 64 << 10
HISTORY_MAX: Final = 32
MANIFEST_ITEMS_MAX: Final = 64
MANIFEST_DEPTH_MAX: Final = 4
MANIFEST_CHUNK_BYTES_MAX: Final = 1 << 20

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Sequence = Annotated[int, msgspec.Meta(ge=1)]
_ChunkLength = Annotated[int, msgspec.Meta(ge=1, le=MANIFEST_CHUNK_BYTES_MAX)]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Where the manifest is: (chunk ID, length) items; `depth` 0 = they are the stream itself, `bytes` long."""

    depth: Annotated[int, msgspec.Meta(ge=0, le=MANIFEST_DEPTH_MAX)]
    items: Annotated[tuple[tuple[Hex32, _ChunkLength], ...], msgspec.Meta(max_length=MANIFEST_ITEMS_MAX)]
    bytes: _Count


class GenerationRoot(msgspec.Struct, frozen=True, kw_only=True):
    """One generation. `files` and `logical_bytes` are the device's own count: displayed, never charged."""

    v: int = VERSION
    contract: str
    backup_set: str
    device_key: Hex32
    epoch: Hex16
    sequence: _Sequence
    session: Hex16
    created_at: int
    parent: Hex32 | None
    history: Annotated[tuple[tuple[_Sequence, Hex32], ...], msgspec.Meta(max_length=HISTORY_MAX)] = ()
    manifest: Manifest
    files: _Count
    logical_bytes: _Count
    complete: bool
    refs_count: _Count
    refs_sha256: Hex32
    critical: tuple[str, ...] = ()


@attrs.frozen
class ChainVerdict:
    """What the listed roots say together.

    Attributes:
        refusal: a name of vault-format.md §9, or None if nothing contradicts anything.
        detail: which sequences are concerned.
        absent: sequences between 1 and the newest that are not listed (expired, or withheld).
    """

    refusal: str | None
    detail: str
    absent: tuple[int, ...]


def root_hash(blob: bytes) -> str:
    """Return the generation's hash: SHA-256 (hex) of the signed blob."""
    return hashlib.sha256(blob).hexdigest()


def sign_root(key: SigningKey, root: GenerationRoot) -> bytes:
    """Return the signed root."""
    return sign_blob(key, Context.GENERATION_ROOT, msgspec.json.encode(root))


def open_root(blob: bytes, *, device_key: bytes) -> GenerationRoot:
    """Return a root once `device_key` (32 bytes) signed it.

    Raises `SignatureError`, `FormatError` (also if it names another device key) or `UpgradeNeededError`.
    """
    _check_length(blob)
    root = _decode(verify_blob(blob, Context.GENERATION_ROOT, device_key))
    if root.device_key != device_key.hex():
        message = f"generation root: names device {root.device_key[:16]}…, signed by {device_key.hex()[:16]}…"
        raise FormatError(message)
    return root


def unverified_root(blob: bytes) -> GenerationRoot:
    """Return a root without checking its signature: to learn which session header to ask for."""
    _check_length(blob)
    return _decode(unverified_payload(blob))


def next_history(
    parent: GenerationRoot | None, parent_hash: str | None, parent_sequence: int
) -> tuple[tuple[int, str], ...]:
    """Return the `history` of the generation after `parent` (None: only hash and sequence of the head are known)."""
    if parent_hash is None:
        return ()
    older = parent.history if parent is not None else ()
    return ((parent_sequence, parent_hash), *older)[:HISTORY_MAX]


def check_chain(
    roots: Mapping[str, GenerationRoot], *, anchor: tuple[int, str] | None = None
) -> ChainVerdict:
    """Judge the chain of one device and backup set (vault-format.md §9.3).

    Args:
        roots: generation hash → verified root, everything the store lists.
        anchor: (sequence, hash) of the newest generation the reader knows to exist.
    """
    by_sequence: dict[int, str] = {}
    for digest, root in roots.items():
        other = by_sequence.setdefault(root.sequence, digest)
        if other != digest:
            return ChainVerdict("chain-fork", f"two generations have sequence {root.sequence}", ())
    absent = tuple(n for n in range(1, max(by_sequence, default=0)) if n not in by_sequence)
    for root in roots.values():
        named = dict(root.history)
        if root.parent is not None:
            named[root.sequence - 1] = root.parent
        for sequence, digest in named.items():
            if by_sequence.get(sequence, digest) != digest or sequence >= root.sequence:
                detail = f"generation {root.sequence} names another generation {sequence} than the listed one"
                return ChainVerdict("chain-broken", detail, absent)
    if anchor is not None:
        refusal = _check_anchor(by_sequence, anchor)
        if refusal is not None:
            return ChainVerdict(*refusal, absent)
    return ChainVerdict(None, "", absent)


def _check_anchor(by_sequence: Mapping[int, str], anchor: tuple[int, str]) -> tuple[str, str] | None:
    sequence, digest = anchor
    newest = max(by_sequence, default=0)
    if newest < sequence:
        return "generation-hidden", f"generation {sequence} exists, but the newest listed is {newest}"
    if by_sequence.get(sequence, digest) != digest:
        return "chain-broken", f"generation {sequence} is listed with another content than its receipt says"
    return None


def _check_length(blob: bytes) -> None:
    if len(blob) > ROOT_BYTES_MAX:
        message = f"generation root: expected at most {ROOT_BYTES_MAX} bytes, got {len(blob)}"
        raise FormatError(message)


def _decode(payload: bytes) -> GenerationRoot:
    root = decode_document("generation root", payload, GenerationRoot)
    BackupSetName.parse(root.backup_set)
    if root.parent is None and root.history:
        message = f"generation root {root.sequence}: a history without a parent"
        raise FormatError(message)
    return root
