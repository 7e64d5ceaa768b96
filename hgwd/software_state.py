"""One software as this process sees it, and how people and the carrier are told about it."""

from __future__ import annotations

from typing import Final

import attrs

from hgwd.core.faults import SENTENCES, Fault
from hgwd.core.install import DuState, EuState, SoftwareRecord
from hgwd.core.restarts import RestartHistory
from wire.joint import SoftwareReport

TEXT_CHARS_MAX: Final = 200


@attrs.frozen
class Condition:
    """One thing that is not as it should be."""

    code: str
    severity: str
    text: str


@attrs.define
class SoftwareState:
    """One software as this process sees it: the record on flash and what runs."""

    record: SoftwareRecord
    eu: EuState = EuState.IDLE
    busy: bool = False
    runtime_fault: Fault | None = None
    runtime_cause: str = ""
    restarts: RestartHistory = attrs.field(factory=RestartHistory)
    restart_at_s: float = 0.0

    @property
    def fault(self) -> tuple[Fault, str] | None:
        """The fault to show: what is wrong now, else why the last package was refused."""
        if self.runtime_fault is not None:
            return self.runtime_fault, self.runtime_cause
        failure = self.record.failure
        return None if failure is None else (Fault(failure.fault), failure.cause)


def describe(state: SoftwareState) -> dict[str, object]:
    """Return the state for page, CLI and demo: plain JSON values."""
    record, current, fault = state.record, state.record.current, state.fault
    return {
        "software": record.software,
        "version": None if current is None else current.version,
        "release": None if current is None else current.release,
        "state": state_word(state),
        "du": record.du.value,
        "eu": state.eu.value,
        "floor": record.floor_release,
        "fault": None if fault is None else int(fault[0]),
        "cause": None if fault is None else fault[1],
    }


def faults_of(state: SoftwareState) -> list[Condition]:
    """Return the condition that a fault of this software is, if it has one."""
    if state.fault is None:
        return []
    fault, cause = state.fault
    text = f"{state.record.software}: {SENTENCES[fault]} ({cause})"
    return [Condition(f"software-{int(fault)}", "error", text)]


def software_report(state: SoftwareState) -> SoftwareReport:
    """Return the entry of a signed report."""
    current, fault = state.record.current, state.fault
    return SoftwareReport(
        software=state.record.software,
        version="" if current is None else current.version,
        release=0 if current is None else current.release,
        state=state_word(state),
        fault=None if fault is None else f"{int(fault[0])} {fault[1]}"[:TEXT_CHARS_MAX],
    )


def state_word(state: SoftwareState) -> str:
    """Return the one word of a report: the execution state while installed, else the deployment state."""
    if state.record.du is DuState.INSTALLED:
        return state.eu.value if state.eu is not EuState.IDLE else DuState.INSTALLED.value
    return state.record.du.value
