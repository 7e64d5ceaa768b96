"""Verify one TUF metadata file under its delegator: the step that both repositories share.

Signatures first, meaning after: nothing of a file is used before its delegator's threshold holds.
A public key that appears under two key IDs counts once.
"""

from __future__ import annotations

from datetime import UTC, datetime

import attrs

from hgwd.core.tuf_keys import (
    DeserializationError,
    Metadata,
    Root,
    Signature,
    Signed,
    Targets,
    distinct_key_count,
)
from hgwd.core.update_types import Cause, RefusedError

Delegator = Root | Targets


@attrs.frozen
class UnverifiedMetadata:
    """Parsed, not yet believed: nothing of `signed` may be used before `verify_signed_by` returned."""

    signed: Signed
    payload: bytes
    signatures: dict[str, Signature]


def parse_metadata(data: bytes, expected_type: str, what: str) -> UnverifiedMetadata:
    """Return the metadata in `data`; `what` names it in errors. Raises `RefusedError` (bad-format)."""
    try:
        metadata = _from_bytes(data)
    except DeserializationError as error:
        raise RefusedError(
            Cause.BAD_FORMAT, f"{what}: not TUF metadata: {error.__cause__ or error}"
        ) from error
    if metadata.signed.type != expected_type:
        raise RefusedError(
            Cause.BAD_FORMAT, f"{what}: expected type {expected_type}, got {metadata.signed.type}"
        )
    return metadata


def verify_signed_by(delegator: Delegator, role: str, metadata: UnverifiedMetadata, what: str) -> None:
    """Raise `RefusedError` (unsigned) unless `delegator`'s keys for `role` sign `metadata` at threshold."""
    try:
        result = delegator.get_verification_result(role, metadata.payload, metadata.signatures)
    except ValueError as error:
        raise RefusedError(Cause.UNSIGNED, f"{what}: {error}") from error
    count = distinct_key_count(result.signed)
    if count < result.threshold:
        raise RefusedError(Cause.UNSIGNED, f"{what}: signed by {count} of {result.threshold} keys of {role}")


def load_root(data: bytes, trusted: Root | None, what: str) -> Root:
    """Return the root in `data`, signed by itself and, if there is one, by the `trusted` root before it (5.3.4-5).

    Raises `RefusedError`; expiry is not looked at, since an expired root may still introduce its successor.
    """
    metadata = parse_metadata(data, Root.type, what)
    new = metadata.signed
    assert isinstance(new, Root)  # noqa: S101 - the type was checked by name
    if trusted is not None:
        verify_signed_by(trusted, Root.type, metadata, what)
        if new.version != trusted.version + 1:
            raise RefusedError(
                Cause.ROLLBACK, f"{what}: expected version {trusted.version + 1}, got {new.version}"
            )
    verify_signed_by(new, Root.type, metadata, what)
    return new


def is_expired(signed: Signed, now_s: float) -> bool:
    """Say whether `signed` is at or past its date at `now_s` (unix seconds)."""
    return signed.is_expired(datetime.fromtimestamp(now_s, UTC))


def _from_bytes(data: bytes) -> UnverifiedMetadata:
    metadata: Metadata[Root] = Metadata.from_bytes(data)  # any role: the type variable has no common bound
    return UnverifiedMetadata(metadata.signed, metadata.signed_bytes, metadata.signatures)
