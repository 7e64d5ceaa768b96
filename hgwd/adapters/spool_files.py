"""The spool's files: `parts/` while receiving, `packs/` by hash (port `SpoolFiles`).

Order of an acknowledgement: write → fsync file → rename → fsync directory → row committed → answer. What a power cut
leaves in `parts/` was never acknowledged and is removed at the next start.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import attrs

from runtime.files import fsync_dir, make_dirs, write_all


@attrs.frozen
class FlashSpoolFiles:
    """`SpoolFiles` on a directory of the data flash; `open_spool_files` makes one."""

    packs: Path
    parts: Path

    def create(self, part: str) -> int:
        """See `SpoolFiles`."""
        return os.open(self.parts / part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, descriptor: int, data: bytes) -> None:
        """See `SpoolFiles`."""
        write_all(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """See `SpoolFiles`."""
        os.fsync(descriptor)

    def publish(self, part: str, pack: str) -> None:
        """See `SpoolFiles`."""
        (self.parts / part).rename(self.packs / pack)
        fsync_dir(self.packs)

    def discard(self, part: str) -> None:
        """See `SpoolFiles`."""
        with contextlib.suppress(OSError):
            (self.parts / part).unlink(missing_ok=True)

    def remove(self, pack: str) -> None:
        """See `SpoolFiles`."""
        (self.packs / pack).unlink(missing_ok=True)

    def sizes_bytes(self) -> dict[str, int]:
        """See `SpoolFiles`."""
        with os.scandir(self.packs) as entries:
            return {entry.name: entry.stat(follow_symlinks=False).st_size for entry in entries}

    def clear_parts(self) -> int:
        """See `SpoolFiles`."""
        parts = list(self.parts.iterdir())
        for part in parts:
            part.unlink(missing_ok=True)
        return len(parts)

    def free_bytes(self) -> int:
        """See `SpoolFiles`."""
        status = os.statvfs(self.packs)
        return status.f_bavail * status.f_frsize

    def path(self, pack: str) -> Path:
        """See `SpoolFiles`."""
        return self.packs / pack


def open_spool_files(directory: Path) -> FlashSpoolFiles:
    """Make the directories (mode 0700) if needed and return the port. Blocking."""
    files = FlashSpoolFiles(packs=directory / "packs", parts=directory / "parts")
    for path in (directory, files.packs, files.parts):
        make_dirs(path, mode=0o700)
    return files
