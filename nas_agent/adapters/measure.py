"""Counts what a run does, by standing in front of its ports: source, store and tree to restore into.

So the engine needs no counters for the screen. Numbers are read by another task while they grow: each is one int,
replaced whole, and none is used for a decision.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import attrs

from nas_agent.adapters.directories import DirectoryChain
from nas_agent.adapters.excludes import Excludes
from nas_agent.adapters.tree_reader import Root, identities
from nas_agent.ports import (
    PACK_STORED,
    Committed,
    GenerationInfo,
    Location,
    Missing,
    Observed,
    Opened,
    PackAccepted,
    Problem,
    Refs,
    Refusal,
    SourceFile,
    TreeSink,
    TreeSource,
    VaultStore,
)
from wire.vault.entry import Entry, Kind, data_bytes


@attrs.define
class Tally:
    """What a run has done so far; `files` are regular files, sizes are bytes.

    Attributes:
        files_total: None until known.
        bytes_total: of all regular files with their holes; None until known.
        files_done: passed, read or not.
        bytes_done: of them, counting the part of the file being read; never above `bytes_total` once that is known.
        files_read: opened, for they are new or changed.
        sent_bytes: of packs that were new to the other side.
        spooled_bytes: acknowledged by the gateway and not yet known to be at the service.
        stored_bytes: acknowledged by the service, or by the directory.
        problems: paths listed so far.
    """

    files_total: int | None = None
    bytes_total: int | None = None
    files_done: int = 0
    bytes_done: int = 0
    files_read: int = 0
    sent_bytes: int = 0
    spooled_bytes: int = 0
    stored_bytes: int = 0
    problems: int = 0
    phase: str = "scan"

    def advance(self, phase: str, files: int, read_bytes: int, sent_bytes: int) -> None:
        """Take totals from the engine, as `ports.Progress`."""
        self.phase, self.files_done, self.bytes_done, self.sent_bytes = phase, files, read_bytes, sent_bytes


class MeasuredSource:
    """A `TreeSource` that counts."""

    def __init__(self, inner: TreeSource, tally: Tally) -> None:
        """Stand in front of `inner`."""
        self._inner = inner
        self._tally = tally

    def walk(self) -> Iterator[Observed | Problem]:
        """See `TreeSource`. A repeated walk starts the counts anew."""
        self._tally.files_done = self._tally.bytes_done = self._tally.files_read = self._tally.problems = 0
        for found in self._inner.walk():
            if isinstance(found, Problem):
                self._tally.problems += 1
            elif found.entry.kind is Kind.FILE:
                self._tally.files_done += 1
                self._tally.bytes_done += found.entry.size
            yield found

    def open(self, observed: Observed) -> SourceFile:
        """See `TreeSource`."""
        file = self._inner.open(observed)
        self._tally.files_read += 1
        return _MeasuredFile(file, observed.entry.size, self._tally)


class _MeasuredFile:
    """Takes the file's size out of the done bytes while it is open and adds it back as it is read."""

    def __init__(self, inner: SourceFile, listed_bytes: int, tally: Tally) -> None:
        self._inner = inner
        self._left = listed_bytes
        self._tally = tally
        tally.bytes_done -= listed_bytes

    @property
    def size(self) -> int:
        return self._inner.size

    @property
    def holes(self) -> tuple[tuple[int, int], ...]:
        return self._inner.holes

    def readinto(self, buffer: memoryview) -> int:
        count = self._inner.readinto(buffer)
        counted = min(count, self._left)
        self._left -= counted
        self._tally.bytes_done += counted
        return count

    def changed(self) -> bool:
        return self._inner.changed()

    def close(self) -> None:
        self._tally.bytes_done += self._left
        self._left = 0
        self._inner.close()


class MeasuredSink:
    """A `TreeSink` that counts."""

    def __init__(self, inner: TreeSink, tally: Tally) -> None:
        """Stand in front of `inner`."""
        self._inner = inner
        self._tally = tally

    def put(self, entry: Entry, pieces: Iterator[bytes | memoryview]) -> tuple[Problem, ...]:
        """See `TreeSink`."""
        problems = self._inner.put(entry, self._counted(pieces))
        if entry.kind is Kind.FILE:
            self._tally.files_done += 1
            self._tally.bytes_done += entry.size - data_bytes(entry)
        self._tally.problems += len(problems)
        return problems

    def finish(self) -> tuple[Problem, ...]:
        """See `TreeSink`."""
        return self._inner.finish()

    def _counted(self, pieces: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        for piece in pieces:
            self._tally.bytes_done += len(piece)
            yield piece


class MeasuredStore:
    """A `VaultStore` that counts packs by where they are."""

    def __init__(self, inner: VaultStore, tally: Tally) -> None:
        """Stand in front of `inner`."""
        self._inner = inner
        self._tally = tally
        self._spooled: dict[str, int] = {}

    async def open_session(
        self, mode: Literal["append", "read"], backup_set: str, session_header: bytes | None
    ) -> Opened | Refusal:
        """See `VaultStore`."""
        return await self._inner.open_session(mode, backup_set, session_header)

    async def have(self, ids: Sequence[bytes]) -> Sequence[bool] | Refusal:
        """See `VaultStore`."""
        return await self._inner.have(ids)

    async def put_pack(self, name: str, data: memoryview) -> PackAccepted | Refusal:
        """See `VaultStore`."""
        size_bytes = len(data)
        answer = await self._inner.put_pack(name, data)
        if isinstance(answer, PackAccepted):
            self._tally.sent_bytes += size_bytes
            if answer.state == "spooled":
                self._spooled[name] = size_bytes
                self._tally.spooled_bytes += size_bytes
            else:
                self._tally.stored_bytes += size_bytes
        return answer

    async def pack_states(self, names: Sequence[str]) -> Sequence[int] | Refusal:
        """See `VaultStore`. Only asked when everything was handed over, so it starts the phase `drain`."""
        self._tally.phase = "drain"
        answer = await self._inner.pack_states(names)
        if not isinstance(answer, Refusal):
            for name, state in zip(names, answer, strict=True):
                if state == PACK_STORED and name in self._spooled:
                    size_bytes = self._spooled.pop(name)
                    self._tally.spooled_bytes -= size_bytes
                    self._tally.stored_bytes += size_bytes
        return answer

    async def commit(self, root_blob: bytes, refs: Refs) -> Committed | Missing | Refusal:
        """See `VaultStore`."""
        self._tally.phase = "commit"
        return await self._inner.commit(root_blob, refs)

    async def list_generations(self) -> tuple[GenerationInfo, ...] | Refusal:
        """See `VaultStore`."""
        return await self._inner.list_generations()

    async def read_root(self, generation: str) -> bytes | Refusal:
        """See `VaultStore`."""
        return await self._inner.read_root(generation)

    async def read_receipt(self, generation: str) -> bytes | Refusal | None:
        """See `VaultStore`."""
        return await self._inner.read_receipt(generation)

    async def locate(self, generation: str, ids: Sequence[bytes]) -> Sequence[Location | None] | Refusal:
        """See `VaultStore`."""
        return await self._inner.locate(generation, ids)

    async def read_pack_range(self, name: str, offset: int, length: int) -> bytes | Refusal:
        """See `VaultStore`."""
        return await self._inner.read_pack_range(name, offset, length)

    async def read_session_header(self, session: str) -> bytes | Refusal:
        """See `VaultStore`."""
        return await self._inner.read_session_header(session)

    async def close(self) -> None:
        """See `VaultStore`."""
        await self._inner.close()


def measure_sources(
    roots: Sequence[Root],
    excludes: Excludes,
    *,
    one_file_system: bool,
    own_directories: Sequence[str],
    on_directory: Callable[[], None],
) -> tuple[int, int]:
    """Count regular files and their bytes by a quick walk, for the estimate of the time left; blocking.

    What cannot be listed is not counted: the real walk reports it. `on_directory` may raise to end the walk.
    """
    files = size_bytes = 0
    own = frozenset(identities(own_directories))
    for root in roots:
        with contextlib.suppress(OSError):
            status = os.lstat(root.path)
            if stat.S_ISREG(status.st_mode):
                files, size_bytes = files + 1, size_bytes + status.st_size
            elif stat.S_ISDIR(status.st_mode):
                device = status.st_dev if one_file_system else None
                for size in _sizes(root.path, excludes, device, own, on_directory):
                    files, size_bytes = files + 1, size_bytes + size
    return files, size_bytes


def _sizes(
    root: bytes,
    excludes: Excludes,
    device: int | None,
    own: frozenset[tuple[int, int]],
    on_directory: Callable[[], None],
) -> Iterator[int]:
    """Yield the sizes of the regular files below `root`, on file system `device` only unless that is None."""
    chain = DirectoryChain(root)
    pending: list[list[bytes]] = [[]]
    try:
        while pending:
            parts = pending.pop()
            on_directory()
            with contextlib.suppress(OSError), os.scandir(b"/proc/self/fd/%d" % chain.open(parts)) as found:
                for item in found:
                    status = item.stat(follow_symlinks=False)
                    inner = [*parts, item.name]
                    is_directory = stat.S_ISDIR(status.st_mode)
                    if excludes.excludes(b"/".join(inner), is_directory=is_directory):
                        continue
                    if stat.S_ISREG(status.st_mode):
                        yield status.st_size
                    enters = is_directory and (status.st_dev, status.st_ino) not in own
                    if enters and device in {None, status.st_dev}:
                        pending.append(inner)
    finally:
        chain.close()
