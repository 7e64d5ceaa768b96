"""A wake-up that cannot be missed: take a ticket, look for work, wait on the ticket."""

from __future__ import annotations

import trio


class Wake:
    """Wakes every holder of a ticket taken before `set`. For tasks of one trio loop."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def ticket(self) -> trio.Event:
        """Return what to wait on; take it before looking for work."""
        return self._event

    def set(self) -> None:
        """Wake all waiting; later tickets wait for the next call."""
        self._event.set()
        self._event = trio.Event()
