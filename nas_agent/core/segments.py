"""Solid segments: many small files share one chunk (design §6.1).

Rules
- Two segments grow side by side, one for content that compresses and one for content that does not.
- A segment ends after a file chosen by a hash of its path, or when full: the same files give the same segments again,
  and one changed file disturbs its own segment and no more than the next.
"""

from __future__ import annotations

import zlib
from typing import Final

SMALL_FILE_MAX: Final = 64 << 10
SEGMENT_BYTES_MIN: Final = 512 << 10
SEGMENT_BYTES_MAX: Final = (1 << 20) - SMALL_FILE_MAX
_CUT_MASK: Final = 0x1F
SAMPLE_BYTES: Final = 2 << 10


class Segment:
    """One growing segment. `buffer` has room for the largest small file behind `length`."""

    def __init__(self) -> None:
        """Allocate the buffer once; `take` empties it for reuse."""
        self.buffer = bytearray(SEGMENT_BYTES_MAX + SMALL_FILE_MAX)
        self.length = 0

    def room(self, size: int) -> memoryview:
        """Return the place for the next `size` bytes (≤ SMALL_FILE_MAX)."""
        return memoryview(self.buffer)[self.length : self.length + size]

    def append(self, size: int) -> int:
        """Keep `size` bytes that were put into `room`; return their offset in the segment."""
        offset = self.length
        self.length += size
        return offset

    def is_complete(self, path: bytes) -> bool:
        """Say whether the segment ends after the file at `path`."""
        if self.length >= SEGMENT_BYTES_MAX:
            return True
        return self.length >= SEGMENT_BYTES_MIN and not zlib.crc32(path) & _CUT_MASK

    def take(self) -> bytes:
        """Return the content and start an empty segment."""
        data = bytes(memoryview(self.buffer)[: self.length])
        self.length = 0
        return data
