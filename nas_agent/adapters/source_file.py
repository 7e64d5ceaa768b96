"""One open file of the source: its data without its holes, and whether it changed meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from nas_agent.errors import SourceChangedError
from nas_agent.ports import Observed

HOLES_MAX: Final = 65_536
"""Beyond this many holes the rest of a file is read as zeros: a manifest record stays small."""
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class OpenFile:
    """A `SourceFile` (see `nas_agent/ports.py`)."""

    def __init__(self, fd: int, observed: Observed, status: os.stat_result) -> None:
        """Take over `fd`, which is the regular file that was listed."""
        self._fd = fd
        self._listed = (observed.ctime_ns, observed.entry.mtime_ns, observed.entry.size)
        self._size = status.st_size
        self._holes = tuple(_find_holes(fd, self._size))
        self._ranges = data_ranges(self._size, self._holes)
        self._offset, self._left = next(self._ranges, (0, 0))

    @property
    def size(self) -> int:
        """See `SourceFile`."""
        return self._size

    @property
    def holes(self) -> tuple[tuple[int, int], ...]:
        """See `SourceFile`."""
        return self._holes

    def readinto(self, buffer: memoryview) -> int:
        """See `SourceFile`. A file that shrank ends early; `changed` then says so."""
        if not self._left:
            return 0
        count = os.preadv(self._fd, [buffer[: self._left]], self._offset)
        self._offset += count
        self._left -= count
        if not self._left:
            self._offset, self._left = next(self._ranges, (0, 0))
        return count

    def changed(self) -> bool:
        """See `SourceFile`."""
        now = os.fstat(self._fd)
        return (now.st_ctime_ns, now.st_mtime_ns, now.st_size) != self._listed

    def close(self) -> None:
        """See `SourceFile`."""
        os.close(self._fd)


def open_file(name: bytes, directory_fd: int, observed: Observed) -> OpenFile:
    """Open a listed regular file for reading, without touching its access time where that is permitted.

    Raises `OSError`, or `SourceChangedError` if another object has that name now.
    """
    try:
        fd = os.open(name, _FLAGS | os.O_NOATIME, dir_fd=directory_fd)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SourceChangedError("the file was replaced by a symlink after it was listed") from error
        if error.errno != errno.EPERM:  # EPERM: only the owner may ask for O_NOATIME
            raise
        fd = os.open(name, _FLAGS, dir_fd=directory_fd)
    try:
        return _take(fd, observed)
    except BaseException:
        os.close(fd)
        raise


def _take(fd: int, observed: Observed) -> OpenFile:
    status = os.fstat(fd)
    if status.st_ino != observed.inode or not stat.S_ISREG(status.st_mode):
        raise SourceChangedError("the file was replaced by another after it was listed")
    return OpenFile(fd, observed, status)


def data_ranges(size: int, holes: tuple[tuple[int, int], ...]) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of what lies between ascending holes; lengths are positive."""
    position = 0
    for offset, length in (*holes, (size, 0)):
        if offset > position:
            yield position, offset - position
        position = offset + length


def _find_holes(fd: int, size: int) -> Iterator[tuple[int, int]]:
    position = 0
    for _ in range(HOLES_MAX):
        if position >= size:
            return
        try:
            start = os.lseek(fd, position, os.SEEK_HOLE)
        except OSError:  # a file system that cannot tell: all is data
            return
        if start >= size:
            return
        end = size
        with contextlib.suppress(OSError):  # ENXIO: no data behind the hole
            end = min(os.lseek(fd, start, os.SEEK_DATA), size)
        if end <= start:
            return
        yield start, end - start
        position = end
