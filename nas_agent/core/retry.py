"""How long to wait before asking again: exponential back-off with jitter, never beyond what the peer asked for. Pure."""

from __future__ import annotations

from typing import Final

import attrs

FIRST_WAIT_S: Final = 0.5
WAIT_S_MAX: Final = 60.0
_DOUBLINGS_MAX: Final = 16


@attrs.frozen
class Patience:
    """When to give up, on the monotonic clock; `keep_trying_s` counts from the last progress."""

    keep_trying_s: float

    def wait_s(
        self, attempt: int, *, failing_for_s: float, asked_s: float | None, jitter: float
    ) -> float | None:
        """Return seconds to wait before the next attempt, None to give up.

        Args:
            attempt: failures so far, ≥ 1.
            failing_for_s: seconds since the first of these failures.
            asked_s: the peer's Retry-After, up to `WAIT_S_MAX`: it knows better than any back-off, so it is kept, and
                exceeded by at most half, lest all who were told the same come back together.
            jitter: a random number in [0, 1).
        """
        if failing_for_s >= self.keep_trying_s:
            return None
        if asked_s:
            wait = min(asked_s, WAIT_S_MAX) * (1 + jitter / 2)
        else:
            backoff = min(FIRST_WAIT_S * 2.0 ** min(attempt - 1, _DOUBLINGS_MAX), WAIT_S_MAX)
            wait = backoff * (0.5 + jitter / 2)
        return min(wait, self.keep_trying_s - failing_for_s)
