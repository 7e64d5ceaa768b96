"""Minimum rates: a peer that is slow on purpose must not hold a connection, a spool or a download.

Only the time spent waiting for the peer counts; the time that our side takes never does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import attrs
import trio


class TooSlowError(Exception):
    """The peer stayed below the minimum rate; callers turn this into their own kind of error."""


@attrs.define
class RateWatch:
    """Waiting allowed so far: `grace_s` + bytes moved ÷ `rate_bytes_per_s`."""

    grace_s: float
    rate_bytes_per_s: float
    moved_bytes: int = 0
    waited_s: float = 0.0

    def allowed_s(self) -> float:
        """Seconds that the peer may still keep us waiting."""
        return self.grace_s + self.moved_bytes / self.rate_bytes_per_s - self.waited_s

    @contextlib.contextmanager
    def wait(self) -> Iterator[None]:
        """Bound the enclosed wait; raises TooSlowError when the allowance is used up."""
        start = trio.current_time()
        with trio.move_on_after(max(0.0, self.allowed_s())) as scope:
            yield
        self.waited_s += trio.current_time() - start
        if scope.cancelled_caught:
            raise TooSlowError

    def moved(self, size_bytes: int) -> None:
        """Count bytes that the peer gave or took."""
        self.moved_bytes += size_bytes
