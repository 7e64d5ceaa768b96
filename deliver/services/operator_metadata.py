"""Check the targets metadata an operator signed, before it becomes part of the image repository.

Rules
- It is verified over the received bytes with the keys and threshold the shard delegates, never with keys it brings.
- It lists every file registered before, unchanged, and exactly one new one: the quoted package.
- It delegates to nobody. Its version rises by one. Everything a gateway would refuse is refused here first.
"""

from __future__ import annotations

import datetime as dt

import attrs
import sqlalchemy as sa

from deliver.domain.pricing import Measured, Refused
from deliver.engines.schema import joint_variant
from deliver.services.operators import Operator, read_roles
from deliver.signing.image_repository import METADATA_BYTES_MAX, ImageRepository
from deliver.signing.tuf import (
    DeserializationError,
    Metadata,
    RepositoryError,
    TargetFile,
    Targets,
    UnsignedMetadataError,
)
from wire.director import (
    TargetCustom,
    TargetPath,
    operator_role,
    parse_target_custom,
    shard_of,
    shard_role,
    to_plain,
)
from wire.errors import WireError

EXPIRY_S_MAX = 2 * 365 * 86_400


@attrs.frozen
class VerifiedTargets:
    """Metadata that may be published: its version and what it says of the new package."""

    version: int
    custom: TargetCustom


def verify_operator_metadata(
    repository: ImageRepository,
    connection: sa.Connection,
    operator: Operator,
    data: bytes,
    package: Measured,
    *,
    last_version: int,
    now_s: float,
) -> VerifiedTargets | Refused:
    """Return the verified new version of an operator's role, or why it is refused."""
    metadata = _parse(data)
    if isinstance(metadata, Refused):
        return metadata
    shard = shard_role(shard_of(operator.operator))
    delegator = repository.load(shard, read_roles(connection)[shard])
    try:
        delegator.signed.verify_delegate(
            operator_role(operator.operator), metadata.signed_bytes, metadata.signatures
        )
    except (UnsignedMetadataError, RepositoryError, ValueError) as error:
        return Refused(
            "bad-signature", "JNT-50", f"not signed by enough keys of {operator.operator}: {error}"
        )
    signed: Targets = metadata.signed
    refusal = _check_frame(signed, operator, last_version, now_s) or _check_old_files(
        connection, operator, signed
    )
    if refusal is not None:
        return refusal
    unlisted = _unknown_targets(connection, operator, signed, package)
    if unlisted:
        return Refused(
            "unknown-target", "JNT-50", f"{unlisted[0]} was never quoted: only the quoted package is new"
        )
    return _check_new_file(signed, package)


def _parse(data: bytes) -> Metadata[Targets] | Refused:
    if len(data) > METADATA_BYTES_MAX:
        return Refused(
            "too-large", "JNT-50", f"targets metadata: expected at most {METADATA_BYTES_MAX} bytes"
        )
    try:
        metadata = Metadata.from_bytes(data)
    except (DeserializationError, RecursionError) as error:
        return Refused("bad-format", "JNT-50", f"targets metadata: {error}")
    if not isinstance(metadata.signed, Targets):
        return Refused("bad-format", "JNT-50", f"expected targets metadata, got {metadata.signed.type}")
    return metadata


def _check_frame(signed: Targets, operator: Operator, last_version: int, now_s: float) -> Refused | None:
    if signed.delegations is not None:
        return Refused("delegates", "JNT-50", "an operator's role may not delegate further")
    if signed.version != last_version + 1:
        message = f"metadata version: expected {last_version + 1}, got {signed.version}"
        return Refused("metadata-version", "JNT-50", message)
    left_s = (signed.expires - dt.datetime.fromtimestamp(now_s, dt.UTC)).total_seconds()
    if not 0 < left_s <= EXPIRY_S_MAX:
        message = f"metadata expires {signed.expires.isoformat()}: expected within the next two years"
        return Refused("expired", "JNT-50", message)
    try:
        foreign = [
            path for path in signed.targets if TargetPath.parse(path).name.operator != operator.operator
        ]
    except WireError as error:
        return Refused("wrong-path", "JNT-50", str(error))
    if foreign:
        return Refused("wrong-path", "JNT-50", f"{foreign[0]} does not belong to {operator.operator}")
    return None


def _check_old_files(connection: sa.Connection, operator: Operator, signed: Targets) -> Refused | None:
    table = joint_variant.c
    query = sa.select(table.target_path, table.sha256, table.stored_bytes, table.custom)
    for path, sha256, stored_bytes, custom in connection.execute(
        query.where(table.operator == operator.operator.text)
    ):
        target = signed.targets.get(path)
        same = target is not None and (target.length, target.hashes.get("sha256")) == (stored_bytes, sha256)
        if target is None or not same or _custom_of(target) != custom:
            return Refused("conflict", "JNT-50", f"{path} is registered: it must be listed unchanged")
    return None


def _check_new_file(signed: Targets, package: Measured) -> VerifiedTargets | Refused:
    target = signed.targets.get(package.target_path)
    if target is None:
        return Refused("not-listed", "JNT-50", f"the metadata does not list {package.target_path}")
    if (target.length, target.hashes.get("sha256")) != (package.stored_bytes, package.sha256):
        return Refused(
            "bad-hash", "JNT-50", f"{package.target_path}: the metadata names other bytes than were quoted"
        )
    try:
        custom = parse_target_custom(_custom_of(target))
    except WireError as error:
        return Refused("bad-format", "JNT-50", str(error))
    if custom != custom_of_package(package):
        return Refused("bad-format", "JNT-50", f"{package.target_path}: custom differs from the manifest")
    return VerifiedTargets(signed.version, custom)


def _unknown_targets(
    connection: sa.Connection, operator: Operator, signed: Targets, package: Measured
) -> list[str]:
    table = joint_variant.c
    rows = connection.execute(sa.select(table.target_path).where(table.operator == operator.operator.text))
    known = {path for (path,) in rows} | {package.target_path}
    return sorted(set(signed.targets) - known)


def custom_of_package(package: Measured) -> TargetCustom:
    """Return the custom member a package's manifest and measured footprint call for."""
    manifest = package.manifest
    return TargetCustom(
        release=manifest.release,
        floor=manifest.floor,
        series=manifest.series,
        makers=manifest.makers,
        footprint_bytes=package.footprint_bytes,
    )


def make_target_file(package: Measured) -> TargetFile:
    """Return the TUF entry of a package, as its operator signs it."""
    return TargetFile(
        length=package.stored_bytes,
        hashes={"sha256": package.sha256},
        path=package.target_path,
        unrecognized_fields={"custom": {"hgw": to_plain(custom_of_package(package))}},
    )


def _custom_of(target: TargetFile) -> object:
    custom = target.unrecognized_fields.get("custom")
    return custom.get("hgw") if isinstance(custom, dict) else None
