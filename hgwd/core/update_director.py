"""The director's side: its own root chain, then one signed document bound to this gateway (design §5.2).

Rules
- The root chain is walked before a *new* document is verified, and not at all on a 304: a poll stays one request.
- A document counts only if the director role of the newest root signs it, it names this gateway and serial, it
  is not expired, and its version is above that of the stored one of the same enrolment (or its bytes are the same).
- A stored document that no longer verifies (director keys rotated) is forgotten: fast-forward recovery.
- Expiry stops *new* installs; nobody calls this to stop a running software.
- A document with an unknown critical field is refused whole.

It does not know what is installed and it does not read the image repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from hgwd.core.trusted_time import TIME_ROLE
from hgwd.core.tuf_keys import Root, Signed, TargetFile, Targets
from hgwd.core.update_images import update_root_chain
from hgwd.core.update_metadata import is_expired, parse_metadata, verify_signed_by
from hgwd.core.update_types import Cause, Load, RefusedError, Source, Steps, Store
from wire.director import DIRECTOR_ROLE, DirectorBody, parse_director_body
from wire.errors import FormatError, UpgradeNeededError
from wire.ids import GatewaySerial, RandomId

STORED_DOCUMENT: Final = "director"


@attrs.frozen
class DirectorDocument:
    """A document whose signatures, binding and form were checked."""

    version: int
    expires_s: float
    body: DirectorBody
    targets: Mapping[str, TargetFile]


@attrs.frozen
class GatewayIdentity:
    """Who we are, for the binding checks: series and maker are targeting keys (JNT-21)."""

    gateway: RandomId
    serial: GatewaySerial
    series: str
    maker: str


def accept_document(
    pinned_root: bytes, data: bytes, identity: GatewayIdentity, now_s: float
) -> Steps[DirectorDocument]:
    """Verify a freshly fetched document and store it. Raises `RefusedError`; the stored one then stays in force."""
    root = yield from update_root_chain(Source.DIRECTOR, pinned_root)
    _check_root(root, now_s)
    document = _verify(root, data, identity, "director document")
    stored = yield Load(Source.DIRECTOR, STORED_DOCUMENT)
    if stored is not None and stored != data:
        _check_newer(root, stored, document, identity)
    if document.expires_s <= now_s:
        raise RefusedError(Cause.EXPIRED, f"director document {document.version}: expired")
    if stored != data:
        yield Store(Source.DIRECTOR, STORED_DOCUMENT, data)
    return document


def load_document(pinned_root: bytes, identity: GatewayIdentity) -> Steps[DirectorDocument | None]:
    """Return the stored document without a request, or None if there is none that verifies today.

    It may be expired: the caller compares `expires_s` before it starts anything new.
    """
    stored_root = yield Load(Source.DIRECTOR, Root.type)
    stored = yield Load(Source.DIRECTOR, STORED_DOCUMENT)
    if stored is None:
        return None
    root = _parse_root(stored_root if stored_root is not None else pinned_root)
    try:
        return _verify(root, stored, identity, "stored director document")
    except RefusedError:
        return None


def _parse_root(data: bytes) -> Root:
    metadata = parse_metadata(data, Root.type, "director root (stored)")
    assert isinstance(metadata.signed, Root)  # noqa: S101 - the type was checked by name
    return metadata.signed


def _check_root(root: Root, now_s: float) -> None:
    if is_expired(root, now_s):
        raise RefusedError(Cause.EXPIRED, f"director root {root.version}: expired {root.expires}")


def _check_newer(root: Root, stored: bytes, document: DirectorDocument, identity: GatewayIdentity) -> None:
    """Refuse a version at or below the stored one of this enrolment, as long as today's keys vouch for that one."""
    metadata = parse_metadata(stored, Targets.type, "stored director document")
    try:
        verify_signed_by(root, DIRECTOR_ROLE, metadata, "stored director document")
    except RefusedError:
        return  # signed by director keys that the root has since revoked: its version binds nobody
    if _gateway_of(metadata.signed) != identity.gateway.text:
        return  # of an earlier enrolment: each counts from 1, and its documents are refused as another gateway's
    if document.version <= metadata.signed.version:
        raise RefusedError(
            Cause.ROLLBACK, f"director document: version {document.version} after {metadata.signed.version}"
        )


def _gateway_of(signed: Signed) -> object:
    body = signed.unrecognized_fields.get("hgw")
    return body.get("gateway") if isinstance(body, dict) else None


def _verify(root: Root, data: bytes, identity: GatewayIdentity, what: str) -> DirectorDocument:
    metadata = parse_metadata(data, Targets.type, what)
    verify_signed_by(root, DIRECTOR_ROLE, metadata, what)
    signed = metadata.signed
    assert isinstance(signed, Targets)  # noqa: S101 - the type was checked by name
    if signed.delegations is not None:
        raise RefusedError(Cause.BAD_FORMAT, f"{what}: delegations are not part of the format")
    try:
        body = parse_director_body(signed.unrecognized_fields.get("hgw"))
    except UpgradeNeededError as error:
        raise RefusedError(Cause.UNKNOWN_CRITICAL, f"{what}: {error}") from error
    except FormatError as error:
        raise RefusedError(Cause.BAD_FORMAT, f"{what}: {error}") from error
    if (body.gateway, body.serial) != (identity.gateway.text, identity.serial.text):
        raise RefusedError(
            Cause.WRONG_GATEWAY, f"{what}: for gateway {body.gateway} serial {body.serial}, not for this one"
        )
    return DirectorDocument(signed.version, signed.expires.timestamp(), body, signed.targets)


def time_keys(pinned_root: bytes) -> Steps[tuple[bytes, ...]]:
    """Return the raw Ed25519 keys of the time role (`timestamp`) in the newest stored director root."""
    stored = yield Load(Source.DIRECTOR, Root.type)
    root = _parse_root(stored if stored is not None else pinned_root)
    role = root.roles[TIME_ROLE]
    keys = [root.keys[keyid] for keyid in role.keyids if keyid in root.keys]
    return tuple(bytes.fromhex(key.keyval["public"]) for key in keys if key.keytype == "ed25519")
