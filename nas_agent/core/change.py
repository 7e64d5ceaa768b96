"""Is a file the same as in the last generation? (design §6.15; issue 2: by ctime, inode, size and mtime).

Rules
- Equal ctime, inode, size and mtime mean equal content and metadata; inode numbers may be reused, ctime tells then.
- A file that was written in the instant we read it may change again without a visible change of its times
  ("racy"): it is remembered without a ctime, so the next run reads it again.
- The parent is a stream in manifest order: one merge-join, never a table in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from nas_agent.core.observed import Observed
from wire.vault.entry import Entry, Kind, sort_key

RACY_NS: Final = 20_000_000
"""Kernels stamp files with a clock that ticks every 1 to 10 ms."""
RACY_COARSE_NS: Final = 2_000_000_000
"""File systems with whole (FAT: even) seconds."""
NEVER_CTIME: Final = -1


class Remembered(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A line of the parent: the entry with the stat fields that stay on the NAS."""

    ctime_ns: int
    inode: int
    entry: Entry


def is_unchanged(observed: Observed, remembered: Remembered | None) -> bool:
    """Say whether the content of a regular file can be taken from the parent."""
    if remembered is None or remembered.ctime_ns != observed.ctime_ns:
        return False
    now, then = observed.entry, remembered.entry
    return (
        remembered.inode == observed.inode
        and now.mtime_ns == then.mtime_ns
        and now.size == then.size
        and now.kind == then.kind == Kind.FILE
    )


def trusted_ctime(observed: Observed, read_at_ns: int) -> int:
    """Return the ctime to remember for a file read at `read_at_ns`: NEVER_CTIME if it is racy."""
    coarse = observed.ctime_ns % 1_000_000_000 == 0
    margin = RACY_COARSE_NS if coarse else RACY_NS
    return NEVER_CTIME if observed.ctime_ns + margin >= read_at_ns else observed.ctime_ns


class Parent:
    """Walks the previous generation beside the present walk."""

    def __init__(self, lines: Iterator[Remembered]) -> None:
        """Take the parent's lines in manifest order."""
        self._lines = lines
        self._next: Remembered | None = next(lines, None)
        self._next_key = sort_key(self._next.entry.path) if self._next else b""

    def find(self, path: bytes) -> Remembered | None:
        """Return the parent's line for `path`; paths must be asked for in manifest order."""
        key = sort_key(path)
        while self._next is not None and self._next_key < key:
            self._advance()
        if self._next is None or self._next_key != key:
            return None
        found = self._next
        self._advance()
        return found

    def _advance(self) -> None:
        self._next = next(self._lines, None)
        self._next_key = sort_key(self._next.entry.path) if self._next else b""
