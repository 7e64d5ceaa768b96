"""When a software that ended is started again: backoff, and a limit that ends a crash loop.

Pure: times in, decision out. It does not start anything.
"""

from __future__ import annotations

from typing import Final

import attrs

RESTARTS_MAX: Final = 5
WINDOW_S: Final = 600.0
BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 60.0


@attrs.frozen
class RestartHistory:
    """Ends of one software, newest last, as monotonic seconds; at most `RESTARTS_MAX` are kept."""

    ended_s: tuple[float, ...] = ()

    def after_end(self, now_s: float) -> RestartHistory:
        """Return the history with one more end at `now_s`."""
        recent = tuple(at for at in self.ended_s if now_s - at < WINDOW_S)
        return RestartHistory((*recent, now_s)[-RESTARTS_MAX - 1 :])

    @property
    def is_crash_loop(self) -> bool:
        """More than `RESTARTS_MAX` ends within `WINDOW_S`: no further start before something changes."""
        return len(self.ended_s) > RESTARTS_MAX

    @property
    def delay_s(self) -> float:
        """Seconds to wait before the next start: 1, 2, 4 … up to a minute."""
        return min(BACKOFF_MAX_S, BACKOFF_FIRST_S * float(1 << max(0, len(self.ended_s) - 1)))
