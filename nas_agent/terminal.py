"""What a person or a program sees of a run: lines on a terminal, or JSON events (U7, U9, U13).

Rules: results go to stdout, progress and problems to stderr; with `--json` everything is one event per line on stdout;
`--quiet` leaves the last line. Only words with a meaning are used: *spooled*, *stored*, *durable* (design §6).
"""

from __future__ import annotations

import time
from typing import Final, TextIO

import msgspec
import trio

from nas_agent.adapters.measure import Tally
from nas_agent.core.estimate import Estimate
from nas_agent.events import AnyEvent, FailureEvent, ProblemEvent, ProgressEvent, WaitingEvent
from nas_agent.texts import text_of

PROGRESS_EVERY_S: Final = 1.0
PROBLEMS_SHOWN_MAX: Final = 200
_CLEAR_LINE: Final = "\r\x1b[K"


class Terminal:
    """Where events go. One per process; called from the main task, `waiting` also from store calls."""

    def __init__(self, out: TextIO, err: TextIO, *, json: bool = False, quiet: bool = False) -> None:
        """Write results to `out` and the rest to `err`; a progress line is redrawn only where `err` is a terminal."""
        self._out = out
        self._err = err
        self._json = json
        self._quiet = quiet
        self._redraws = err.isatty() and not json
        self._line_is_open = False
        self._problems = 0

    def emit(self, event: AnyEvent) -> None:
        """Show one event."""
        if self._json:
            if not (self._quiet and isinstance(event, ProgressEvent | WaitingEvent)):
                self._out.write(msgspec.json.encode(event).decode() + "\n")
                self._out.flush()
            return
        if isinstance(event, ProgressEvent):
            self._show_progress(event)
        elif isinstance(event, ProblemEvent | WaitingEvent):
            self._show_aside(event)
        else:
            self._close_line()
            stream = self._err if isinstance(event, FailureEvent) else self._out
            stream.write(text_of(event) + "\n")
            stream.flush()

    async def follow(self, command: str, tally: Tally) -> None:
        """Show progress once a second until cancelled."""
        estimate = Estimate(began_s=time.monotonic())
        while True:
            await trio.sleep(PROGRESS_EVERY_S)
            now_s = time.monotonic()
            eta_s = estimate.eta_s(now_s, done=tally.bytes_done, total=tally.bytes_total)
            self.emit(_progress(command, tally, estimate.elapsed_s(now_s), eta_s))

    def _show_progress(self, event: ProgressEvent) -> None:
        if self._quiet:
            return
        text = text_of(event)
        self._err.write(f"{_CLEAR_LINE}{text}" if self._redraws else f"{text}\n")
        self._line_is_open = self._redraws
        self._err.flush()

    def _show_aside(self, event: ProblemEvent | WaitingEvent) -> None:
        if isinstance(event, ProblemEvent):
            self._problems += 1
            if self._problems > PROBLEMS_SHOWN_MAX:
                return
        elif self._quiet:
            return
        self._close_line()
        self._err.write(text_of(event) + "\n")
        self._err.flush()

    def _close_line(self) -> None:
        if self._line_is_open:
            self._err.write(_CLEAR_LINE)
            self._line_is_open = False


def _progress(command: str, tally: Tally, elapsed_s: float, eta_s: float | None) -> ProgressEvent:
    done = tally.bytes_done if tally.bytes_total is None else min(tally.bytes_done, tally.bytes_total)
    return ProgressEvent(
        command=command,
        phase=tally.phase,
        elapsed_s=round(elapsed_s, 3),
        eta_s=None if eta_s is None else round(eta_s, 1),
        files_total=tally.files_total,
        files_done=tally.files_done,
        files_unchanged=max(tally.files_done - tally.files_read, 0) if command == "backup" else 0,
        bytes_total=tally.bytes_total,
        bytes_done=max(done, 0),
        sent_bytes=tally.sent_bytes,
        spooled_bytes=tally.spooled_bytes,
        stored_bytes=tally.stored_bytes,
        problems=tally.problems,
    )
