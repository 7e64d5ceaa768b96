"""Waiting until a person or a supervisor asks the program to end."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], object]]:
    """Catch SIGINT and SIGTERM inside; the value waits for the first of them. Handlers are put back at the end.

    Enter it before saying that the program runs: who reads that may ask it to end at once.
    """
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop.wait
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
