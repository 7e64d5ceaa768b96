"""What a software writes, kept within a quota: two files of `FILE_BYTES_MAX`, and a rate above which bytes are dropped."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

FILE_BYTES_MAX: Final = 64 * 1024
RATE_BYTES_PER_S: Final = 16 * 1024
BURST_BYTES: Final = 64 * 1024


class PackageLog:
    """The log of one software. Not fsynced: it is for people, a power cut may cost the last lines."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self._older: Final = path.with_suffix(".1")
        self._allowance_bytes: float = BURST_BYTES
        self._filled_s: float | None = None
        self._dropped_bytes = 0

    def write(self, data: bytes, now_s: float) -> None:
        """Append what the quota allows of `data`; `now_s` is monotonic."""
        if self._filled_s is not None:
            refill = (now_s - self._filled_s) * RATE_BYTES_PER_S
            self._allowance_bytes = min(BURST_BYTES, self._allowance_bytes + refill)
        self._filled_s = now_s
        kept = data[: int(self._allowance_bytes)]
        self._allowance_bytes -= len(kept)
        self._dropped_bytes += len(data) - len(kept)
        if not kept:
            return
        if self._dropped_bytes and len(kept) == len(data):
            kept = b"[%d bytes dropped: log quota]\n" % self._dropped_bytes + kept
            self._dropped_bytes = 0
        self._rotate(len(kept))
        with self._path.open("ab") as file:
            file.write(kept)

    def tail(self, max_bytes: int) -> str:
        """Return the newest `max_bytes` bytes; undecodable ones escaped."""
        data = b""
        for path in (self._older, self._path):
            with contextlib.suppress(FileNotFoundError):
                data += path.read_bytes()
        return data[-max_bytes:].decode("utf-8", "backslashreplace")

    def remove(self) -> None:
        """Remove both files. Idempotent."""
        for path in (self._path, self._older):
            path.unlink(missing_ok=True)

    def _rotate(self, coming_bytes: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_size + coming_bytes > FILE_BYTES_MAX:
                self._path.rename(self._older)
