"""The package manifest: what one version of a delivered software is, needs and may do (JNT-01, -06, -21, -50).

Rules
- The manifest is the first entry of the archive (`wire/package_archive.py`); the operator's TUF signature covers
  both through the target's hash, so nothing here is signed again.
- Unknown fields are accepted unless `critical` names them: then the reader must refuse ("upgrade needed").
- `release` orders versions and is what floors compare; `version` is text for people.
- It does not do: prices, tiers, eligibility (deliver/), reading archives, installing (hgwd).
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec

from wire.errors import FormatError, UpgradeNeededError
from wire.ids import OperatorId, SoftwareId, VersionText

GATEWAY_SERIES: Final = ("PR-400", "RV-440", "RT-400", "PR-500", "RS-500", "RT-500")
"""Gateway series that can receive software, "currently" (JNT-21). Note: RV-440 and RS-500, not RV-400, RV-500."""

GATEWAY_MAKERS: Final = ("KI", "MI", "NE")
"""Makers of those series; a targeting key of its own beside the series."""

MANIFEST_BYTES_MAX: Final = 64 * 1024
MEMORY_BYTES_MIN: Final = 16 * 1024 * 1024
MEMORY_BYTES_MAX: Final = 128 * 1024 * 1024
DISK_BYTES_MAX: Final = 64 * 1024 * 1024
RELEASE_MAX: Final = 2**31 - 1

_CRITICAL_KNOWN: Final = frozenset(
    [
        "v",
        "operator",
        "software",
        "version",
        "release",
        "floor",
        "series",
        "makers",
        "runtime",
        "entry",
        "args",
        "resources",
        "permissions",
        "health",
        "description",
        "price_text",
        "critical",
    ]
)
_PATH_COMPONENT: Final = re.compile(r"[A-Za-z0-9_@+.-]{1,100}")
_PATH_CHARS_MAX: Final = 200

_Port = Annotated[int, msgspec.Meta(ge=1024, le=65535)]
_Text = Annotated[str, msgspec.Meta(max_length=2000)]
_Arg = Annotated[str, msgspec.Meta(max_length=256)]


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """Caps the launcher enforces for the process group; ranges are part of the format."""

    memory_bytes: Annotated[int, msgspec.Meta(ge=MEMORY_BYTES_MIN, le=MEMORY_BYTES_MAX)]
    cpu_percent: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    pids: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    disk_bytes: Annotated[int, msgspec.Meta(ge=0, le=DISK_BYTES_MAX)] = 0


class Permissions(msgspec.Struct, frozen=True, kw_only=True):
    """What the isolation lets through. `none`: own loopback only. `lan`: the gateway's LAN, never the WAN."""

    network: Literal["none", "lan"] = "none"
    listen_ports: Annotated[tuple[_Port, ...], msgspec.Meta(max_length=8)] = ()


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How hgwd decides that a start succeeded.

    `http`: GET `path` on `port` answers 200. `tcp`: `port` accepts. `exit`: the process is alive, or ended with
    code 0, when `soak_s` is over. A probe must succeed within `timeout_s` of the start and again at the end of
    `soak_s`.
    """

    kind: Literal["http", "tcp", "exit"]
    port: _Port | None = None
    path: Annotated[str, msgspec.Meta(pattern=r"^/[A-Za-z0-9_./-]{0,127}$")] = "/"
    timeout_s: Annotated[int, msgspec.Meta(ge=1, le=60)] = 10
    soak_s: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 60


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One variant of one version. Build it through `parse_manifest`: the constructor checks nothing."""

    v: int
    operator: str
    software: str
    version: str
    release: Annotated[int, msgspec.Meta(ge=1, le=RELEASE_MAX)]
    floor: Annotated[int, msgspec.Meta(ge=0, le=RELEASE_MAX)] = 0
    series: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=len(GATEWAY_SERIES))]
    makers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=len(GATEWAY_MAKERS))]
    runtime: Literal["python-zipapp", "static-elf"]
    entry: str
    args: Annotated[tuple[_Arg, ...], msgspec.Meta(max_length=32)] = ()
    resources: Resources
    permissions: Permissions = Permissions()
    health: Health
    description: _Text = ""
    price_text: _Text = ""
    critical: Annotated[tuple[str, ...], msgspec.Meta(max_length=32)] = ()

    @property
    def variant(self) -> str:
        """Name of this variant in the target path: its first series."""
        return self.series[0]

    def fits(self, *, series: str, maker: str) -> bool:
        """Say whether a gateway of this series and maker may run the variant."""
        return series in self.series and maker in self.makers


def parse_manifest(data: bytes) -> Manifest:
    """Return the manifest in `data` (UTF-8 JSON, at most `MANIFEST_BYTES_MAX` bytes).

    Raises `FormatError` for any other form, `UpgradeNeededError` for another version or an unknown critical field.
    """
    if len(data) > MANIFEST_BYTES_MAX:
        message = f"manifest: expected at most {MANIFEST_BYTES_MAX} bytes, got {len(data)}"
        raise FormatError(message)
    _check_version_and_critical(data)
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        message = f"manifest: {error}"
        raise FormatError(message) from error
    _check_values(manifest)
    return manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the one encoding of `manifest`; equal manifests give equal bytes."""
    return msgspec.json.encode(manifest)


def check_package_path(path: str) -> str:
    """Return `path` if it is a safe relative path inside a package, or raise `FormatError`.

    Safe: 1 to 200 characters; components of A-Z a-z 0-9 _ @ + . -, none empty, "." or "..".
    """
    parts = path.split("/")
    safe = len(path) <= _PATH_CHARS_MAX and all(
        _PATH_COMPONENT.fullmatch(part) is not None and part not in {".", ".."} for part in parts
    )
    if not safe:
        message = (
            f"package path: expected a relative path without '..' or odd characters, got {ascii(path)[:80]}"
        )
        raise FormatError(message)
    return path


class _Header(msgspec.Struct, frozen=True):
    v: int
    critical: tuple[str, ...] = ()


def _check_version_and_critical(data: bytes) -> None:
    """Look at `v` and `critical` first, so that a newer manifest reads as newer and not as damaged."""
    try:
        header = msgspec.json.decode(data, type=_Header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        message = f"manifest: {error}"
        raise FormatError(message) from error
    if header.v != 1:
        message = f"manifest: this program knows version 1, got {header.v}"
        raise UpgradeNeededError(message)
    unknown = sorted(set(header.critical) - _CRITICAL_KNOWN)
    if unknown:
        message = f"manifest: unknown critical field {ascii(unknown[0])[:80]}"
        raise UpgradeNeededError(message)


def _check_values(manifest: Manifest) -> None:
    OperatorId.parse(manifest.operator)
    SoftwareId.parse(manifest.software)
    VersionText.parse(manifest.version)
    check_package_path(manifest.entry)
    if manifest.floor > manifest.release:
        message = f"manifest: floor {manifest.floor} is above its own release {manifest.release}"
        raise FormatError(message)
    _check_known("series", manifest.series, GATEWAY_SERIES)
    _check_known("makers", manifest.makers, GATEWAY_MAKERS)
    if manifest.permissions.listen_ports and manifest.permissions.network == "none":
        message = "manifest: permissions.listen_ports needs permissions.network = lan"
        raise FormatError(message)
    if manifest.health.kind != "exit" and manifest.health.port is None:
        message = f"manifest: health.kind {manifest.health.kind} needs health.port"
        raise FormatError(message)


def _check_known(field: str, values: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [value for value in values if value not in known]
    if unknown:
        message = (
            f"manifest: {field}: expected some of {', '.join(known)}, got {ascii(unknown[0])[:80]} (JNT-21)"
        )
        raise FormatError(message)
    if len(set(values)) != len(values):
        message = f"manifest: {field}: a value stands twice"
        raise FormatError(message)
