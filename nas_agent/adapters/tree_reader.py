"""The tree to back up, as a `TreeSource`: walked by directory descriptors, in manifest order, with flat memory.

Rules: symlinks below a root are described, never followed; a name that changes kind between listing and opening is
noticed; a directory that cannot be listed is a `Problem`, and the walk goes on beside it. Names are bytes throughout.
One source is the root of the generation itself; several stand in it side by side under their last name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs

from nas_agent.adapters.attributes import describe
from nas_agent.adapters.directories import DirectoryChain, sorted_names, split_path
from nas_agent.adapters.excludes import Excludes
from nas_agent.adapters.source_file import OpenFile, open_file
from nas_agent.ports import Observed, Problem
from runtime.errors import LocalError
from wire.vault.entry import PATH_BYTES_MAX, Entry, Kind

_INODE_BITS: Final = 48
_FILE_SYSTEM_BITS: Final = 14
_VANISHED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


@attrs.frozen
class Root:
    """One source: its path on this machine and the name it has in the generation (`b""`: it is the root itself)."""

    path: bytes
    name: bytes = b""


def source_roots(paths: Sequence[str]) -> tuple[Root, ...]:
    """Return the roots for the paths a person gave.

    Raises `LocalError` when a path does not exist or when two sources have the same last name.
    """
    resolved = [_resolve(path) for path in paths]
    if len(resolved) == 1 and stat.S_ISDIR(os.lstat(resolved[0]).st_mode):
        return (Root(resolved[0]),)
    roots = tuple(
        sorted((Root(path, os.path.split(path)[1]) for path in resolved), key=lambda root: root.name)
    )
    names = [root.name for root in roots]
    if b"" in names or len(set(names)) != len(names):
        raise LocalError("sources: expected different last names, so that each has its place; use two sets")
    return roots


def _resolve(given: str) -> bytes:
    try:
        return os.path.realpath(os.fsencode(given), strict=True)
    except OSError as error:
        raise LocalError(f"source {given}: {error.strerror}; check the path") from error


class TreeReader:
    """A `TreeSource` over one or several roots."""

    def __init__(
        self,
        roots: Sequence[Root],
        *,
        excludes: Excludes | None = None,
        one_file_system: bool = False,
        own_directories: Iterable[str] = (),
    ) -> None:
        """Remember what to read; nothing is opened yet.

        Args:
            roots: as `source_roots` gives them.
            excludes: patterns on paths relative to each root.
            one_file_system: leave mounted directories empty.
            own_directories: the vault and the state directory: a backup does not contain itself.
        """
        self._roots = tuple(roots)
        self._excludes = excludes or Excludes(())
        self._one_file_system = one_file_system
        self._own = frozenset(identities(own_directories))
        self._devices: dict[int, int] = {}
        self._chains: dict[bytes, DirectoryChain] = {}

    def walk(self) -> Iterator[Observed | Problem]:
        """See `TreeSource`."""
        if self._roots[0].name:
            yield Observed(entry=_common_root(), ctime_ns=0, inode=0)
        for root in self._roots:
            yield from self._walk_root(root)

    def open(self, observed: Observed) -> OpenFile:
        """See `TreeSource`."""
        parents, name = split_path(observed.entry.path)
        root = self._roots[0]
        if root.name:
            root = next(each for each in self._roots if each.name == (parents or [name])[0])
        if root.name and not parents:  # a source that is itself a file
            parent, name = os.path.split(root.path)
            return open_file(name, self._chain(parent).open([]), observed)
        chain = self._chain(root.path)
        try:
            directory_fd = chain.open(parents[1:] if root.name else parents)
        except OSError as error:
            if error.errno in _VANISHED:  # a parent is gone or was replaced
                raise FileNotFoundError(errno.ENOENT, "a directory above it vanished") from error
            raise
        return open_file(name, directory_fd, observed)

    def close(self) -> None:
        """Close the directories kept open for `open`."""
        for chain in self._chains.values():
            chain.close()
        self._chains.clear()

    def _chain(self, path: bytes) -> DirectoryChain:
        if path not in self._chains:
            self._chains[path] = DirectoryChain(path)
        return self._chains[path]

    def _walk_root(self, root: Root) -> Iterator[Observed | Problem]:
        try:
            status = os.lstat(root.path)
            if not stat.S_ISDIR(status.st_mode):
                parent, name = os.path.split(root.path)
                yield self.observe(root.name, name, self._chain(parent).open([]), status)
                return
            chain = DirectoryChain(root.path)
        except OSError as error:
            yield _problem(root.name, error)
            return
        try:
            yield from _Walk(self, chain, root).run()
        finally:
            chain.close()

    def observe(self, path: bytes, name: bytes, directory_fd: int, status: os.stat_result) -> Observed:
        """Describe one object from its `lstat`; raises `OSError` when it vanished."""
        linked = status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)
        entry = describe(path, name, directory_fd, status, self._link_group(status) if linked else 0)
        return Observed(entry=entry, ctime_ns=status.st_ctime_ns, inode=status.st_ino, nlink=status.st_nlink)

    def leaves_out(self, path: bytes, *, is_directory: bool) -> bool:
        """Tell whether the operator excluded this path (relative to its source)."""
        return self._excludes.excludes(path, is_directory=is_directory)

    def is_own(self, status: os.stat_result) -> bool:
        """Tell whether this is the vault or the state directory of the run itself."""
        return (status.st_dev, status.st_ino) in self._own

    def stays_out(self, device: int, root_device: int) -> bool:
        """Tell whether a directory lies on another file system that must not be entered."""
        return self._one_file_system and device != root_device

    def _link_group(self, status: os.stat_result) -> int:
        """Number an inode without remembering it: file systems in the order met, then the inode number."""
        file_system = self._devices.setdefault(status.st_dev, len(self._devices))
        if status.st_ino >> _INODE_BITS or file_system >> _FILE_SYSTEM_BITS:
            digest = hashlib.blake2b(b"%d %d" % (status.st_dev, status.st_ino), digest_size=8).digest()
            return int.from_bytes(digest, "big") | 1 << 63
        return file_system << _INODE_BITS | status.st_ino


class _Walk:
    """The walk of one root: a sorted listing for each directory between the root and where we are."""

    def __init__(self, reader: TreeReader, chain: DirectoryChain, root: Root) -> None:
        self._reader = reader
        self._chain = chain
        self._prefix = [root.name] if root.name else []
        self._root_device = 0
        self._parts: list[bytes] = []
        self._listings: list[Iterator[bytes]] = []

    def run(self) -> Iterator[Observed | Problem]:
        """Yield the root, then everything below it, depth first, names in byte order."""
        root_fd = self._chain.open([])
        status = os.fstat(root_fd)
        self._root_device = status.st_dev
        yield self._reader.observe(b"/".join(self._prefix), b".", root_fd, status)
        yield from self._enter()
        while self._listings:
            name = next(self._listings[-1], None)
            if name is None:
                self._listings.pop()
                del self._parts[-1:]
            else:
                yield from self._visit(name)

    def _visit(self, name: bytes) -> Iterator[Observed | Problem]:
        inner = b"/".join((*self._parts, name))
        path = b"/".join((*self._prefix, inner))
        if len(path) > PATH_BYTES_MAX:
            yield Problem(
                path, "refused-path", f"expected a path of at most {PATH_BYTES_MAX} bytes, got {len(path)}"
            )
            return
        try:
            directory_fd = self._chain.open(self._parts)
            status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
            is_directory = stat.S_ISDIR(status.st_mode)
            if self._reader.leaves_out(inner, is_directory=is_directory) or self._reader.is_own(status):
                return
            observed = self._reader.observe(path, name, directory_fd, status)
        except OSError as error:
            yield _problem(path, error)
            return
        yield observed
        if is_directory and not self._reader.stays_out(status.st_dev, self._root_device):
            self._parts.append(name)
            yield from self._enter()

    def _enter(self) -> Iterator[Problem]:
        try:
            self._listings.append(sorted_names(self._chain.open(self._parts)))
        except OSError as error:
            yield _problem(b"/".join((*self._prefix, *self._parts)), error)
            del self._parts[-1:]


def identities(directories: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Yield (device, inode) of those directories that exist."""
    for directory in directories:
        with contextlib.suppress(OSError):
            status = Path(directory).stat()
            yield status.st_dev, status.st_ino


def _common_root() -> Entry:
    return Entry(path=b"", kind=Kind.DIRECTORY, mode=0o755, uid=os.geteuid(), gid=os.getegid(), mtime_ns=0)


def _problem(path: bytes, error: OSError) -> Problem:
    reason = "vanished" if error.errno in _VANISHED else "unreadable"
    return Problem(path, reason, error.strerror or str(error))
