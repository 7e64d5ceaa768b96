"""The fixed protocol between hgwd (no root) and its launcher (root): one datagram, one answer.

Rules
- Requests name a software (`<operator>/<software>`) and a slot, nothing else: no command, no path, no environment.
- One `SOCK_SEQPACKET` message each way, JSON, at most `MESSAGE_BYTES_MAX`; an unknown field or tag is refused.
- What is run and how much it may use stands in the slot's manifest, which the launcher reads itself and caps.

Pure: messages only. The sockets are in adapters/launcher.py and launcher_main.py.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeVar

import msgspec

from wire.director import SoftwareName
from wire.errors import FormatError

VERSION: Final = 1
MESSAGE_BYTES_MAX: Final = 16 * 1024
LOG_READ_BYTES_MAX: Final = 4 * 1024
SLOT_NAMES: Final = ("a", "b")

_MessageT = TypeVar("_MessageT")
ProcessState = Literal["none", "running", "stopping", "exited"]


class ProbeBarriers(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="probe"
):
    """Ask which isolation barriers this machine has."""

    v: int = VERSION


class StartSoftware(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="start"
):
    """Run what stands in a slot. Refused if a barrier is missing or it runs already."""

    v: int = VERSION
    software: str
    slot: Literal["a", "b"]


class StopSoftware(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="stop"
):
    """End a software: SIGTERM, then SIGKILL for the whole group. Idempotent; poll `InspectSoftware` for the end."""

    v: int = VERSION
    software: str


class InspectSoftware(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="inspect"
):
    """Ask for the state of one software."""

    v: int = VERSION
    software: str


class ProbeHealth(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="health"
):
    """Run the manifest's health probe once, inside the software's own network namespace."""

    v: int = VERSION
    software: str


class ReadLog(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="log"
):
    """Read the newest part of what a software wrote to stdout and stderr."""

    v: int = VERSION
    software: str
    max_bytes: Annotated[int, msgspec.Meta(ge=1, le=LOG_READ_BYTES_MAX)] = LOG_READ_BYTES_MAX


class ForgetSoftware(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do", tag="forget"
):
    """Remove data volume and log of a stopped software. Idempotent."""

    v: int = VERSION
    software: str


Request = (
    ProbeBarriers | StartSoftware | StopSoftware | InspectSoftware | ProbeHealth | ReadLog | ForgetSoftware
)


class Barriers(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="is", tag="barriers"
):
    """Each barrier by name: "ok", or the reason why it is missing."""

    v: int = VERSION
    barriers: dict[str, str]

    @property
    def missing(self) -> dict[str, str]:
        """The barriers that are not there."""
        return {name: state for name, state in self.barriers.items() if state != "ok"}


class Process(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="is", tag="process"
):
    """State of one software. `exit_code` and `out_of_memory` tell about the last end."""

    v: int = VERSION
    state: ProcessState
    slot: Literal["a", "b"] | None = None
    pid: int | None = None
    uptime_s: float = 0.0
    exit_code: int | None = None
    out_of_memory: bool = False
    memory_bytes: int | None = None


class Healthy(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="is", tag="health"
):
    """Result of one health probe; `detail` says what was seen."""

    v: int = VERSION
    healthy: bool
    detail: str


class LogTail(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="is", tag="log"
):
    """Newest log text, undecodable bytes escaped."""

    v: int = VERSION
    text: str


class Done(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="is", tag="done"):
    """It happened, or was so already."""

    v: int = VERSION


class Declined(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="is", tag="declined"
):
    """An expected refusal: `fault` is one of `hgwd.core.faults.Fault`."""

    v: int = VERSION
    fault: int
    message: str


Answer = Barriers | Process | Healthy | LogTail | Done | Declined

_REQUESTS: Final[msgspec.json.Decoder[Request]] = msgspec.json.Decoder(Request)
_ANSWERS: Final[msgspec.json.Decoder[Answer]] = msgspec.json.Decoder(Answer)


def encode(message: Request | Answer) -> bytes:
    """Return the datagram of a message."""
    return msgspec.json.encode(message)


def parse_request(data: bytes) -> Request:
    """Return the request in a datagram; the software name is checked. Raises `FormatError`."""
    request = _parse(data, _REQUESTS, "launcher request")
    if not isinstance(request, ProbeBarriers):
        SoftwareName.parse(request.software)
    return request


def parse_answer(data: bytes) -> Answer:
    """Return the answer in a datagram. Raises `FormatError`."""
    return _parse(data, _ANSWERS, "launcher answer")


def _parse(data: bytes, decoder: msgspec.json.Decoder[_MessageT], what: str) -> _MessageT:
    if len(data) > MESSAGE_BYTES_MAX:
        raise FormatError(f"{what}: expected at most {MESSAGE_BYTES_MAX} bytes, got {len(data)}")
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{what}: {error}") from error


def directory_name(name: SoftwareName) -> str:
    """Return the name of a software's directories: `+` is in no ID, so two softwares never share one."""
    return f"{name.operator}+{name.software}"
