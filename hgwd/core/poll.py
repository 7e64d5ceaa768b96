"""When to poll next: the carrier's interval with jitter, backoff after failures, `Retry-After` obeyed (JNT-33).

Pure: randomness comes in as a number.
"""

from __future__ import annotations

from typing import Final

import attrs

BACKOFF_FIRST_S: Final = 5.0
BACKOFF_DOUBLINGS_MAX: Final = 10
JITTER_DEFAULT: Final = 0.2
RETRY_AFTER_S_MAX: Final = 24 * 3600.0


@attrs.frozen
class PollPlan:
    """Interval in force and failures in a row."""

    poll_s: float
    jitter: float = JITTER_DEFAULT
    failures: int = 0

    def after_success(self, poll_s: float, jitter: float) -> PollPlan:
        """The carrier answered; its interval holds."""
        return PollPlan(poll_s, jitter)

    def after_failure(self) -> PollPlan:
        """The line or the carrier failed once more."""
        return attrs.evolve(self, failures=self.failures + 1)

    def delay_s(self, chance: float, retry_after_s: float | None = None) -> float:
        """Return seconds to the next poll; `chance` is uniform in [0, 1).

        Failures wait 5, 10, 20 … seconds up to the interval, spread over half of it, so that a fleet that lost its
        carrier does not come back at once. `retry_after_s` is a floor, up to a day.
        """
        floor_s = min(retry_after_s or 0.0, RETRY_AFTER_S_MAX)
        if self.failures:
            doublings = min(self.failures - 1, BACKOFF_DOUBLINGS_MAX)
            backoff_s = min(self.poll_s, BACKOFF_FIRST_S * float(1 << doublings))
            return max(floor_s, backoff_s * (0.5 + chance / 2))
        return max(floor_s, self.poll_s * (1 + self.jitter * (2 * chance - 1)))
