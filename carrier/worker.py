"""The one place where blocking carrier code (SQL, blob files) meets trio: a bounded set of threads.

Rules: no other carrier module calls `trio.to_thread`. A cancelled caller waits until its call is over, so that a
transaction's outcome is never unknown to us.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import trio

WORKER_THREADS_MAX = 12
"""Below `POOL_SIZE`, so that no call waits for a connection."""

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """Runs synchronous calls in threads behind one limiter."""

    def __init__(self, threads_max: int = WORKER_THREADS_MAX) -> None:
        self._limiter = trio.CapacityLimiter(threads_max)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return `call(*args, **kwargs)`, run in a worker thread."""
        return await trio.to_thread.run_sync(lambda: call(*args, **kwargs), limiter=self._limiter)
