"""Carries out what the carrier wants: install, try, commit or fall back, remove; and keeps running what is committed.

Rules
- The order of writes is `core/install.py`'s; each record is on flash before the step it announces.
- A refusal or a failure leaves the committed software running; the reason goes into the record and the status.
- One software at a time is changed; the others keep running and being watched.
- With the launcher gone nothing is started and nothing is lost.

It does not poll, enrol or report (update_service.py) and decides nothing about trust (core/update*.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import msgspec
import trio

from hgwd.adapters.fetch import CarrierFetch
from hgwd.adapters.launcher import Launcher, LauncherDownError
from hgwd.adapters.slots import SlotStore
from hgwd.core import install
from hgwd.core.faults import ATTACKS, FAULT_OF_CAUSE, SENTENCES, Fault
from hgwd.core.install import DuState, EuState, SlotContent, SlotName, SoftwareRecord
from hgwd.core.launch import Declined, Process
from hgwd.core.update import HASH, Installable, check_manifest, decide_install, entry_target, in_window
from hgwd.core.update_director import DirectorDocument, GatewayIdentity
from hgwd.core.update_images import ImageRepository
from hgwd.core.update_types import Cause, RefusedError
from hgwd.errors import CorruptStateError
from hgwd.software_state import SoftwareState
from hgwd.trial import TrialFailedError, soak, start_slot, wait_healthy
from runtime.clock import Clock
from runtime.errors import RemoteError, Unavailable
from runtime.logs import Logger
from wire.director import DirectorSoftware, SoftwareName
from wire.errors import WireError

SUPERVISE_S: Final = 2.0
STOP_WAIT_S: Final = 15.0
STOP_CHECK_S: Final = 0.25


@attrs.define
class Installer:
    """All softwares of this gateway. `changed` is called after every change that a report should tell."""

    slots: SlotStore
    launcher: Launcher
    fetch: CarrierFetch
    clock: Clock
    log: Logger
    pinned_image_root: bytes
    changed: Callable[[], None]
    states: dict[SoftwareName, SoftwareState] = attrs.field(factory=dict)
    attack: tuple[Cause, str] | None = None
    document_version: int = 0

    # -- start -----------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Read the records. Raises `CorruptStateError`."""
        records = await trio.to_thread.run_sync(self.slots.open)
        self.states = {name: SoftwareState(record) for name, record in records.items()}

    async def recover(self) -> None:
        """Finish or take back what a power cut interrupted, and start what is committed."""
        for name, state in list(self.states.items()):
            with self._changing(state):
                try:
                    await self._recover_one(name, state)
                except LauncherDownError as error:
                    self._set_fault(state, Fault.LAUNCHER_DOWN, str(error))

    async def _recover_one(self, name: SoftwareName, state: SoftwareState) -> None:
        match install.recover(state.record):
            case install.FinishRemoval():
                await self._remove(name, state)
            case install.FallBack(fault, cause):
                await self._fall_back(name, state, fault, cause)
            case install.Start(slot, trial=True):
                self.log.info("trial_resumed", software=name.text, slot=slot)
                await self._try(name, state)
            case install.Start(slot, trial=False):
                await self._run_committed(name, state, slot)
            case _:
                pass

    # -- obeying a document ----------------------------------------------------------------------------------

    async def obey(self, document: DirectorDocument, identity: GatewayIdentity, now_s: float) -> None:
        """Bring every software to what `document` says, as far as it is allowed and possible now.

        Raises Unavailable and RemoteError if the line broke: the next poll goes on.
        """
        self.document_version = document.version
        images: ImageRepository | None = None
        for entry in document.body.software:
            name = SoftwareName.parse(entry.software)
            state = self.states.setdefault(name, SoftwareState(SoftwareRecord(software=name.text)))
            if entry.action == "remove":
                await self._remove_if_there(name, state)
                continue
            if entry.action == "hold":
                continue
            await self._forget_failure_if_current(state, _wanted_sha256(entry, document))
            if self._is_wanted(state, entry, document, now_s):
                try:
                    images = images or await self._open_images(now_s)
                    wanted = await self._agree(state, entry, document, images, identity)
                    await self._install(name, state, wanted, identity)
                except RefusedError as error:
                    await self._refuse(name, state, entry, document, error)

    def _is_wanted(
        self, state: SoftwareState, entry: DirectorSoftware, document: DirectorDocument, now_s: float
    ) -> bool:
        sha256 = _wanted_sha256(entry, document)
        wanted = install.should_try(state.record, sha256, document_version=document.version)
        return wanted and document.expires_s > now_s and in_window(entry.window, now_s)

    async def _forget_failure_if_current(self, state: SoftwareState, sha256: str) -> None:
        """The carrier asks for what runs: why something else failed is history."""
        current = state.record.current
        if state.record.failure is not None and current is not None and current.sha256 == sha256:
            await self._save(state, msgspec.structs.replace(state.record, failure=None))
            self.changed()

    async def _open_images(self, now_s: float) -> ImageRepository:
        images = ImageRepository(self.pinned_image_root, now_s)
        await self.fetch.drive(images.refresh())
        return images

    async def _agree(
        self,
        state: SoftwareState,
        entry: DirectorSoftware,
        document: DirectorDocument,
        images: ImageRepository,
        identity: GatewayIdentity,
    ) -> Installable:
        director = entry_target(document, entry)
        image = await self.fetch.drive(images.find_target(director.path))
        return decide_install(
            entry,
            director,
            image,
            url_path=images.target_url_path(image) if image is not None else "",
            identity=identity,
            floor_release=state.record.floor_release,
        )

    async def _install(
        self, name: SoftwareName, state: SoftwareState, wanted: Installable, identity: GatewayIdentity
    ) -> None:
        with self._changing(state):
            try:
                barriers = await self.launcher.barriers()
                if barriers.missing:
                    listed = "; ".join(f"{barrier}: {why}" for barrier, why in barriers.missing.items())
                    await self._note(state, wanted.sha256, Fault.BARRIER_MISSING, listed)
                    return
                await self._fill(name, state, wanted, identity)
                await self._try(name, state)
            except LauncherDownError as error:
                await self._note(state, wanted.sha256, Fault.LAUNCHER_DOWN, str(error))

    async def _fill(
        self, name: SoftwareName, state: SoftwareState, wanted: Installable, identity: GatewayIdentity
    ) -> None:
        if state.record.trial is not None:  # an interrupted earlier trial gives way to the new wish
            await self._fall_back(name, state, Fault.START_FAILED, "replaced by a newer wish")
        part = self.slots.part_path(name)
        await self._download(state, wanted, part)
        check = partial(check_manifest, wanted=wanted, identity=identity)
        slot = state.record.spare
        try:
            await trio.to_thread.run_sync(self.slots.fill, name, slot, part, check)
        except WireError as error:
            raise RefusedError(Cause.WRONG_PACKAGE, f"{wanted.path.text}: {error}") from error
        finally:
            await trio.to_thread.run_sync(self.slots.discard_part, name)
        content = SlotContent(
            target=wanted.path.text,
            version=wanted.path.version.text,
            release=wanted.custom.release,
            floor=wanted.custom.floor,
            sha256=wanted.sha256,
        )
        await self._save(state, install.slot_filled(state.record, content))
        self.log.info("slot_filled", software=name.text, slot=slot, version=content.version)

    async def _download(self, state: SoftwareState, wanted: Installable, part: Path) -> None:
        """Fetch the package; a line that broke is told like every other reason, and not counted."""
        try:
            await self.fetch.download(wanted, part)
        except (Unavailable, RemoteError) as error:
            record = install.interrupted(
                state.record,
                wanted.sha256,
                Fault.DOWNLOAD_FAILED,
                str(error),
                document_version=self.document_version,
            )
            if record != state.record:
                await self._save(state, record)
                self.changed()
            raise

    # -- trial -----------------------------------------------------------------------------------------------

    async def _try(self, name: SoftwareName, state: SoftwareState) -> None:
        """Start the slot on trial and commit it, or fall back."""
        trial = state.record.trial
        if trial is None:
            return
        await self._save(state, install.attempt_counted(state.record))
        try:
            health = self.slots.read_manifest(name, trial.slot).health
            await self._stop(name, state)
            state.eu = EuState.STARTING
            await start_slot(self.launcher, name, trial.slot)
            await wait_healthy(self.launcher, name, health)
            await soak(self.launcher, name, health)
        except TrialFailedError as error:
            await self._fall_back(name, state, error.fault, error.cause)
        except CorruptStateError as error:
            await self._fall_back(name, state, Fault.CORRUPT, str(error))
        except LauncherDownError as error:
            await self._fall_back(name, state, Fault.LAUNCHER_DOWN, str(error))
        else:
            await self._save(state, install.committed(state.record))
            self._clear_fault(state)
            state.eu = EuState.ACTIVE
            self.log.info("committed", software=name.text, slot=trial.slot)
            self.changed()

    async def _fall_back(self, name: SoftwareName, state: SoftwareState, fault: Fault, cause: str) -> None:
        trial = state.record.trial
        if trial is None:
            return
        final = fault is not Fault.LAUNCHER_DOWN
        record = install.fell_back(
            state.record, fault, cause, document_version=self.document_version, final=final
        )
        await self._save(state, record)
        self.log.warning("fell_back", software=name.text, slot=trial.slot, fault=int(fault), cause=cause)
        try:
            await self._stop(name, state)
            if record.active is not None:
                await self._run_committed(name, state, record.active)
        except LauncherDownError as error:
            self._set_fault(state, Fault.LAUNCHER_DOWN, str(error))
        await trio.to_thread.run_sync(self.slots.clear_slot, name, trial.slot)
        self.changed()

    # -- running and removing --------------------------------------------------------------------------------

    async def _run_committed(self, name: SoftwareName, state: SoftwareState, slot: SlotName) -> None:
        state.eu = EuState.STARTING
        process = await self.launcher.inspect(name)
        if process.state == "running" and process.slot == slot:
            state.eu = EuState.ACTIVE
            self._clear_fault(state)
            return
        await self._stop(name, state)
        answer = await self.launcher.start(name, slot)
        if isinstance(answer, Declined):
            self._set_fault(state, Fault(answer.fault), answer.message)
            return
        state.eu = EuState.ACTIVE
        self._clear_fault(state)

    async def _stop(self, name: SoftwareName, state: SoftwareState) -> None:
        process = await self.launcher.inspect(name)
        if process.state in {"none", "exited"}:
            state.eu = EuState.IDLE
            return
        state.eu = EuState.STOPPING
        await self.launcher.stop(name)
        with trio.move_on_after(STOP_WAIT_S):
            while True:
                process = await self.launcher.inspect(name)
                if process.state in {"none", "exited"}:
                    state.eu = EuState.IDLE
                    return
                await trio.sleep(STOP_CHECK_S)
        raise LauncherDownError(f"{name.text} did not end within {STOP_WAIT_S:.0f} s")

    async def _remove_if_there(self, name: SoftwareName, state: SoftwareState) -> None:
        record = state.record
        if record.du is DuState.UNINSTALLED and not record.slots and record.failure is None:
            return
        with self._changing(state):
            try:
                await self._remove(name, state)
            except LauncherDownError as error:
                self._set_fault(state, Fault.LAUNCHER_DOWN, str(error))

    async def _remove(self, name: SoftwareName, state: SoftwareState) -> None:
        await self._save(state, install.removing(state.record))
        await self._stop(name, state)
        if not await self.launcher.forget(name):
            raise LauncherDownError(f"{name.text}: its data cannot be removed yet")
        await trio.to_thread.run_sync(self.slots.remove, name)
        await self._save(state, install.removed(state.record))
        self._clear_fault(state)
        self.log.info("removed", software=name.text)
        self.changed()

    # -- watching --------------------------------------------------------------------------------------------

    async def supervise(self) -> None:
        """Watch what is committed for ever: start again what ended, with backoff, until it is a crash loop."""
        while True:
            await trio.sleep(SUPERVISE_S)
            for name, state in list(self.states.items()):
                if state.busy or state.record.active is None or state.record.trial is not None:
                    continue
                try:
                    await self._watch(name, state, state.record.active)
                except LauncherDownError as error:
                    if not state.busy:
                        self._set_fault(state, Fault.LAUNCHER_DOWN, str(error))

    async def _watch(self, name: SoftwareName, state: SoftwareState, slot: SlotName) -> None:
        process = await self.launcher.inspect(name)
        if state.busy:
            return  # a change began while the launcher answered
        if process.state == "running":
            state.eu = EuState.ACTIVE
            if state.runtime_fault is Fault.LAUNCHER_DOWN:
                self._clear_fault(state)
            return
        now_s = self.clock.monotonic_s()
        if state.eu is EuState.ACTIVE:
            self._note_end(name, state, slot, process, now_s)
        restart = state.eu is EuState.RESTARTING or state.runtime_fault is Fault.LAUNCHER_DOWN
        if restart and now_s >= state.restart_at_s:
            with self._changing(state):
                await self._run_committed(name, state, slot)

    def _note_end(
        self, name: SoftwareName, state: SoftwareState, slot: SlotName, process: Process, now_s: float
    ) -> None:
        if process.exit_code == 0 and self.slots.read_manifest(name, slot).health.kind == "exit":
            state.eu = EuState.IDLE
            return
        state.restarts = state.restarts.after_end(now_s)
        self.log.warning("software_ended", software=name.text, exit_code=process.exit_code)
        if state.restarts.is_crash_loop:
            state.eu = EuState.IDLE
            self._set_fault(state, Fault.CRASH_LOOP, f"last end with {process.exit_code}")
            return
        state.eu = EuState.RESTARTING
        state.restart_at_s = now_s + state.restarts.delay_s

    # -- reasons ---------------------------------------------------------------------------------------------

    async def _refuse(
        self,
        name: SoftwareName,
        state: SoftwareState,
        entry: DirectorSoftware,
        document: DirectorDocument,
        error: RefusedError,
    ) -> None:
        if error.cause in ATTACKS:
            self.attack = (error.cause, error.message)
        self.log.warning("refused", software=name.text, cause=error.cause.value, detail=error.message)
        await self._note(state, _wanted_sha256(entry, document), FAULT_OF_CAUSE[error.cause], str(error))

    async def _note(self, state: SoftwareState, sha256: str, fault: Fault, cause: str) -> None:
        record = install.refused(
            state.record, sha256, fault, cause, document_version=self.document_version, final=False
        )
        if record != state.record:
            await self._save(state, record)
            self.changed()

    def _set_fault(self, state: SoftwareState, fault: Fault, cause: str) -> None:
        state.eu = EuState.IDLE
        if (state.runtime_fault, state.runtime_cause) != (fault, cause):
            state.runtime_fault, state.runtime_cause = fault, cause
            self.log.warning(
                "fault", software=state.record.software, fault=int(fault), sentence=SENTENCES[fault]
            )
            self.changed()

    def _clear_fault(self, state: SoftwareState) -> None:
        state.runtime_fault, state.runtime_cause = None, ""

    async def _save(self, state: SoftwareState, record: SoftwareRecord) -> None:
        await trio.to_thread.run_sync(self.slots.save, record)
        state.record = record

    @contextmanager
    def _changing(self, state: SoftwareState) -> Iterator[None]:
        state.busy = True
        try:
            yield
        finally:
            state.busy = False


def _wanted_sha256(entry: DirectorSoftware, document: DirectorDocument) -> str:
    target = document.targets.get(entry.target or "")
    return "" if target is None else target.hashes.get(HASH, "")
