"""Director documents and target paths: what the carrier tells one gateway to run (design §5.2, protocols.md §4).

Rules
- A director document is TUF Metadata[Targets]. Its `signed.targets` gives exact lengths and hashes; this module owns
  the extra member `signed["hgw"]` and the `custom` member of operator-signed targets.
- A gateway checks `gateway` and `serial` against itself: a document for another gateway is refused.
- An entry of `critical` that the reader does not know: the document is refused, never half-obeyed.
- `software` is written `<operator>/<software>` wherever a gateway speaks of one: IDs are unique per operator only.
- No fractions: TUF signs canonical JSON, which has none.
- It does not do: TUF signatures, expiry, versions (python-tuf / hgwd core), deciding who gets what (deliver/).
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal, Self, TypeVar

import attrs
import msgspec

from wire.errors import FormatError, UpgradeNeededError
from wire.ids import GatewaySerial, OperatorId, RandomId, SoftwareId, VersionText
from wire.package import GATEWAY_MAKERS, GATEWAY_SERIES, RELEASE_MAX

SHARD_COUNT: Final = 256
SOFTWARE_PER_GATEWAY_MAX: Final = 32
POLL_S_MIN: Final = 5
POLL_S_MAX: Final = 7 * 24 * 3600
TARGET_SUFFIX: Final = ".hgwpkg"
DIRECTOR_ROLE: Final = "targets"
"""TUF role (in the director's own root) whose keys sign director documents."""

_DIRECTOR_CRITICAL_KNOWN: Final = frozenset(
    {"v", "gateway", "serial", "poll_s", "jitter_percent", "software", "critical"}
)
_CUSTOM_CRITICAL_KNOWN: Final = frozenset({"v", "release", "floor", "series", "makers", "footprint_bytes"})
_T = TypeVar("_T")
_JST_MINUTE = Annotated[str, msgspec.Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]


@attrs.frozen(order=True)
class SoftwareName:
    """A software together with its operator: the key a gateway keeps slots and floors by."""

    operator: OperatorId
    software: SoftwareId

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the name written `<operator>/<software>`, or raise `FormatError`."""
        operator, slash, software = text.partition("/")
        if not slash:
            message = f"software name: expected '<operator>/<software>', got {ascii(text)[:80]}"
            raise FormatError(message)
        return cls(OperatorId.parse(operator), SoftwareId.parse(software))

    @property
    def text(self) -> str:
        """The name as written on the wire."""
        return f"{self.operator}/{self.software}"


@attrs.frozen
class TargetPath:
    """`<shard>/<operator>/<software>/<version>/<variant>.hgwpkg`; the shard follows from the operator."""

    name: SoftwareName
    version: VersionText
    variant: str

    @property
    def text(self) -> str:
        """The path as it stands in TUF metadata and in the URL below `/image/targets/`."""
        operator = self.name.operator
        return f"{shard_of(operator)}/{self.name.text}/{self.version}/{self.variant}{TARGET_SUFFIX}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the parts of a target path; raise `FormatError` for another form or the wrong shard."""
        parts = text.split("/")
        if len(parts) != 5 or not parts[4].endswith(TARGET_SUFFIX):
            message = f"target path: expected shard/operator/software/version/series.hgwpkg, got {ascii(text)[:120]}"
            raise FormatError(message)
        operator = OperatorId.parse(parts[1])
        variant = parts[4].removesuffix(TARGET_SUFFIX)
        if variant not in GATEWAY_SERIES:
            message = f"target path: unknown series {ascii(variant)[:40]}"
            raise FormatError(message)
        path = cls(SoftwareName(operator, SoftwareId.parse(parts[2])), VersionText.parse(parts[3]), variant)
        if parts[0] != shard_of(operator):
            message = f"target path: operator {operator} belongs to shard {shard_of(operator)}, not {ascii(parts[0])[:40]}"
            raise FormatError(message)
        return path


def shard_of(operator: OperatorId) -> str:
    """Return the shard of an operator: the first byte of SHA-256 of its ID, two hex digits."""
    return hashlib.sha256(operator.text.encode()).hexdigest()[:2]


def shard_role(shard: str) -> str:
    """Return the TUF role name of a shard (`00`…`ff`)."""
    return f"shard-{shard}"


def operator_role(operator: OperatorId) -> str:
    """Return the TUF role name of an operator; the prefix keeps it apart from top-level and shard names."""
    return f"operator-{operator}"


class DirectorWindow(msgspec.Struct, frozen=True, kw_only=True):
    """Minutes of the day, JST, in which installs may start; `start` > `end` passes midnight."""

    start: _JST_MINUTE
    end: _JST_MINUTE


class DirectorSoftware(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of one software. `target` is a path listed in `signed.targets`, absent for `remove`."""

    software: str
    action: Literal["install", "update", "remove", "hold"]
    target: str | None = None
    rate_bytes_per_s: Annotated[int, msgspec.Meta(ge=1024)] | None = None
    budget_bytes: Annotated[int, msgspec.Meta(ge=0)] | None = None
    window: DirectorWindow | None = None


class DirectorBody(msgspec.Struct, frozen=True, kw_only=True):
    """`signed["hgw"]` of a director document. Build it through `parse_director_body` when it came from outside."""

    v: int = 1
    gateway: str
    serial: str
    poll_s: Annotated[int, msgspec.Meta(ge=POLL_S_MIN, le=POLL_S_MAX)] = 3600
    jitter_percent: Annotated[int, msgspec.Meta(ge=0, le=50)] = 20
    critical: tuple[str, ...] = ()
    software: Annotated[tuple[DirectorSoftware, ...], msgspec.Meta(max_length=SOFTWARE_PER_GATEWAY_MAX)] = ()


class TargetCustom(msgspec.Struct, frozen=True, kw_only=True):
    """`custom["hgw"]` of an operator-signed target: the floor lives here, out of the director's reach."""

    v: int = 1
    release: Annotated[int, msgspec.Meta(ge=1, le=RELEASE_MAX)]
    floor: Annotated[int, msgspec.Meta(ge=0, le=RELEASE_MAX)]
    series: tuple[str, ...]
    makers: tuple[str, ...]
    footprint_bytes: Annotated[int, msgspec.Meta(ge=1)]
    critical: tuple[str, ...] = ()

    def fits(self, *, series: str, maker: str) -> bool:
        """Say whether a gateway of this series and maker may install the target."""
        return series in self.series and maker in self.makers


def parse_director_body(value: object) -> DirectorBody:
    """Return the body in `value`, the decoded JSON of `signed["hgw"]`.

    Raises `UpgradeNeededError` for another version or an unknown critical field, `FormatError` for any other form,
    a software named twice, or a target missing where the action needs one.
    """
    _check_version_and_critical("director document", value, _DIRECTOR_CRITICAL_KNOWN)
    body = _convert("director document", value, DirectorBody)
    RandomId.parse(body.gateway)
    GatewaySerial.parse(body.serial)
    names = [SoftwareName.parse(entry.software) for entry in body.software]
    if len(set(names)) != len(names):
        message = "director document: a software stands twice"
        raise FormatError(message)
    for name, entry in zip(names, body.software, strict=True):
        _check_entry(name, entry)
    return body


def parse_target_custom(value: object) -> TargetCustom:
    """Return `custom["hgw"]` of a target; same errors as `parse_director_body`."""
    _check_version_and_critical("target custom", value, _CUSTOM_CRITICAL_KNOWN | {"critical"})
    custom = _convert("target custom", value, TargetCustom)
    known = set(custom.series) <= set(GATEWAY_SERIES) and set(custom.makers) <= set(GATEWAY_MAKERS)
    if not known or not custom.series or not custom.makers or custom.floor > custom.release:
        message = "target custom: expected known series and makers, and floor not above release"
        raise FormatError(message)
    return custom


def to_plain(value: DirectorBody | TargetCustom) -> dict[str, object]:
    """Return the JSON object to put into TUF metadata; absent options are left out."""
    plain = msgspec.to_builtins(value)
    return {key: _without_none(item) for key, item in plain.items()}


def _without_none(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value


def _check_entry(name: SoftwareName, entry: DirectorSoftware) -> None:
    if entry.target is None:
        if entry.action in {"install", "update"}:
            message = f"director document: {name.text}: action {entry.action} needs a target"
            raise FormatError(message)
        return
    if TargetPath.parse(entry.target).name != name:
        message = f"director document: {name.text}: its target belongs to another software"
        raise FormatError(message)


def _check_version_and_critical(what: str, value: object, known: frozenset[str]) -> None:
    if not isinstance(value, dict):
        message = f"{what}: expected an object, got {type(value).__name__}"
        raise FormatError(message)
    if value.get("v") != 1:
        message = f"{what}: this program knows version 1, got {ascii(value.get('v'))[:40]}"
        raise UpgradeNeededError(message)
    critical = value.get("critical", [])
    if not isinstance(critical, list) or not all(isinstance(item, str) for item in critical):
        message = f"{what}: critical: expected a list of names"
        raise FormatError(message)
    unknown = sorted(set(critical) - known)
    if unknown:
        message = f"{what}: unknown critical field {ascii(unknown[0])[:80]}"
        raise UpgradeNeededError(message)


def _convert(what: str, value: object, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(value, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        message = f"{what}: {error}"
        raise FormatError(message) from error
