"""The time left, from what was done so far: never negative, never beyond 100 % (U9). Pure."""

from __future__ import annotations

from typing import Final

import attrs

WARM_UP_S: Final = 2.0
WINDOW_S: Final = 30.0


@attrs.define
class Estimate:
    """Keeps the rate over the last `WINDOW_S` seconds; times are of one monotonic clock."""

    began_s: float
    _marks: list[tuple[float, int]] = attrs.field(factory=list)

    def elapsed_s(self, now_s: float) -> float:
        """Return seconds since the beginning."""
        return max(now_s - self.began_s, 0.0)

    def eta_s(self, now_s: float, *, done: int, total: int | None) -> float | None:
        """Return the seconds left for `total - done` units at the recent rate, None while nobody can know."""
        self._marks.append((now_s, done))
        while len(self._marks) > 2 and self._marks[1][0] <= now_s - WINDOW_S:
            self._marks.pop(0)
        if total is None or self.elapsed_s(now_s) < WARM_UP_S:
            return None
        if done >= total:
            return 0.0
        since_s, since_done = self._marks[0] if len(self._marks) > 2 else (self.began_s, 0)
        rate = (done - since_done) / max(now_s - since_s, 1e-9)
        return (total - done) / rate if rate > 0 else None
