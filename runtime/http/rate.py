"""Minimum rates: a peer that is slow on purpose must not hold a connection, a spool or a download.

Only the time spent waiting for the peer counts; the time that our side takes never does.
"""

from __future__ import annotations

from types import TracebackType

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

    def wait(self) -> _Wait:
        """Bound the enclosed wait (`with`); raises TooSlowError when the allowance is used up."""
        return _Wait(self)

    def moved(self, size_bytes: int) -> None:
        """Count bytes that the peer gave or took."""
        self.moved_bytes += size_bytes


class _Wait:
    """A context manager by hand: it stands around every read and write."""

    __slots__ = ("_scope", "_start", "_watch")

    def __init__(self, watch: RateWatch) -> None:
        self._watch = watch

    def __enter__(self) -> None:
        self._start = trio.current_time()
        self._scope = trio.CancelScope(deadline=self._start + max(0.0, self._watch.allowed_s()))
        self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool:
        swallowed = bool(self._scope.__exit__(kind, exc, trace))
        self._watch.waited_s += trio.current_time() - self._start
        if self._scope.cancelled_caught:
            raise TooSlowError
        return swallowed
