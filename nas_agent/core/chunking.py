"""Where to cut files and how to store a chunk (design §6.1, §6.3).

Rules
- Cut points come from FastCDC with a secret seed per device epoch; pyfastcdc is pinned and held by golden vectors.
- Whether and how hard to compress is decided on a sample, so that data that do not compress cost next to nothing.
- Pure computation that releases the GIL; buffers belong to the caller.
"""

from __future__ import annotations

from typing import Final

import zstandard
from pyfastcdc import FastCDC

from wire.vault.frame import Codec, frame_body

CHUNK_MIN: Final = 64 << 10
CHUNK_AVERAGE: Final = 256 << 10
CHUNK_MAX: Final = 1 << 20
NORMALIZATION: Final = 1

SAMPLE_BYTES: Final = 8 << 10
SAMPLE_RATIO_RAW: Final = 0.98
"""A sample that zstd 1 cannot bring below this share of its size is stored raw."""
SAMPLE_RATIO_FAST: Final = 0.80
"""Above this share the slower level does not pay: level 1 instead of 3."""
LEVEL_FAST: Final = 1
LEVEL_GOOD: Final = 3
KEEP_RATIO: Final = 0.97
"""Compressed chunks above this share of the original are stored raw after all."""


def make_chunker(seed: int) -> FastCDC:
    """Return the chunker of an epoch; `seed` is 1 to 2^63 - 1. Not for use by two threads."""
    return FastCDC(
        CHUNK_AVERAGE, min_size=CHUNK_MIN, max_size=CHUNK_MAX, normalized_chunking=NORMALIZATION, seed=seed
    )


def cut(chunker: FastCDC, data: memoryview, *, at_end: bool) -> list[int]:
    """Return the lengths of the chunks at the start of `data`.

    Unless `at_end`, what follows the last certain cut point is left for the next call (less than CHUNK_MAX bytes):
    call again with those bytes in front.
    """
    lengths: list[int] = [int(chunk.length) for chunk in chunker.cut_buf(data)] if len(data) else []
    if not at_end and lengths and sum(lengths[:-1]) + CHUNK_MAX > len(data):
        lengths.pop()
    return lengths


class Compressor:
    """Chooses the codec and builds the body of frames; one per thread (zstd contexts are reused)."""

    def __init__(self) -> None:
        """Prepare both levels; contexts take a few MiB together."""
        self._fast = zstandard.ZstdCompressor(level=LEVEL_FAST)
        self._good = zstandard.ZstdCompressor(level=LEVEL_GOOD)

    def ratio(self, data: memoryview | bytes) -> float:
        """Return compressed / original size of a sample from the middle of `data`, 1.0 for nothing."""
        start = max(0, (len(data) - SAMPLE_BYTES) // 2)
        sample = data[start : start + SAMPLE_BYTES]
        return len(self._fast.compress(sample)) / len(sample) if len(sample) else 1.0

    def body(self, data: memoryview | bytes) -> bytes:
        """Return the frame body of a chunk (1 to CHUNK_MAX bytes), compressed if that is worth it."""
        ratio = self.ratio(data)
        if ratio < SAMPLE_RATIO_RAW:
            compressor = self._good if ratio < SAMPLE_RATIO_FAST else self._fast
            packed = compressor.compress(data)
            if len(packed) < KEEP_RATIO * len(data):
                return frame_body(Codec.ZSTD, len(data), packed)
        return frame_body(Codec.RAW, len(data), data)
