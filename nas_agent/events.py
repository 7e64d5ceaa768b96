r"""What `--json` prints, one object per line; the schema is docs/internals/nas-agent-events.schema.json.

Names of files are bytes: `path` shows them with `\xNN` for what is not UTF-8, `path_base64` is exact. Sizes are bytes,
times unix seconds unless the name says otherwise. Every run ends with exactly one event that has an `exit_code`.
"""

from __future__ import annotations

import base64
from typing import Any, Literal

import msgspec

from nas_agent.ports import Problem

ExitCode = Literal[0, 1, 2, 3, 4]


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="event"):
    """Base of all events."""


class ProgressEvent(Event, frozen=True, kw_only=True, tag="progress"):
    """At least once a second. `eta_s` and the totals are null until they are known.

    `files_unchanged` were skipped, for nothing about them changed; `spooled_bytes` are on the gateway,
    `stored_bytes` at the service (or in the directory).
    """

    command: str
    phase: str
    elapsed_s: float
    eta_s: float | None
    files_total: int | None
    files_done: int
    files_unchanged: int
    bytes_total: int | None
    bytes_done: int
    sent_bytes: int
    spooled_bytes: int
    stored_bytes: int
    problems: int


class WaitingEvent(Event, frozen=True, kw_only=True, tag="waiting"):
    """The other side said "not now"; the run goes on by itself after `wait_s`."""

    code: str
    message: str
    wait_s: float


class ProblemEvent(Event, frozen=True, kw_only=True, tag="problem"):
    """One path that could not be backed up, restored or verified as it is; the rest goes on."""

    path: str
    path_base64: str
    reason: str
    detail: str


class DigitsEvent(Event, frozen=True, kw_only=True, tag="digits"):
    """Compare with the gateway's page, then approve there."""

    digits: str
    valid_for_s: int


class BackupEvent(Event, frozen=True, kw_only=True, tag="backup"):
    """End of `backup`. `state`: `durable` = backed up, receipt verified; `spooled` = on the gateway only."""

    exit_code: ExitCode
    state: Literal["durable", "spooled", "refused"]
    message: str
    target: str
    backup_set: str
    generation: str | None
    sequence: int
    root_sha256: str | None
    complete: bool
    files: int
    files_unchanged: int
    logical_bytes: int
    read_bytes: int
    sent_bytes: int
    packs: int
    problems: int
    elapsed_s: float


class RestoreEvent(Event, frozen=True, kw_only=True, tag="restore"):
    """End of `restore` and `verify` (`target` is then null)."""

    exit_code: ExitCode
    message: str
    command: Literal["restore", "verify"]
    generation: str
    sequence: int
    target: str | None
    files: int
    restored_bytes: int
    problems: int
    elapsed_s: float


class GenerationEvent(Event, frozen=True, kw_only=True, tag="generation"):
    """One line of `list`."""

    generation: str
    sequence: int
    received_at: int
    keep_until: int
    files: int
    logical_bytes: int
    stored_bytes: int
    complete: bool
    in_trash: bool
    device: str


class DoneEvent(Event, frozen=True, kw_only=True, tag="done"):
    """End of a command that has no result of its own kind."""

    exit_code: ExitCode
    message: str


class KeysEvent(Event, frozen=True, kw_only=True, tag="keys"):
    """Public facts about the keys of this device (`init`, `key show`)."""

    contract: str
    contract_fingerprint: str
    device_fingerprint: str
    device_key: str
    epoch: str
    state_directory: str


class StatusEvent(Event, frozen=True, kw_only=True, tag="status"):
    """One backup set at one target, as this NAS remembers it (`status`)."""

    backup_set: str
    target: str
    state: Literal["durable", "unfinished", "never"]
    sequence: int
    generation: str | None
    root_sha256: str | None
    durable_at: int | None
    spooled_packs: int


class GatewayEvent(Event, frozen=True, kw_only=True, tag="gateway"):
    """The paired gateway (`status`, `pair`)."""

    address: str
    certificate_sha256: str
    enrolled: bool
    service_root: str | None


class FailureEvent(Event, frozen=True, kw_only=True, tag="failure"):
    """The run could not do what was asked: `code` for programs, `message` with cause and what to do."""

    exit_code: ExitCode
    code: str
    message: str


AnyEvent = (
    ProgressEvent
    | WaitingEvent
    | ProblemEvent
    | DigitsEvent
    | BackupEvent
    | RestoreEvent
    | GenerationEvent
    | DoneEvent
    | KeysEvent
    | StatusEvent
    | GatewayEvent
    | FailureEvent
)


def show_path(path: bytes) -> str:
    r"""Return a path for people: UTF-8 where it is, `\xNN` where not, control characters escaped."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text) or "."


def problem_event(problem: Problem) -> ProblemEvent:
    """Return the event of a problem."""
    return ProblemEvent(
        path=show_path(problem.path),
        path_base64=base64.b64encode(problem.path).decode(),
        reason=problem.reason,
        detail=problem.detail,
    )


def event_schema() -> dict[str, Any]:
    """Return the JSON schema of one line."""
    schema = msgspec.json.schema(AnyEvent)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of nas-agent --json",
        **schema,
    }
