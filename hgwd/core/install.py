"""Slots of one software: a pure state machine over one record that is replaced atomically (design §5.11, JNT-51).

Rules
- Two slots, `a` and `b`. `active` is the committed one; a new package only ever goes into the other one.
- The order is: fill the spare slot -> count the attempt -> start -> healthy for the soak -> commit. The record is
  written between each two, so a power cut leaves a record that `recover` continues or takes back.
- The attempt is counted *before* the start: a package that kills the machine is tried `START_ATTEMPTS_MAX` times.
- Commit moves `active` and raises the floor in the same write; a fall-back never moves the floor, so a health
  rollback to the known good release stays possible.
- A package that failed here is remembered by hash and not tried again until the carrier sends a new document.
- Removal leaves the floor (a number) behind and nothing else: without it "remove, then install an old one" would be a downgrade.

Pure: events in, record out. It does not touch files (adapters/slots.py) or processes (adapters/launcher.py).
"""

from __future__ import annotations

import enum
from typing import Annotated, Final, Literal

import attrs
import msgspec

from hgwd.core.faults import Fault

SlotName = Literal["a", "b"]
START_ATTEMPTS_MAX: Final = 3
DOWNLOAD_ATTEMPTS_MAX: Final = 3
CAUSE_CHARS_MAX: Final = 300


class DuState(enum.StrEnum):
    """State of a deployment unit, in USP's words."""

    INSTALLING = "Installing"
    INSTALLED = "Installed"
    UPDATING = "Updating"
    UNINSTALLING = "Uninstalling"
    UNINSTALLED = "Uninstalled"


class EuState(enum.StrEnum):
    """State of an execution unit, in USP's words; lives in memory only."""

    IDLE = "Idle"
    STARTING = "Starting"
    ACTIVE = "Active"
    STOPPING = "Stopping"
    RESTARTING = "Restarting"


class DuEvent(enum.StrEnum):
    """What can happen to a deployment unit."""

    FILL = "fill"
    TRY = "try"
    COMMIT = "commit"
    FALL_BACK = "fall-back"
    REMOVE = "remove"
    REMOVED = "removed"


_S = DuState
TRANSITIONS: Final[dict[tuple[DuState, DuEvent], DuState]] = {
    (_S.UNINSTALLED, DuEvent.FILL): _S.INSTALLING,
    (_S.INSTALLED, DuEvent.FILL): _S.UPDATING,
    (_S.INSTALLING, DuEvent.FILL): _S.INSTALLING,
    (_S.UPDATING, DuEvent.FILL): _S.UPDATING,
    (_S.INSTALLING, DuEvent.TRY): _S.INSTALLING,
    (_S.UPDATING, DuEvent.TRY): _S.UPDATING,
    (_S.INSTALLING, DuEvent.COMMIT): _S.INSTALLED,
    (_S.UPDATING, DuEvent.COMMIT): _S.INSTALLED,
    (_S.INSTALLING, DuEvent.FALL_BACK): _S.UNINSTALLED,
    (_S.UPDATING, DuEvent.FALL_BACK): _S.INSTALLED,
    (_S.INSTALLING, DuEvent.REMOVE): _S.UNINSTALLING,
    (_S.INSTALLED, DuEvent.REMOVE): _S.UNINSTALLING,
    (_S.UPDATING, DuEvent.REMOVE): _S.UNINSTALLING,
    (_S.UNINSTALLED, DuEvent.REMOVE): _S.UNINSTALLING,
    (_S.UNINSTALLING, DuEvent.REMOVE): _S.UNINSTALLING,
    (_S.UNINSTALLING, DuEvent.REMOVED): _S.UNINSTALLED,
}
"""Every allowed move; a pair that is not here is USP fault 7229."""


class SlotContent(msgspec.Struct, frozen=True, kw_only=True):
    """What is unpacked in a slot."""

    target: str
    version: str
    release: int
    floor: int
    sha256: str


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """The slot on trial and how often it was started."""

    slot: SlotName
    attempts: Annotated[int, msgspec.Meta(ge=0)] = 0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The last package that failed here; `document_version` is the director document that asked for it."""

    sha256: str
    fault: int
    cause: str
    attempts: int
    document_version: int
    final: bool


class SoftwareRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All that a gateway remembers of one software. `software` is `<operator>/<software>`."""

    v: int = 1
    software: str
    du: DuState = DuState.UNINSTALLED
    active: SlotName | None = None
    slots: dict[SlotName, SlotContent] = {}
    trial: Trial | None = None
    floor_release: int = 0
    failure: Failure | None = None

    @property
    def spare(self) -> SlotName:
        """The slot a new package goes into."""
        return "b" if self.active == "a" else "a"

    @property
    def current(self) -> SlotContent | None:
        """What is committed."""
        return None if self.active is None else self.slots.get(self.active)


class InvalidDuStateError(Exception):
    """An event that the state does not allow (USP 7229): our own mistake, never a peer's."""


@attrs.frozen
class Start:
    """Run what stands in `slot`; `trial` says that it still has to prove itself."""

    slot: SlotName
    trial: bool


@attrs.frozen
class FallBack:
    """Take the trial back and run the committed slot, if any."""

    fault: Fault
    cause: str


@attrs.frozen
class FinishRemoval:
    """Go on removing."""


@attrs.frozen
class Nothing:
    """Nothing runs and nothing has to."""


Recovery = Start | FallBack | FinishRemoval | Nothing


def next_state(state: DuState, event: DuEvent) -> DuState:
    """Return the state after `event`. Raises `InvalidDuStateError` (7229)."""
    found = TRANSITIONS.get((state, event))
    if found is None:
        raise InvalidDuStateError(f"{event} in state {state}")
    return found


def slot_filled(record: SoftwareRecord, content: SlotContent) -> SoftwareRecord:
    """The spare slot holds a complete, verified, fsynced package; nothing was started."""
    slot = record.spare
    return msgspec.structs.replace(
        record,
        du=next_state(record.du, DuEvent.FILL),
        slots={**record.slots, slot: content},
        trial=Trial(slot=slot),
    )


def attempt_counted(record: SoftwareRecord) -> SoftwareRecord:
    """One more start of the trial is about to happen; write this record before starting."""
    trial = _trial(record)
    return msgspec.structs.replace(
        record,
        du=next_state(record.du, DuEvent.TRY),
        trial=Trial(slot=trial.slot, attempts=trial.attempts + 1),
    )


def committed(record: SoftwareRecord) -> SoftwareRecord:
    """The trial was healthy to the end of its soak: it is the software from now on, and its floor holds."""
    trial = _trial(record)
    content = record.slots[trial.slot]
    return msgspec.structs.replace(
        record,
        du=next_state(record.du, DuEvent.COMMIT),
        active=trial.slot,
        trial=None,
        floor_release=max(record.floor_release, content.floor),
        failure=None,
    )


def fell_back(
    record: SoftwareRecord, fault: Fault, cause: str, *, document_version: int, final: bool = True
) -> SoftwareRecord:
    """The trial failed: its slot is empty again, the committed slot (if any) is what runs, the floor stays."""
    trial = _trial(record)
    failed = record.slots[trial.slot]
    return msgspec.structs.replace(
        record,
        du=next_state(record.du, DuEvent.FALL_BACK),
        slots={slot: content for slot, content in record.slots.items() if slot != trial.slot},
        trial=None,
        failure=Failure(
            sha256=failed.sha256,
            fault=fault,
            cause=cause[:CAUSE_CHARS_MAX],
            attempts=trial.attempts,
            document_version=document_version,
            final=final,
        ),
    )


def refused(
    record: SoftwareRecord, sha256: str, fault: Fault, cause: str, *, document_version: int, final: bool
) -> SoftwareRecord:
    """A package was refused before it reached a slot: only the reason changes. `final`: not worth another try."""
    earlier = record.failure
    same = earlier is not None and (earlier.sha256, earlier.document_version) == (sha256, document_version)
    attempts = earlier.attempts + 1 if same and earlier is not None else 1
    failure = Failure(
        sha256=sha256,
        fault=fault,
        cause=cause[:CAUSE_CHARS_MAX],
        attempts=attempts,
        document_version=document_version,
        final=final or attempts >= DOWNLOAD_ATTEMPTS_MAX,
    )
    return msgspec.structs.replace(record, failure=failure)


def interrupted(
    record: SoftwareRecord, sha256: str, fault: Fault, cause: str, *, document_version: int
) -> SoftwareRecord:
    """The line broke while a package came: only the reason changes, and the attempt does not count."""
    earlier = record.failure
    same = earlier is not None and (earlier.sha256, earlier.document_version) == (sha256, document_version)
    failure = Failure(
        sha256=sha256,
        fault=fault,
        cause=cause[:CAUSE_CHARS_MAX],
        attempts=earlier.attempts if same and earlier is not None else 0,
        document_version=document_version,
        final=False,
    )
    return msgspec.structs.replace(record, failure=failure)


def removing(record: SoftwareRecord) -> SoftwareRecord:
    """Removal was ordered; from here on it is finished even across a power cut."""
    return msgspec.structs.replace(record, du=next_state(record.du, DuEvent.REMOVE), trial=None)


def removed(record: SoftwareRecord) -> SoftwareRecord:
    """Files, data and processes are gone: only the floor is remembered."""
    return SoftwareRecord(
        software=record.software,
        du=next_state(record.du, DuEvent.REMOVED),
        floor_release=record.floor_release,
    )


def should_try(record: SoftwareRecord, sha256: str, *, document_version: int) -> bool:
    """Say whether a package is wanted here: not what is active, not what failed for good under this document."""
    if record.current is not None and record.current.sha256 == sha256:
        return False
    failure = record.failure
    if failure is None or failure.sha256 != sha256 or failure.document_version != document_version:
        return True
    return not failure.final


def recover(record: SoftwareRecord) -> Recovery:
    """Return what to do with a record found at start: the one place that says how a cut ends."""
    if record.du is DuState.UNINSTALLING:
        return FinishRemoval()
    if record.trial is not None:
        if record.trial.attempts >= START_ATTEMPTS_MAX:
            return FallBack(
                Fault.START_FAILED, f"{record.trial.attempts} starts, none of them stayed healthy"
            )
        return Start(record.trial.slot, trial=True)
    if record.active is not None:
        return Start(record.active, trial=False)
    return Nothing()


def _trial(record: SoftwareRecord) -> Trial:
    if record.trial is None:
        raise InvalidDuStateError(f"{record.software}: no slot is on trial")
    return record.trial
