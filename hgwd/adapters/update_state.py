"""What the update service itself remembers: signed time, report counter, monthly bytes, ETag of the document.

One small file, replaced atomically. Losing it costs one unconditional poll and one time request, never safety: the
report counter also follows the clock.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Final

import msgspec

from runtime.files import write_atomic

FILE: Final = "update.json"
_JST: Final = dt.timezone(dt.timedelta(hours=9))


class UpdateMemory(msgspec.Struct, kw_only=True):
    """The content of the file. `month` is "2026-11" in JST; `reported` is a digest of the last report's content."""

    v: int = 1
    signed_time_s: float | None = None
    counter: int = 0
    reported: str = ""
    reported_at_s: float = 0.0
    month: str = ""
    month_bytes: int = 0
    bytes_down: int = 0
    etag: str | None = None
    gateway: str = ""

    def count_bytes(self, size_bytes: int, now_s: float) -> int:
        """Add received bytes to the month of `now_s`; return the month's total."""
        month = dt.datetime.fromtimestamp(now_s, _JST).strftime("%Y-%m")
        if month != self.month:
            self.month, self.month_bytes = month, 0
        self.month_bytes += size_bytes
        self.bytes_down += size_bytes
        return self.month_bytes

    def next_counter(self, now_s: float) -> int:
        """Return a counter above every earlier one, also if this file was lost: it follows the clock."""
        self.counter = max(self.counter + 1, int(now_s))
        return self.counter


def load_memory(directory: Path) -> UpdateMemory:
    """Return what was remembered; a missing or damaged file is an empty memory."""
    try:
        return msgspec.json.decode((directory / FILE).read_bytes(), type=UpdateMemory)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return UpdateMemory()


def save_memory(directory: Path, memory: UpdateMemory) -> None:
    """Write the memory; durable when this returns. Blocking."""
    write_atomic(directory / FILE, msgspec.json.encode(memory), mode=0o600)
