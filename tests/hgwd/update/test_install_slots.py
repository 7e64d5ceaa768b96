"""Slots: the state machine by itself, then on flash with the power cut at every write (JNT-51, design §5.11).

Fault model: any write of `FlashFiles` may not happen, or happen in part (a file with half its bytes, a tree half
removed), and nothing after it happens. Survived: after recovery the software is the old release or the new one,
whole; another operator's software is never touched.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest
import sample_package as sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hgwd.adapters.slots import NewFile, RealFiles, SlotStore
from hgwd.core import install
from hgwd.core.faults import FAULT_OF_CAUSE, SENTENCES, Fault
from hgwd.core.install import (
    START_ATTEMPTS_MAX,
    TRANSITIONS,
    DuEvent,
    DuState,
    InvalidDuStateError,
    SlotContent,
    SoftwareRecord,
)
from hgwd.core.restarts import RESTARTS_MAX, WINDOW_S, RestartHistory
from hgwd.core.update_types import Cause
from hgwd.errors import CorruptStateError
from wire.director import SoftwareName
from wire.errors import FormatError
from wire.package import parse_manifest

NAME = SoftwareName.parse("mimamori/sensor")
OTHER = SoftwareName.parse("yubin-box/sensor")


def content(release: int, floor: int = 0) -> SlotContent:
    sha256 = hashlib.sha256(b"%d" % release).hexdigest()
    return SlotContent(target="t", version=f"{release}.0", release=release, floor=floor, sha256=sha256)


def installed(release: int = 1, floor: int = 0) -> SoftwareRecord:
    record = install.slot_filled(SoftwareRecord(software=NAME.text), content(release, floor))
    return install.committed(install.attempt_counted(record))


# -- the state machine -------------------------------------------------------------------------------------------


def test_install_update_remove_in_uspss_words() -> None:
    record = SoftwareRecord(software=NAME.text)
    seen = [record.du]
    for step in (
        lambda r: install.slot_filled(r, content(1)), install.attempt_counted, install.committed,
        lambda r: install.slot_filled(r, content(2)), install.attempt_counted, install.committed,
        install.removing, install.removed,
    ):  # fmt: skip
        record = step(record)
        if record.du is not seen[-1]:
            seen.append(record.du)
    assert [state.value for state in seen] == [
        "Uninstalled", "Installing", "Installed", "Updating", "Installed", "Uninstalling", "Uninstalled",
    ]  # fmt: skip


@pytest.mark.parametrize(("state", "event"), list(itertools.product(DuState, DuEvent)))
def test_every_pair_of_state_and_event_is_decided(state: DuState, event: DuEvent) -> None:
    if (state, event) in TRANSITIONS:
        assert install.next_state(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(InvalidDuStateError):
            install.next_state(state, event)


def test_every_cause_has_a_fault_and_every_fault_a_sentence() -> None:
    assert set(FAULT_OF_CAUSE) == set(Cause)
    assert set(SENTENCES) == set(Fault)


def test_a_new_package_never_goes_into_the_committed_slot() -> None:
    record = installed()
    assert record.active == "a"
    assert install.slot_filled(record, content(2)).slots["a"] == content(1)


def test_commit_raises_the_floor_and_a_later_lower_floor_does_not_lower_it() -> None:
    record = installed(2, floor=2)
    assert record.floor_release == 2
    record = install.committed(install.attempt_counted(install.slot_filled(record, content(3, floor=1))))
    assert record.floor_release == 2


def test_a_failed_trial_never_moves_the_floor() -> None:
    record = install.attempt_counted(install.slot_filled(installed(1, floor=1), content(9, floor=9)))
    record = install.fell_back(record, Fault.HEALTH_FAILED, "deaf", document_version=7)
    assert record.floor_release == 1
    assert record.current == content(1, floor=1)
    assert record.du is DuState.INSTALLED


def test_removal_remembers_the_floor_and_nothing_else() -> None:
    record = install.removed(install.removing(installed(3, floor=3)))
    assert record == SoftwareRecord(software=NAME.text, floor_release=3)


def test_a_package_that_failed_is_tried_again_only_under_a_new_document() -> None:
    record = install.attempt_counted(install.slot_filled(installed(), content(2)))
    record = install.fell_back(record, Fault.START_FAILED, "ended with 3", document_version=7)
    assert not install.should_try(record, content(2).sha256, document_version=7)
    assert install.should_try(record, content(2).sha256, document_version=8)
    assert install.should_try(record, content(3).sha256, document_version=7)
    assert not install.should_try(record, content(1).sha256, document_version=8)


def test_a_download_that_fails_is_given_up_after_its_attempts() -> None:
    record = SoftwareRecord(software=NAME.text)
    for attempt in range(install.DOWNLOAD_ATTEMPTS_MAX):
        assert install.should_try(record, "x", document_version=1), attempt
        record = install.refused(record, "x", Fault.CORRUPT, "bad-hash", document_version=1, final=False)
    assert not install.should_try(record, "x", document_version=1)


def test_a_trial_that_takes_the_machine_down_each_time_is_taken_back() -> None:
    record = install.slot_filled(installed(), content(2))
    for _ in range(START_ATTEMPTS_MAX):
        assert install.recover(record) == install.Start("b", trial=True)
        record = install.attempt_counted(record)
    assert isinstance(install.recover(record), install.FallBack)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (SoftwareRecord(software=NAME.text), install.Nothing()),
        (installed(), install.Start("a", trial=False)),
        (install.removing(installed()), install.FinishRemoval()),
    ],
    ids=["nothing", "committed", "removal begun"],
)
def test_recovery(record: SoftwareRecord, expected: install.Recovery) -> None:
    assert install.recover(record) == expected


def test_restarts_back_off_and_end_in_a_crash_loop() -> None:
    history, delays = RestartHistory(), []
    for n in range(RESTARTS_MAX + 1):
        assert not history.is_crash_loop
        history = history.after_end(float(n))
        delays.append(history.delay_s)
    assert history.is_crash_loop
    assert delays[:4] == [1, 2, 4, 8]


def test_ends_far_apart_are_no_crash_loop() -> None:
    history = RestartHistory()
    for n in range(20):
        history = history.after_end(n * WINDOW_S)
    assert not history.is_crash_loop


# -- flash -------------------------------------------------------------------------------------------------------


class PowerCutError(Exception):
    """The machine went off."""


@attrs.define
class CuttingFiles(RealFiles):
    """`FlashFiles` that goes off at the `cut_at`-th write, having done half of it."""

    cut_at: int
    writes: int = 0
    dead: bool = False

    def _cut(self) -> bool:
        if self.dead:
            raise PowerCutError
        self.writes += 1
        self.dead = self.writes == self.cut_at
        return self.dead

    def write_atomic(self, path: Path, data: bytes) -> None:
        if self._cut():
            path.with_name(f".{path.name}.torn.tmp").write_bytes(data[: len(data) // 2])
            raise PowerCutError
        super().write_atomic(path, data)

    def new_file(self, path: Path, *, executable: bool) -> NewFile:
        if self._cut():
            raise PowerCutError
        return CuttingFile(self, super().new_file(path, executable=executable))

    def make_dir(self, path: Path) -> None:
        if self._cut():
            raise PowerCutError
        super().make_dir(path)

    def sync_dir(self, path: Path) -> None:
        if self._cut():
            raise PowerCutError
        super().sync_dir(path)

    def rename(self, source: Path, target: Path) -> None:
        if self._cut():
            raise PowerCutError
        super().rename(source, target)

    def remove_tree(self, path: Path) -> None:
        if self._cut():
            files = [item for item in path.rglob("*") if item.is_file()] if path.is_dir() else []
            for item in files[: len(files) // 2 + 1]:
                item.unlink()
            raise PowerCutError
        super().remove_tree(path)


@attrs.define
class CuttingFile:
    """A new file that may keep half of a write."""

    files: CuttingFiles
    real: NewFile

    def write(self, data: bytes) -> None:
        if self.files._cut():
            self.real.write(data[: len(data) // 2])
            raise PowerCutError
        self.real.write(data)

    def finish(self) -> None:
        if self.files._cut():
            raise PowerCutError
        self.real.finish()

    def abandon(self) -> None:
        self.real.abandon()


FILES = {"app.pyz": b"code", "static/a.txt": b"a" * 5000, "static/deep/b.txt": b"b"}


def package_file(directory: Path, release: int) -> Path:
    from wire.package_archive import PackageFile, build_package

    files = {path: PackageFile(data + b"%d" % release) for path, data in FILES.items()}
    path = directory / f"{release}.hgwpkg"
    path.write_bytes(build_package(sample.manifest(release=release, version=f"{release}.0"), files))
    return path


def found_release(root: Path, name: SoftwareName, slot: str) -> int:
    """The release in a slot, having checked that every file of it is whole."""
    home = root / "slots" / f"{name.operator}+{name.software}" / slot
    release = parse_manifest((home / "manifest.json").read_bytes()).release
    found = {str(path.relative_to(home / "files")): path.read_bytes() for path in home.rglob("*") if path.is_file()
             and path.name != "manifest.json"}  # fmt: skip
    assert found == {path: data + b"%d" % release for path, data in FILES.items()}
    return release


def update(store: SlotStore, record: SoftwareRecord, package: Path, release: int) -> None:
    store.fill(NAME, record.spare, package, lambda manifest: None)
    record = install.slot_filled(record, content(release))
    store.save(record)
    record = install.attempt_counted(record)
    store.save(record)
    store.save(install.committed(record))


def prepared(directory: Path) -> tuple[Path, SoftwareRecord]:
    """A gateway with release 1 committed, and another operator's software beside it."""
    root = directory / "software"
    store = SlotStore(root)
    store.open()
    for name in (NAME, OTHER):
        store.fill(name, "a", package_file(directory, 1), lambda manifest: None)
        record = attrs_replace(installed(), name)
        store.save(record)
    return root, attrs_replace(installed(), NAME)


def attrs_replace(record: SoftwareRecord, name: SoftwareName) -> SoftwareRecord:
    import msgspec

    return msgspec.structs.replace(record, software=name.text)


def after_power_on(root: Path) -> tuple[SoftwareRecord, dict[str, int]]:
    """What a gateway finds: the record, and the release in each slot the record names (each checked whole)."""
    records = SlotStore(root).open()
    assert found_release(root, OTHER, "a") == 1
    record = records[NAME]
    return record, {slot: found_release(root, NAME, slot) for slot in record.slots}


def count_writes(directory: Path, work: Any) -> int:
    files = CuttingFiles(cut_at=0)
    root, record = prepared(directory)
    work(SlotStore(root, files), record)
    return files.writes


def test_power_cut_at_every_write_of_an_update(tmp_path: Path) -> None:
    package = package_file(tmp_path, 2)
    total = (
        count_writes(tmp_path / "count", lambda s, r: update(s, r, package, 2))
        if mkdir(tmp_path / "count")
        else 0
    )
    assert total > 15
    base = tmp_path / "base"
    mkdir(base)
    root, record = prepared(base)
    outcomes = set()
    for cut_at in range(1, total + 1):
        copy = tmp_path / f"cut-{cut_at}"
        shutil.copytree(root, copy)
        with pytest.raises(PowerCutError):
            update(SlotStore(copy, CuttingFiles(cut_at=cut_at)), record, package, 2)
        found, releases = after_power_on(copy)
        active = releases[str(found.active)]
        outcomes.add((active, found.trial is not None))
        assert active in {1, 2}
        if found.trial is not None:
            assert releases[found.trial.slot] == 2
        # and the gateway can go on from there to the new release
        again = found if found.trial is not None else None
        store = SlotStore(copy)
        if again is not None:
            store.save(install.committed(install.attempt_counted(again)))
        elif active == 1:
            update(store, found, package, 2)
        final, releases = after_power_on(copy)
        assert releases[str(final.active)] == 2
        shutil.rmtree(copy)
    assert {(1, False), (1, True)} <= outcomes


def mkdir(path: Path) -> bool:
    path.mkdir()
    return True


def test_power_cut_at_every_write_of_a_removal(tmp_path: Path) -> None:
    def remove(store: SlotStore, record: SoftwareRecord) -> None:
        store.save(install.removing(record))
        store.remove(NAME)
        store.save(install.removed(record_removing(record)))

    mkdir(tmp_path / "count")
    total = count_writes(tmp_path / "count", remove)
    mkdir(tmp_path / "base")
    root, record = prepared(tmp_path / "base")
    for cut_at in range(1, total + 1):
        copy = tmp_path / f"cut-{cut_at}"
        shutil.copytree(root, copy)
        with pytest.raises(PowerCutError):
            remove(SlotStore(copy, CuttingFiles(cut_at=cut_at)), record)
        store = SlotStore(copy)
        found = store.open()[NAME]
        assert found_release(copy, OTHER, "a") == 1
        if install.recover(found) == install.Start("a", trial=False):
            assert found_release(copy, NAME, "a") == 1  # the removal never began
        else:
            assert install.recover(found) == install.FinishRemoval()
            store.remove(NAME)
            store.save(install.removed(found))
            assert not (copy / "slots" / "mimamori+sensor").exists()


def record_removing(record: SoftwareRecord) -> SoftwareRecord:
    return install.removing(record)


def test_start_removes_what_no_record_names(tmp_path: Path) -> None:
    mkdir(tmp_path / "base")
    root, _ = prepared(tmp_path / "base")
    stray = root / "slots" / "mimamori+sensor" / "b.new" / "files"
    stray.mkdir(parents=True)
    (root / "slots" / "nobody+knows" / "a").mkdir(parents=True)
    SlotStore(root).open()
    assert sorted(path.name for path in (root / "slots").iterdir()) == ["mimamori+sensor", "yubin-box+sensor"]
    assert [path.name for path in (root / "slots" / "mimamori+sensor").iterdir()] == ["a"]


def test_a_damaged_archive_leaves_the_slot_empty(tmp_path: Path) -> None:
    mkdir(tmp_path / "base")
    root, _ = prepared(tmp_path / "base")
    package = package_file(tmp_path, 2)
    package.write_bytes(package.read_bytes()[:-20])
    with pytest.raises(FormatError):
        SlotStore(root).fill(NAME, "b", package, lambda manifest: None)
    assert [path.name for path in (root / "slots" / "mimamori+sensor").iterdir()] == ["a"]


def test_a_refused_manifest_leaves_the_slot_empty(tmp_path: Path) -> None:
    mkdir(tmp_path / "base")
    root, _ = prepared(tmp_path / "base")

    def refuse(_manifest: object) -> None:
        raise PowerCutError

    with pytest.raises(PowerCutError):
        SlotStore(root).fill(NAME, "b", package_file(tmp_path, 2), refuse)
    assert [path.name for path in (root / "slots" / "mimamori+sensor").iterdir()] == ["a"]


@pytest.mark.parametrize("damage", [b"", b"{}", b"{", b"\xff"], ids=["empty", "no fields", "torn", "no text"])
def test_a_damaged_record_is_an_error_never_a_fresh_start(tmp_path: Path, damage: bytes) -> None:
    mkdir(tmp_path / "base")
    root, _ = prepared(tmp_path / "base")
    (root / "records" / "mimamori+sensor.json").write_bytes(damage)
    with pytest.raises(CorruptStateError):
        SlotStore(root).open()


_STEPS = st.lists(st.sampled_from(["fill", "try", "commit", "fall-back", "remove"]), max_size=30)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(_STEPS, st.lists(st.integers(1, 5), min_size=30, max_size=30))
def test_whatever_happens_the_floor_never_falls_and_the_active_slot_is_never_overwritten(
    steps: list[str], floors: list[int]
) -> None:
    record = SoftwareRecord(software=NAME.text)
    for number, step in enumerate(steps):
        before = record
        release = number + 10
        try:
            match step:
                case "fill":
                    record = install.slot_filled(record, content(release, floors[number]))
                case "try":
                    record = install.attempt_counted(record)
                case "commit":
                    record = install.committed(record)
                case "fall-back":
                    record = install.fell_back(record, Fault.START_FAILED, "", document_version=1)
                case _:
                    record = install.removed(install.removing(record))
        except InvalidDuStateError:
            assert record == before
            continue
        assert record.floor_release >= before.floor_release
        if step != "remove" and before.active is not None:
            assert record.slots[before.active] == before.slots[before.active]
        if record.active is not None:
            assert record.active in record.slots
