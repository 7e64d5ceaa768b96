"""One program running on a host of the lab: its log, its end, and what it used.

The program's output goes to a file, so that a chatty program never blocks on a full pipe and its last words survive
it. `nsenter` stands between: it is the child that Python waits for; `pid` is the program itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

from firmware_sim.lab.errors import ProcessEndedError
from firmware_sim.lab.memory import Usage, children_of, read_usage

POLL_S = 0.01
START_TIMEOUT_S = 10.0
LOG_TAIL_BYTES = 2000


class Process:
    """A started program. Not thread-safe, except that sampling may run beside anything else."""

    def __init__(self, name: str, launcher: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.log = log
        self._launcher = launcher
        self._scanned_bytes = 0
        self._last: Usage | None = None
        self._sampling = threading.Lock()
        self.pid = self._find_program()

    def _find_program(self) -> int:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            children = children_of(self._launcher.pid)
            if children:
                return children[0]
            if self._launcher.poll() is not None:
                # Ended before we could look; its log and exit status still tell the story.
                return self._launcher.pid
            time.sleep(POLL_S / 10)
        raise self._ended(f"not started within {START_TIMEOUT_S:.0f} s")

    @property
    def alive(self) -> bool:
        """Tell whether the program runs."""
        return self._launcher.poll() is None

    @property
    def exit_status(self) -> int | None:
        """Return the exit status, negative = the signal that ended it; None while it runs."""
        return self._launcher.poll()

    def output(self) -> str:
        """Return everything the program has written so far, undecodable bytes replaced."""
        return self.log.read_text("utf-8", "replace")

    def wait(self, timeout_s: float) -> int:
        """Wait for the end and return the exit status, negative = the signal that ended it.

        Raises:
            ProcessEndedError: it still runs after `timeout_s`.
        """
        try:
            return self._launcher.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise self._ended(f"still running after {timeout_s} s") from error

    def wait_for_line(self, pattern: str, timeout_s: float) -> str:
        """Wait for a line that matches a regular expression and return the line.

        Each call looks at the lines after the one it returned last, so that a restart message can be awaited twice.

        Raises:
            ProcessEndedError: the program ended, or `timeout_s` passed, without such a line.
        """
        expression = re.compile(pattern)
        deadline = time.monotonic() + timeout_s
        while True:
            ended = not self.alive
            line = self._next_match(expression)
            if line is not None:
                return line
            if ended:
                raise self._ended(f"ended with {self.exit_status} before a line matched {pattern!r}")
            if time.monotonic() > deadline:
                raise self._ended(f"no line matched {pattern!r} within {timeout_s} s")
            time.sleep(POLL_S)

    def _next_match(self, expression: re.Pattern[str]) -> str | None:
        with self.log.open("rb") as file:
            file.seek(self._scanned_bytes)
            for line in file:
                if not line.endswith(b"\n") and self.alive:
                    return None
                self._scanned_bytes += len(line)
                text = line.decode("utf-8", "replace").rstrip("\n")
                if expression.search(text):
                    return text
        return None

    def terminate(self, timeout_s: float = 10.0) -> int:
        """Ask the program to end (SIGTERM), kill it after `timeout_s`, and return the exit status."""
        self.signal(signal.SIGTERM)
        try:
            return self._launcher.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """End the program at once (SIGKILL), as a crash would, and return the exit status."""
        self.signal(signal.SIGKILL)
        return self._launcher.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program itself; nothing happens when it has ended."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def usage(self) -> Usage | None:
        """Return what the program uses now, or what it used when last seen alive; None if it was never seen."""
        with self._sampling:
            now = read_usage(self.pid) if self.alive else None
            if now is not None:
                self._last = now
            return self._last

    def _ended(self, what: str) -> ProcessEndedError:
        tail = self.log.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace")
        return ProcessEndedError(f"{self.name}: {what}; last output:\n{tail}")
