"""The tree to restore into, as a `TreeSink`: nothing is written outside the target, and holes stay holes.

Rules
- Every object is made by `openat`-style calls inside a directory reached without following a symlink: a path of a
  hostile generation, or a symlink planted in the target meanwhile, cannot lead outside.
- A directory is made with mode 0700 and gets its attributes when everything below it is written.
- Owners go before permission bits (chown clears setuid); setuid and setgid are dropped where the owner could not be set.
- With `overwrite`, a file appears under a temporary name first and replaces the old one whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nas_agent.adapters.directories import DirectoryChain, split_path
from nas_agent.adapters.set_attributes import AttributeSetter
from nas_agent.adapters.source_file import data_ranges
from nas_agent.ports import Problem
from runtime.errors import CorruptDataError, LocalError
from wire.vault.entry import Entry, Kind, data_bytes

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SPECIAL: Final = {
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
}


class TargetNotEmptyError(LocalError):
    """The target of a restore holds something already and `overwrite` was not asked for."""

    code = "target-not-empty"
    exit_code = 4


class TreeWriter:
    """A `TreeSink`."""

    def __init__(self, target: str, *, overwrite: bool = False) -> None:
        """Create the target if needed.

        Raises `TargetNotEmptyError`, or `OSError` when the target cannot be made or is no directory.
        """
        self._root = os.fsencode(target)
        Path(target).mkdir(mode=0o700, parents=True, exist_ok=True)
        if not overwrite and any(Path(target).iterdir()):
            raise TargetNotEmptyError(
                f"target {target}: expected an empty or new directory; choose another or add --overwrite"
            )
        self._overwrite = overwrite
        self._chain = DirectoryChain(self._root)
        self._setter = AttributeSetter()
        self._open_directories: list[Entry] = []
        self._links = sqlite3.connect(
            "", isolation_level=None, check_same_thread=False
        )  # private; on disk when it grows
        self._links.execute("CREATE TABLE links (link_group BLOB PRIMARY KEY, path BLOB) WITHOUT ROWID")

    def put(self, entry: Entry, pieces: Iterator[bytes | memoryview]) -> tuple[Problem, ...]:
        """See `TreeSink`."""
        problems = self._leave_directories(entry.path)
        if entry.kind is Kind.DIRECTORY:
            self._make_directory(entry)
            return tuple(problems)
        parents, name = split_path(entry.path)
        directory_fd = self._parent(parents)
        if entry.link_group and self._link(entry, name, directory_fd):
            return tuple(problems)
        place = b".nas-agent-%s.part" % secrets.token_hex(6).encode() if self._overwrite else name
        try:
            self._create(entry, place, directory_fd, pieces)
            lost = self._setter.set(entry, place, directory_fd)
            if self._overwrite:
                os.rename(place, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        except FileExistsError:
            raise
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(place, dir_fd=directory_fd)
            raise
        if entry.link_group:
            self._links.execute("INSERT INTO links VALUES (?, ?)", (_key(entry), entry.path))
        return (*problems, *_metadata_problem(entry, lost))

    def finish(self) -> tuple[Problem, ...]:
        """See `TreeSink`."""
        problems = self._leave_directories(None)
        _sync_file_system(self._chain.open([]))
        return tuple(problems)

    def close(self) -> None:
        """Free descriptors; without `finish` the directories keep mode 0700."""
        self._chain.close()
        self._links.close()

    def _parent(self, parents: list[bytes]) -> int:
        """Return the parent's descriptor; parents that are not part of the restore are made with mode 0700."""
        try:
            return self._chain.open(parents)
        except FileNotFoundError:
            for depth, name in enumerate(parents):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=self._chain.open(parents[:depth]))
            return self._chain.open(parents)

    def _make_directory(self, entry: Entry) -> None:
        if entry.path:
            parents, name = split_path(entry.path)
            directory_fd = self._parent(parents)
            try:
                os.mkdir(name, 0o700, dir_fd=directory_fd)
            except FileExistsError:
                if not stat.S_ISDIR(os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode):
                    raise
        self._open_directories.append(entry)

    def _leave_directories(self, path: bytes | None) -> list[Problem]:
        """Give every directory that does not hold `path` its attributes: nothing more comes into it."""
        problems: list[Problem] = []
        while self._open_directories:
            entry = self._open_directories[-1]
            if path is not None and (not entry.path or path.startswith(entry.path + b"/")):
                break
            self._open_directories.pop()
            try:
                own_fd = self._chain.open(entry.path.split(b"/") if entry.path else [])
                problems += _metadata_problem(entry, self._setter.set(entry, b".", own_fd))
            except OSError as error:
                problems.append(Problem(entry.path, "metadata", error.strerror or str(error)))
        return problems

    def _link(self, entry: Entry, name: bytes, directory_fd: int) -> bool:
        """Give an already written member of the link group one more name; False if there is none yet."""
        row = self._links.execute("SELECT path FROM links WHERE link_group = ?", (_key(entry),)).fetchone()
        if row is None:
            return False
        parents, first = split_path(row[0])
        first_fd = os.dup(self._chain.open(parents))
        try:
            directory_fd = self._chain.open(split_path(entry.path)[0])
            if self._overwrite:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory_fd)
            os.link(first, name, src_dir_fd=first_fd, dst_dir_fd=directory_fd, follow_symlinks=False)
        finally:
            os.close(first_fd)
        return True

    def _create(
        self, entry: Entry, name: bytes, directory_fd: int, pieces: Iterator[bytes | memoryview]
    ) -> None:
        if entry.kind is Kind.FILE:
            _write_file(entry, name, directory_fd, pieces)
        elif entry.kind is Kind.SYMLINK:
            os.symlink(entry.target, name, dir_fd=directory_fd)
        else:
            os.mknod(
                name, _SPECIAL[entry.kind] | 0o600, device=os.makedev(*entry.device), dir_fd=directory_fd
            )


def _write_file(entry: Entry, name: bytes, directory_fd: int, pieces: Iterator[bytes | memoryview]) -> None:
    fd = os.open(name, _CREATE, 0o600, dir_fd=directory_fd)
    try:
        if entry.holes:
            os.ftruncate(fd, entry.size)
        _write_pieces(fd, entry, pieces)
    finally:
        os.close(fd)


def _write_pieces(fd: int, entry: Entry, pieces: Iterator[bytes | memoryview]) -> None:
    """Write the pieces between the holes; `CorruptDataError` unless they are as many bytes as the entry says."""
    ranges = data_ranges(entry.size, entry.holes)
    offset, left = next(ranges, (0, 0))
    written = 0
    for piece in pieces:
        view = memoryview(piece)
        while view and left:
            count = os.pwrite(fd, view[:left], offset)
            view, offset, left, written = view[count:], offset + count, left - count, written + count
            if not left:
                offset, left = next(ranges, (0, 0))
        written += len(view)  # beyond the end: never written, only counted
    if written != data_bytes(entry):
        raise CorruptDataError(
            f"{entry.path[:80]!r}: expected {data_bytes(entry)} content bytes, got {written}"
        )


def _key(entry: Entry) -> bytes:
    return entry.link_group.to_bytes(8, "big")


def _metadata_problem(entry: Entry, lost: list[str]) -> tuple[Problem, ...]:
    return (Problem(entry.path, "metadata", "; ".join(lost)),) if lost else ()


def _sync_file_system(fd: int) -> None:
    """Put everything written on the target's file system on disk; raises `OSError` if the disk reports an error."""
    if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
        code = ctypes.get_errno() or errno.EIO
        raise OSError(code, os.strerror(code))
