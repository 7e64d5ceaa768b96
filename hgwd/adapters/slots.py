"""Slots on flash: packages unpacked side by side, one record per software that says which one counts.

Below the software directory:
    records/<operator>+<software>.json     the record (core/install.py), replaced atomically: the only truth
    slots/<operator>+<software>/<a|b>/     manifest.json and files/, complete once the record names the slot
    parts/<operator>+<software>.part       a download; beside it `.journal`
    metadata/…                             see adapters/metadata.py

Rules
- A slot is filled while no record names it: unpack to `<slot>.new`, fsync every file and directory, rename, fsync.
- Whatever the record does not name is rubbish and removed at the next start or fill.
- A removed software leaves its record (the floor) and nothing else.
- Files are readable by all and owned by hgwd: the package's own user reads them through the sandbox.

Blocking; call from a worker thread. All writes go through `FlashFiles`, so that a test can cut the power at each.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

import attrs
import msgspec

from hgwd.core.install import SlotName, SoftwareRecord
from hgwd.core.launch import directory_name
from hgwd.errors import CorruptStateError
from runtime.files import fsync_dir, make_dirs, write_all, write_atomic
from wire.director import SoftwareName
from wire.errors import FormatError, WireError
from wire.package import Manifest, encode_manifest, parse_manifest
from wire.package_archive import FileData, FileEnd, FileStart, ManifestRead, PackageEvent, PackageReader

READ_BYTES: Final = 64 * 1024
RECORD_BYTES_MAX: Final = 64 * 1024
_NEW: Final = ".new"


class NewFile(Protocol):
    """A file being written; it counts once `finish` has returned."""

    def write(self, data: bytes) -> None:
        """Append bytes."""
        ...

    def finish(self) -> None:
        """Fsync and close."""
        ...

    def abandon(self) -> None:
        """Close without a promise. Idempotent, also after `finish`."""
        ...


class FlashFiles(Protocol):
    """The writes of this module. Each either happened, durably, or raised; a cut in between leaves a part of it."""

    def write_atomic(self, path: Path, data: bytes) -> None:
        """Replace a file: old or new content after a cut."""
        ...

    def new_file(self, path: Path, *, executable: bool) -> NewFile:
        """Create a file; after a cut before its `finish` it may be missing or partial."""
        ...

    def make_dir(self, path: Path) -> None:
        """Create a directory and its parents. Idempotent."""
        ...

    def sync_dir(self, path: Path) -> None:
        """Make the names in a directory durable."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Rename durably; `target` does not exist."""
        ...

    def remove_tree(self, path: Path) -> None:
        """Remove a directory or file with all it holds; after a cut it may be partly gone. Idempotent."""
        ...


@attrs.define
class _RealFile:
    fd: int

    def write(self, data: bytes) -> None:
        write_all(self.fd, data)

    def finish(self) -> None:
        os.fsync(self.fd)
        self.abandon()

    def abandon(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


class RealFiles:
    """`FlashFiles` on the real file system."""

    def write_atomic(self, path: Path, data: bytes) -> None:
        """See FlashFiles."""
        write_atomic(path, data, mode=0o600)

    def new_file(self, path: Path, *, executable: bool) -> NewFile:
        """See FlashFiles."""
        mode = 0o755 if executable else 0o644
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        os.fchmod(fd, mode)
        return _RealFile(fd)

    def make_dir(self, path: Path) -> None:
        """See FlashFiles."""
        make_dirs(path)

    def sync_dir(self, path: Path) -> None:
        """See FlashFiles."""
        fsync_dir(path)

    def rename(self, source: Path, target: Path) -> None:
        """See FlashFiles."""
        source.rename(target)
        fsync_dir(target.parent)

    def remove_tree(self, path: Path) -> None:
        """See FlashFiles."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if path.parent.is_dir():
            fsync_dir(path.parent)


class SlotStore:
    """All softwares' slots and records below `root`."""

    def __init__(self, root: Path, files: FlashFiles | None = None) -> None:
        self._root: Final = root
        self._files: Final = files or RealFiles()

    def open(self) -> dict[SoftwareName, SoftwareRecord]:
        """Make the directories, remove what no record names, return all records. Raises `CorruptStateError`."""
        for name in ("records", "slots", "parts"):
            self._files.make_dir(self._root / name)
        records = dict(self._read_records())
        known = {directory_name(name): record for name, record in records.items()}
        for directory in sorted((self._root / "slots").iterdir()):
            record = known.get(directory.name)
            if record is None or not record.slots:
                self._files.remove_tree(directory)
                continue
            for entry in sorted(directory.iterdir()):
                if entry.name not in record.slots:
                    self._files.remove_tree(entry)
        return records

    def save(self, record: SoftwareRecord) -> None:
        """Make `record` the truth: after this returns it survives a power cut."""
        name = SoftwareName.parse(record.software)
        self._files.write_atomic(self._record_path(name), msgspec.json.encode(record))

    def part_path(self, name: SoftwareName) -> Path:
        """Return where the download of a software goes."""
        return self._root / "parts" / f"{directory_name(name)}.part"

    def discard_part(self, name: SoftwareName) -> None:
        """Remove a download and its journal. Idempotent."""
        part = self.part_path(name)
        for path in (part, part.with_suffix(".journal")):
            self._files.remove_tree(path)

    def fill(
        self, name: SoftwareName, slot: SlotName, package: Path, check: Callable[[Manifest], None]
    ) -> Manifest:
        """Unpack a verified package file into a slot that no record names; durable when this returns.

        Raises:
            FormatError: the archive is not canonical; what `check` raises; OSError. The slot is then empty.
        """
        home = self._root / "slots" / directory_name(name)
        fresh, final = home / f"{slot}{_NEW}", home / slot
        self._files.make_dir(home)
        for stale in (fresh, final):
            self._files.remove_tree(stale)
        self._files.make_dir(fresh / "files")
        try:
            manifest = self._unpack(package, fresh, check)
        except BaseException:
            self._files.remove_tree(fresh)
            raise
        self._files.rename(fresh, final)
        return manifest

    def clear_slot(self, name: SoftwareName, slot: SlotName) -> None:
        """Empty a slot that the record does not name any more. Idempotent."""
        self._files.remove_tree(self._root / "slots" / directory_name(name) / slot)

    def remove(self, name: SoftwareName) -> None:
        """Remove slots and download of a software; the record stays. Idempotent."""
        self._files.remove_tree(self._root / "slots" / directory_name(name))
        self.discard_part(name)

    def read_manifest(self, name: SoftwareName, slot: SlotName) -> Manifest:
        """Return the manifest of a slot that the record names. Raises `CorruptStateError`."""
        path = self._root / "slots" / directory_name(name) / slot / "manifest.json"
        try:
            return parse_manifest(path.read_bytes())
        except (OSError, WireError) as error:
            raise CorruptStateError(f"{name.text} slot {slot}: {error}") from error

    def _unpack(self, package: Path, fresh: Path, check: Callable[[Manifest], None]) -> Manifest:
        reader = PackageReader()
        target = _Unpacking(self._files, fresh / "files", check)
        try:
            with package.open("rb") as file:
                while data := file.read(READ_BYTES):
                    for event in reader.feed(data):
                        target.take(event)
        finally:
            target.close()
        manifest = reader.finish()
        file_of_manifest = self._files.new_file(fresh / "manifest.json", executable=False)
        try:
            file_of_manifest.write(encode_manifest(manifest))
            file_of_manifest.finish()
        finally:
            file_of_manifest.abandon()
        for directory in (*sorted(target.directories, reverse=True), fresh):
            self._files.sync_dir(directory)
        return manifest

    def _record_path(self, name: SoftwareName) -> Path:
        return self._root / "records" / f"{directory_name(name)}.json"

    def _read_records(self) -> Iterator[tuple[SoftwareName, SoftwareRecord]]:
        for path in sorted((self._root / "records").glob("*.json")):
            if path.name.startswith("."):
                continue
            try:
                with path.open("rb") as file:
                    record = msgspec.json.decode(file.read(RECORD_BYTES_MAX), type=SoftwareRecord)
                name = SoftwareName.parse(record.software)
            except (msgspec.MsgspecError, FormatError, UnicodeDecodeError) as error:
                raise CorruptStateError(f"{path.name}: {error}") from error
            if record.v != 1 or path.name != f"{directory_name(name)}.json":
                raise CorruptStateError(f"{path.name}: record of {record.software} version {record.v}")
            yield name, record


class _Unpacking:
    """Writes the events of one archive below `root`, a block at a time."""

    def __init__(self, files: FlashFiles, root: Path, check: Callable[[Manifest], None]) -> None:
        self._files: Final = files
        self._root: Final = root
        self._check: Final = check
        self._open: NewFile | None = None
        self.directories: set[Path] = {root}

    def take(self, event: PackageEvent) -> None:
        """Write what an event brings."""
        match event:
            case ManifestRead():
                self._check(event.manifest)
            case FileStart():
                self._start(event)
            case FileData() if self._open is not None:
                self._open.write(event.data)
            case FileEnd() if self._open is not None:
                self._open.finish()
                self._open = None

    def close(self) -> None:
        """Give up a file that is still open."""
        if self._open is not None:
            self._open.abandon()

    def _start(self, event: FileStart) -> None:
        path = self._root / event.path
        if path.parent not in self.directories:
            self._files.make_dir(path.parent)
            self.directories.update(parent for parent in path.parents if self._root in parent.parents)
        self._open = self._files.new_file(path, executable=event.executable)
