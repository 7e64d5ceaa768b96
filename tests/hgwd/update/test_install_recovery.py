"""The installer with a real launcher after things went wrong: cuts in a trial, crash loops, a launcher that died.

The records are written as a power cut would have left them; then `recover` and `supervise` have to cope.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import sample_package as sample
import trio

from hgwd.adapters.fetch import CarrierFetch
from hgwd.adapters.launcher import Launcher
from hgwd.adapters.metadata import MetadataStore
from hgwd.adapters.slots import SlotStore
from hgwd.core import install
from hgwd.core.faults import Fault
from hgwd.core.install import START_ATTEMPTS_MAX, DuState, EuState, SlotContent, SlotName, SoftwareRecord
from hgwd.installer import Installer
from hgwd.software_state import SoftwareState
from runtime.clock import SystemClock
from runtime.http_client import HttpClient
from runtime.logs import get_logger
from wire.director import SoftwareName

NAME = SoftwareName.parse("mimamori/sensor")
REPOSITORY = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: packages get users of their own")


@attrs.define
class Box:
    """One gateway's software directory and its launcher."""

    directory: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def software(self) -> Path:
        return self.directory / "software"

    def start_launcher(self) -> None:
        command = [sys.executable, "-m", "hgwd.launcher_main", "--socket", str(self.directory / "s")]
        command += ["--software-dir", str(self.software), "--state-dir", str(self.directory / "launcher")]
        self.process = subprocess.Popen(command, cwd=REPOSITORY)

    def stop_launcher(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(20)
        self.process = None

    def put(self, code: str, slot: SlotName, release: int, **changes: Any) -> SlotContent:
        sample.put_in_slot(self.software, code, slot, release=release, version=f"{release}.0", **changes)
        return SlotContent(
            target="t", version=f"{release}.0", release=release, floor=0, sha256=f"{release:064}"
        )

    def save(self, record: SoftwareRecord) -> None:
        store = SlotStore(self.software)
        (self.software / "records").mkdir(exist_ok=True)
        store.save(record)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    made.software.mkdir()
    made.start_launcher()
    while not (tmp_path / "s").exists():
        pass
    yield made
    made.stop_launcher()


@asynccontextmanager
async def installer(box: Box) -> AsyncIterator[Installer]:
    client = HttpClient("::1", 1)
    fetch = CarrierFetch(client, MetadataStore(box.directory / "metadata"), lambda _size, _kind: None)
    made = Installer(
        slots=SlotStore(box.software),
        launcher=Launcher(box.directory / "s"),
        fetch=fetch,
        clock=SystemClock(),
        log=get_logger("hgwd", stream=io.BytesIO()),
        pinned_image_root=b"",
        changed=lambda: None,
    )
    await made.open()
    yield made
    made.launcher.close()


async def until(state: SoftwareState, holds: Any, timeout_s: float = 15) -> None:
    with trio.move_on_after(timeout_s):
        while not holds(state):
            await trio.sleep(0.05)
        return
    raise AssertionError(state)


def on_trial(box: Box, code: str, attempts: int = 0) -> SoftwareRecord:
    """Release 1 committed in `a`, release 2 in `b` started `attempts` times when the power went."""
    old = box.put(sample.SLEEP, "a", 1)
    new = box.put(code, "b", 2)
    record = install.committed(
        install.attempt_counted(install.slot_filled(SoftwareRecord(software=NAME.text), old))
    )
    record = install.slot_filled(record, new)
    for _ in range(attempts):
        record = install.attempt_counted(record)
    return record


async def test_a_trial_cut_by_a_power_loss_is_taken_up_and_committed(box: Box) -> None:
    box.save(on_trial(box, sample.SLEEP, attempts=1))
    async with installer(box) as it:
        await it.recover()
        state = it.states[NAME]
        assert (state.record.active, state.eu, state.record.trial) == ("b", EuState.ACTIVE, None)
        assert SlotStore(box.software).open()[NAME] == state.record


async def test_a_package_that_never_survives_its_start_falls_back_to_the_old_one(box: Box) -> None:
    box.save(on_trial(box, sample.CRASH))
    async with installer(box) as it:
        await it.recover()
        state = it.states[NAME]
        process = await it.launcher.inspect(NAME)
    assert (state.record.active, state.record.du, state.eu) == ("a", DuState.INSTALLED, EuState.ACTIVE)
    assert state.record.failure is not None
    assert state.record.failure.fault == Fault.START_FAILED
    assert (process.state, process.slot) == ("running", "a")
    assert not (box.software / "slots" / "mimamori+sensor" / "b").exists()


async def test_a_package_that_takes_the_machine_down_is_not_started_a_fourth_time(box: Box) -> None:
    box.save(on_trial(box, sample.SLEEP, attempts=START_ATTEMPTS_MAX))
    async with installer(box) as it:
        await it.recover()
        state = it.states[NAME]
    assert state.record.active == "a"
    assert state.record.failure is not None


async def test_a_package_over_its_memory_cap_fails_its_trial_by_that_name(box: Box) -> None:
    box.save(on_trial(box, sample.MEMORY_HOG))
    async with installer(box) as it:
        await it.recover()
        failure = it.states[NAME].record.failure
    assert failure is not None
    assert failure.fault == Fault.MEMORY_EXCEEDED


async def test_a_removal_cut_in_the_middle_is_finished(box: Box) -> None:
    record = install.removing(on_trial(box, sample.SLEEP))
    box.save(record)
    async with installer(box) as it:
        await it.recover()
        state = it.states[NAME]
    assert state.record == SoftwareRecord(software=NAME.text)
    assert list((box.software / "slots").iterdir()) == []


async def test_what_ran_goes_on_when_hgwd_comes_back(box: Box) -> None:
    box.save(on_trial(box, sample.SLEEP, attempts=1))
    async with installer(box) as it:
        await it.recover()
        before = await it.launcher.inspect(NAME)
    async with installer(box) as it:
        await it.recover()
        after = await it.launcher.inspect(NAME)
    assert before.pid == after.pid


async def test_a_launcher_that_died_is_missed_and_its_software_started_again(box: Box) -> None:
    box.save(on_trial(box, sample.SLEEP, attempts=1))
    async with installer(box) as it, trio.open_nursery() as nursery:
        await it.recover()
        nursery.start_soon(it.supervise)
        state = it.states[NAME]
        box.stop_launcher(signal.SIGKILL)
        await until(state, lambda s: s.runtime_fault is Fault.LAUNCHER_DOWN)
        box.start_launcher()
        await until(state, lambda s: s.eu is EuState.ACTIVE and s.fault is None)
        assert (await it.launcher.inspect(NAME)).state == "running"
        nursery.cancel_scope.cancel()


async def test_a_software_that_ends_is_started_again(box: Box) -> None:
    box.save(on_trial(box, sample.SLEEP, attempts=1))
    async with installer(box) as it, trio.open_nursery() as nursery:
        await it.recover()
        nursery.start_soon(it.supervise)
        first = await it.launcher.inspect(NAME)
        await it.launcher.stop(NAME)
        await until(it.states[NAME], lambda s: s.eu is EuState.RESTARTING)
        await until(it.states[NAME], lambda s: s.eu is EuState.ACTIVE)
        assert (await it.launcher.inspect(NAME)).pid != first.pid
        nursery.cancel_scope.cancel()
