"""Clock port: the only way code asks what time it is.

Cores and domains take `now_s` as an argument; adapters get a Clock passed in. Nothing here sleeps: waiting is
trio's, and follows trio's clock.
"""

from __future__ import annotations

import time
from typing import Protocol

import attrs


class Clock(Protocol):
    """Two readings that must not be mixed."""

    def now_s(self) -> float:
        """Unix time in seconds, may jump in either direction; for dates, expiry and logs."""
        ...

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start, never backwards, not comparable between processes; for durations."""
        ...


@attrs.frozen
class SystemClock:
    """The machine's clocks."""

    def now_s(self) -> float:
        """See Clock."""
        return time.time()

    def monotonic_s(self) -> float:
        """See Clock."""
        return time.monotonic()


@attrs.define
class ManualClock:
    """A clock that moves when told: for simulation, and for programs that replay a recorded time."""

    unix_s: float = 1_700_000_000.0
    elapsed_s: float = 0.0

    def now_s(self) -> float:
        """See Clock."""
        return self.unix_s

    def monotonic_s(self) -> float:
        """See Clock."""
        return self.elapsed_s

    def advance(self, seconds: float) -> None:
        """Move both readings forward by `seconds` (≥ 0)."""
        self.unix_s += seconds
        self.elapsed_s += seconds
