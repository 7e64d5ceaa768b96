"""Decide what to do with one software: only what director and image repository both say (design §5.2, JNT-50).

Rules
- Install or update needs: the director names the target; the image repository lists the same path with the same
  length and the same hashes; the operator's own `custom` fits series and maker; its release is not below the
  highest floor this gateway ever committed.
- Floors come from operator-signed targets only. Whoever holds the director's key can choose among what operators
  signed, at or above the floor, and nothing else.
- What is already installed and what was refused before is answered without new work.
- `remove` and `hold` need no image repository: they bring no bytes in.

Pure: no clock, no files. It does not fetch, verify signatures (update_images, update_director) or install.
"""

from __future__ import annotations

from typing import Final

import attrs

from hgwd.core.tuf_keys import TargetFile
from hgwd.core.update_director import DirectorDocument, GatewayIdentity
from hgwd.core.update_types import Cause, RefusedError
from wire.director import (
    DirectorSoftware,
    DirectorWindow,
    SoftwareName,
    TargetCustom,
    TargetPath,
    parse_target_custom,
)
from wire.errors import FormatError, UpgradeNeededError
from wire.package import Manifest

PACKAGE_BYTES_MAX: Final = 25 << 20
"""No package of this size or more is sold (JNT-05), so none is fetched."""
HASH: Final = "sha256"
_JST_OFFSET_S: Final = 9 * 3600
_DAY_S: Final = 24 * 3600


@attrs.frozen
class Installable:
    """A target both repositories agree on, ready to be downloaded."""

    name: SoftwareName
    path: TargetPath
    url_path: str
    length_bytes: int
    sha256: str
    custom: TargetCustom
    rate_bytes_per_s: int | None


def entry_target(document: DirectorDocument, entry: DirectorSoftware) -> TargetFile:
    """Return the director's own statement of the entry's target. Raises `RefusedError` (bad-format)."""
    target = None if entry.target is None else document.targets.get(entry.target)
    if target is None:
        raise RefusedError(
            Cause.BAD_FORMAT, f"{entry.software}: target {entry.target} is not in signed.targets"
        )
    return target


def decide_install(
    entry: DirectorSoftware,
    director: TargetFile,
    image: TargetFile | None,
    *,
    url_path: str,
    identity: GatewayIdentity,
    floor_release: int,
) -> Installable:
    """Return what to download for `entry`, or raise `RefusedError` with the cause.

    Args:
        entry: what the director wants of the software.
        director: what the director's document says about the target.
        image: what the image repository says about the same path, None if it does not list it.
        identity: this gateway.
        url_path: path below the image repository's target base.
        floor_release: highest floor ever committed for this software, 0 for none.
    """
    if image is None:
        raise RefusedError(Cause.NOT_IN_IMAGE, f"{director.path}: no operator signed it")
    _check_agree(director, image)
    custom = _parse_custom(image)
    path = TargetPath.parse(image.path)
    if not custom.fits(series=identity.series, maker=identity.maker):
        raise RefusedError(
            Cause.WRONG_MODEL,
            f"{image.path}: for {custom.series} {custom.makers}, this is {_model(identity)}",
        )
    if custom.release < floor_release:
        raise RefusedError(
            Cause.BELOW_FLOOR, f"{image.path}: release {custom.release} is below the floor {floor_release}"
        )
    if not 0 < image.length < PACKAGE_BYTES_MAX:
        raise RefusedError(
            Cause.TOO_LARGE, f"{image.path}: {image.length} bytes, limit {PACKAGE_BYTES_MAX} (JNT-05)"
        )
    if entry.budget_bytes is not None and image.length > entry.budget_bytes:
        raise RefusedError(
            Cause.BUDGET, f"{image.path}: {image.length} bytes, the rollout allows {entry.budget_bytes}"
        )
    return Installable(
        name=path.name,
        path=path,
        url_path=url_path,
        length_bytes=image.length,
        sha256=image.hashes[HASH],
        custom=custom,
        rate_bytes_per_s=entry.rate_bytes_per_s,
    )


def check_manifest(manifest: Manifest, wanted: Installable, identity: GatewayIdentity) -> None:
    """Raise `RefusedError` unless the unpacked manifest is the one its signed target announced."""
    expected = (wanted.name.text, wanted.path.version.text, wanted.custom.release, wanted.custom.floor)
    name = f"{manifest.operator}/{manifest.software}"
    got = (name, manifest.version, manifest.release, manifest.floor)
    if got != expected:
        raise RefusedError(
            Cause.WRONG_PACKAGE, f"{wanted.path.text}: manifest says {got}, the target {expected}"
        )
    if not manifest.fits(series=identity.series, maker=identity.maker):
        raise RefusedError(
            Cause.WRONG_MODEL,
            f"{wanted.path.text}: manifest is for {manifest.series}, this is {_model(identity)}",
        )


def in_window(window: DirectorWindow | None, now_s: float) -> bool:
    """Say whether an install may start at `now_s`; windows are minutes of the day in JST, start included."""
    if window is None:
        return True
    minute = int((now_s + _JST_OFFSET_S) % _DAY_S) // 60
    start, end = _minute(window.start), _minute(window.end)
    if start <= end:
        return start <= minute < end
    return minute >= start or minute < end


def _check_agree(director: TargetFile, image: TargetFile) -> None:
    if director.length != image.length:
        raise RefusedError(
            Cause.DISAGREE,
            f"{image.path}: director says {director.length} bytes, image repository {image.length}",
        )
    if HASH not in director.hashes or director.hashes != image.hashes:
        raise RefusedError(
            Cause.DISAGREE, f"{image.path}: director and image repository name different hashes"
        )


def _parse_custom(image: TargetFile) -> TargetCustom:
    custom = image.custom if isinstance(image.custom, dict) else {}
    try:
        return parse_target_custom(custom.get("hgw"))
    except UpgradeNeededError as error:
        raise RefusedError(Cause.UNKNOWN_CRITICAL, f"{image.path}: {error}") from error
    except FormatError as error:
        raise RefusedError(Cause.BAD_FORMAT, f"{image.path}: {error}") from error


def _model(identity: GatewayIdentity) -> str:
    return f"{identity.series} {identity.maker}"


def _minute(text: str) -> int:
    return int(text[:2]) * 60 + int(text[3:])
