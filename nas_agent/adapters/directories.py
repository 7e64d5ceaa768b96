"""Directories held by descriptor: every path below a root is reached by `openat`, one component at a time.

Rules: no component is ever followed through a symlink (`O_NOFOLLOW`), so that a tree that changes under us, or a
hostile name in a generation, cannot lead outside the root; path length is bounded by nothing (PATH_MAX concerns one
call); at most `OPEN_MAX` descriptors are open however deep the tree is. Needs Linux with /proc.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import struct
import tempfile
from collections.abc import Iterator
from typing import IO

import attrs

OPEN_MAX = 48
NAMES_IN_MEMORY_MAX = 20_000
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME_LENGTH = struct.Struct(">H")


@attrs.define
class _Level:
    name: bytes
    identity: tuple[int, int]
    fd: int | None


class DirectoryChain:
    """The chain of open directories from a root to the directory last asked for. One thread at a time.

    `root` is followed if it is a symlink (the operator named it); nothing below is.
    """

    def __init__(self, root: bytes) -> None:
        """Open `root`; raises `OSError` (`NotADirectoryError` for anything but a directory)."""
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._levels = [_Level(b"", _identity(fd), fd)]

    def open(self, parts: list[bytes]) -> int:
        """Return the descriptor of the directory at `parts`; it stays ours and lives until the next call.

        Raises `OSError` when a component is gone, is a symlink or is no directory.
        """
        shared = self._shared_length(parts)
        while len(self._levels) - 1 > shared:
            self._pop()
        self._reopen_top()
        for name in parts[shared:]:
            self._descend(name)
        return self._top_fd()

    def close(self) -> None:
        """Close every descriptor; the chain is of no further use."""
        for level in self._levels:
            if level.fd is not None:
                os.close(level.fd)
        self._levels.clear()

    def _shared_length(self, parts: list[bytes]) -> int:
        shared = 0
        for level, part in zip(self._levels[1:], parts, strict=False):
            if level.name != part:
                break
            shared += 1
        return shared

    def _descend(self, name: bytes) -> None:
        fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=self._top_fd())
        self._levels.append(_Level(name, _identity(fd), fd))
        rest = len(self._levels) - OPEN_MAX
        if rest >= 1 and (old := self._levels[rest]).fd is not None:
            os.close(old.fd)
            old.fd = None

    def _pop(self) -> None:
        """Drop the deepest level; a parent closed for want of descriptors is opened again through `..`."""
        child, parent = self._levels.pop(), self._levels[-1]
        if child.fd is None:
            return
        if parent.fd is None:
            with contextlib.suppress(OSError):
                fd = os.open(b"..", _DIRECTORY_FLAGS, dir_fd=child.fd)
                if _identity(fd) == parent.identity:
                    parent.fd = fd
                else:  # the child was moved meanwhile: `..` is somewhere else
                    os.close(fd)
        os.close(child.fd)

    def _reopen_top(self) -> None:
        if self._levels[-1].fd is not None:
            return
        names = [level.name for level in self._levels[1:]]
        for level in self._levels[1:]:
            if level.fd is not None:
                os.close(level.fd)
        del self._levels[1:]
        for name in names:
            self._descend(name)

    def _top_fd(self) -> int:
        fd = self._levels[-1].fd
        if fd is None:  # pragma: no cover - _reopen_top and _descend keep the deepest level open
            message = "the deepest directory of the chain must be open"
            raise RuntimeError(message)
        return fd


def split_path(path: bytes) -> tuple[list[bytes], bytes]:
    """Return the components of the parent and the last name of a relative path (no empty or dot components)."""
    *parents, name = path.split(b"/")
    return parents, name


def proc_path(directory_fd: int, name: bytes) -> bytes:
    """Return a path for the calls that take no `dir_fd` (xattr): the last component is not followed by it."""
    return b"/proc/self/fd/%d/%s" % (directory_fd, name)


def sorted_names(directory_fd: int) -> Iterator[bytes]:
    """Read a directory now and return its names in byte order; many names are sorted on disk."""
    runs: list[IO[bytes]] = []
    names: list[bytes] = []
    try:
        with os.scandir(b"/proc/self/fd/%d" % directory_fd) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) >= NAMES_IN_MEMORY_MAX:
                    runs.append(_spill(sorted(names)))
                    names.clear()
    except BaseException:
        _close_all(runs)
        raise
    names.sort()
    return _merged(names, runs) if runs else iter(names)


def _merged(names: list[bytes], runs: list[IO[bytes]]) -> Iterator[bytes]:
    try:
        yield from heapq.merge(names, *(_names_of(run) for run in runs))
    finally:
        _close_all(runs)


def _close_all(runs: list[IO[bytes]]) -> None:
    for run in runs:
        run.close()


def _spill(names: list[bytes]) -> IO[bytes]:
    run = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the caller when the listing ends
    for name in names:
        run.write(_NAME_LENGTH.pack(len(name)) + name)
    run.seek(0)
    return run


def _names_of(run: IO[bytes]) -> Iterator[bytes]:
    while head := run.read(_NAME_LENGTH.size):
        yield run.read(_NAME_LENGTH.unpack(head)[0])


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
