"""Waiting until a person or a supervisor asks the program to end."""

from __future__ import annotations

import signal
import threading


def wait_for_stop() -> None:
    """Return when the process is asked to end (SIGINT, SIGTERM); handlers are put back."""
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        stop.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
