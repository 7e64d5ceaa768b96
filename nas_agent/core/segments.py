"""Solid segments: many small files share one chunk (design §6.1).

Rules
- Two segments grow side by side, one for content that compresses and one for content that does not.
- A segment ends after a file chosen by a hash of its path, or when full: the same files give the same segments again,
  and one changed file disturbs its own segment and no more than the next.
"""

from __future__ import annotations

import math
import zlib
from typing import Final

from nas_agent.core.buffers import make_buffer

SMALL_FILE_MAX: Final = 64 << 10
SEGMENT_BYTES_MIN: Final = 512 << 10
SEGMENT_BYTES_MAX: Final = (1 << 20) - SMALL_FILE_MAX
_CUT_MASK: Final = 0x1F
SAMPLE_BYTES: Final = 256
SAMPLE_BYTES_MIN: Final = 64
"""Smaller files go with the compressible ones: nothing can be told from so few bytes."""
_RANDOM_SHARE: Final = 0.85
_DISTINCT_IF_RANDOM: Final = tuple(
    _RANDOM_SHARE * 256 * (1 - math.exp(-length / 256)) for length in range(SAMPLE_BYTES + 1)
)


def looks_random(data: memoryview) -> bool:
    """Say whether a small file's content looks compressed or encrypted, by the distinct byte values in a sample.

    Only decides which segment the file joins; cheaper than trying to compress it, and does not give up the GIL.
    """
    start = max(0, (len(data) - SAMPLE_BYTES) // 2)
    sample = data[start : start + SAMPLE_BYTES]
    return len(sample) >= SAMPLE_BYTES_MIN and len(set(sample)) > _DISTINCT_IF_RANDOM[len(sample)]


class Segment:
    """One growing segment, with room for the largest small file behind `length`."""

    def __init__(self) -> None:
        """Allocate the buffer once; `take` empties it for reuse."""
        self._buffer = make_buffer(SEGMENT_BYTES_MAX + SMALL_FILE_MAX)
        self.length = 0

    def room(self, size: int) -> memoryview:
        """Return the place for the next `size` bytes (≤ SMALL_FILE_MAX)."""
        return self._buffer[self.length : self.length + size]

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
        data = bytes(self._buffer[: self.length])
        self.length = 0
        return data
