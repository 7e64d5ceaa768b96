"""Large work buffers that take memory only where they were written to."""

from __future__ import annotations

import mmap


def make_buffer(size_bytes: int) -> memoryview:
    """Return a writable, zeroed buffer; its pages appear on first use (a `bytearray` would touch all at once)."""
    return memoryview(mmap.mmap(-1, size_bytes))
