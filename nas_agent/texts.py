"""The words a person reads for each event: causes and next steps, sizes and times in plain units."""

from __future__ import annotations

import functools
import time
from typing import Final

from nas_agent.events import (
    AnyEvent,
    BackupEvent,
    DigitsEvent,
    DoneEvent,
    FailureEvent,
    GatewayEvent,
    GenerationEvent,
    KeysEvent,
    ProblemEvent,
    ProgressEvent,
    RestoreEvent,
    StatusEvent,
    WaitingEvent,
)

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def show_bytes(size_bytes: int) -> str:
    """Return a size for people: `512 B`, `1.4 MiB`."""
    value = float(size_bytes)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            return f"{size_bytes} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def show_duration(seconds: float) -> str:
    """Return a duration for people: `42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@functools.singledispatch
def text_of(event: AnyEvent) -> str:
    """Return the line or lines that show an event to a person."""
    raise TypeError(f"no text for {type(event).__name__}")


@text_of.register
def _(event: WaitingEvent) -> str:
    return f"waiting {event.wait_s:.0f} s: {event.message} ({event.code})"


@text_of.register
def _(event: ProblemEvent) -> str:
    return f"{event.reason}: {event.path}: {event.detail}"


@text_of.register
def _(event: DigitsEvent) -> str:
    return (
        f"\n    {event.digits[:3]} {event.digits[3:]}\n\nOpen the gateway's page, compare these six digits, and approve "
        f"there only if they are the same.\nThey hold for {event.valid_for_s // 60} minutes."
    )


@text_of.register(BackupEvent)
@text_of.register(RestoreEvent)
@text_of.register(DoneEvent)
def _(event: BackupEvent | RestoreEvent | DoneEvent) -> str:
    return event.message


@text_of.register
def _(event: FailureEvent) -> str:
    return f"nas-agent: {event.message}"


_PHASES: Final = {
    "scan": "reading",
    "drain": "the gateway passes it on",
    "commit": "waiting for the receipt",
    "restore": "restoring",
    "verify": "verifying",
}


@text_of.register
def _(event: ProgressEvent) -> str:
    parts = [_PHASES.get(event.phase, event.phase)]
    if event.bytes_total:
        parts[0] += f" {100 * event.bytes_done // event.bytes_total} %"
        parts.append(f"{show_bytes(event.bytes_done)} of {show_bytes(event.bytes_total)}")
    else:
        parts.append(show_bytes(event.bytes_done))
    total = "" if event.files_total is None else f" of {event.files_total}"
    parts.append(f"{event.files_done}{total} files")
    if event.command == "backup":
        parts.append(f"{event.files_unchanged} unchanged")
        parts.append(f"sent {show_bytes(event.sent_bytes)}")
        if event.spooled_bytes:
            parts.append(f"on the gateway {show_bytes(event.spooled_bytes)}")
        parts.append(f"stored {show_bytes(event.stored_bytes)}")
    if event.problems:
        parts.append(f"{event.problems} problems")
    if event.eta_s is not None:
        parts.append(f"about {show_duration(event.eta_s)} left")
    return ", ".join(parts)


@text_of.register
def _(event: GenerationEvent) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(event.received_at))
    notes = [
        *(["incomplete"] if not event.complete else []),
        *(["in the trash"] if event.in_trash else []),
        event.device,
    ]
    note = f"  ({', '.join(notes)})" if notes else ""
    return (
        f"{event.sequence:>5}  {when}  {event.files:>9} files  {show_bytes(event.logical_bytes):>10}"
        f"  stored {show_bytes(event.stored_bytes):>10}  {event.generation}{note}"
    )


@text_of.register
def _(event: KeysEvent) -> str:
    return (
        f"contract             {event.contract}\n"
        f"contract fingerprint {event.contract_fingerprint}\n"
        f"device fingerprint   {event.device_fingerprint}\n"
        f"epoch                {event.epoch}\n"
        f"state directory      {event.state_directory}"
    )


@text_of.register
def _(event: StatusEvent) -> str:
    if event.state == "never":
        return f"{event.backup_set} → {event.target}: never backed up"
    text = f"{event.backup_set} → {event.target}: generation {event.sequence} is durable"
    if event.durable_at is not None:
        text += f" since {time.strftime('%Y-%m-%d %H:%M', time.localtime(event.durable_at))}"
    if event.sequence == 0:
        text = f"{event.backup_set} → {event.target}: no generation yet"
    if event.state == "unfinished":
        text += "; a run was interrupted, the next one goes on from there"
    if event.spooled_packs:
        text += f"; {event.spooled_packs} packs are on the gateway only"
    return text


@text_of.register
def _(event: GatewayEvent) -> str:
    enrolled = "enrolled at the service" if event.enrolled else "not enrolled at the service yet"
    return f"gateway {event.address}, certificate {event.certificate_sha256[:16]}…, {enrolled}"
