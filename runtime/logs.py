"""JSON lines to one stream: one event per line, bounded, without secrets.

Rules: the event name is a constant in snake_case, facts are fields. Values under a key that names a secret
are replaced, long values are cut, the line has a size limit, and a failing stream never fails the program; a
pipe that nobody reads never stops it either: lines are then dropped and counted.
(structlog would import asyncio into the gateway's always-on process.) Cores and libraries do not log.
"""

from __future__ import annotations

import datetime as dt
import re
import select
import sys
from collections.abc import Mapping
from typing import BinaryIO

import attrs
import msgspec

from runtime.clock import Clock, SystemClock

VALUE_CHARS_MAX = 2048
SHORT_VALUE_CHARS_MAX = 120
LINE_BYTES_MAX = select.PIPE_BUF
"""What a writable pipe takes at once: a longer line could block the whole program."""
DEPTH_MAX = 4
ITEMS_MAX = 64
REDACTED = "***"

_SECRET_WORDS = frozenset(
    [
        "token",
        "tokens",
        "password",
        "passwd",
        "passphrase",
        "secret",
        "secrets",
        "key",
        "keys",
        "cookie",
        "authorization",
        "credential",
        "credentials",
        "pin",
        "proof",
        "digits",
        "seed",
        "private",
    ]
)
_HARMLESS_SUFFIXES = ("_file", "_path", "_s", "_bytes", "_max", "_count", "_id", "_sha256", "_public")
_WORD = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])")


def is_secret_name(name: str) -> bool:
    """Tell whether a field called `name` would hold a secret: one of its words is, and it is no path, size or public key."""
    lowered = name.lower()
    if lowered.endswith(_HARMLESS_SUFFIXES):
        return False
    words = {word.lower() for word in _WORD.split(name)}
    return "public" not in words and not _SECRET_WORDS.isdisjoint(words)


def redact(value: object, *, depth: int = 0, value_chars_max: int = VALUE_CHARS_MAX) -> object:
    """Return `value` fit for a log: secrets replaced, strings, lists and nesting cut to their limits."""
    if isinstance(value, bool | int | float) or value is None:
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if depth >= DEPTH_MAX:
        return "…"
    if isinstance(value, Mapping):
        return {
            str(key): REDACTED
            if is_secret_name(str(key))
            else redact(item, depth=depth + 1, value_chars_max=value_chars_max)
            for key, item in list(value.items())[:ITEMS_MAX]
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [
            redact(item, depth=depth + 1, value_chars_max=value_chars_max) for item in list(value)[:ITEMS_MAX]
        ]
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= value_chars_max else text[: value_chars_max - 1] + "…"


@attrs.frozen
class Logger:
    """Writes events of one program part. `bind` adds facts to every later line of the returned logger."""

    name: str
    stream: BinaryIO | None = None
    clock: Clock = attrs.field(factory=SystemClock)
    bound: Mapping[str, object] = attrs.field(factory=dict)
    _dropped: list[int] = attrs.field(factory=lambda: [0])

    def bind(self, **fields: object) -> Logger:
        """Return a logger whose lines also carry `fields`."""
        return attrs.evolve(self, bound={**self.bound, **fields})

    def info(self, event: str, /, **fields: object) -> None:
        """Something happened as it should."""
        self._write("info", event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Something was refused or degraded; the program goes on by itself."""
        self._write("warning", event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Something that a human should look at."""
        self._write("error", event, fields)

    def _write(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        now_s = self.clock.now_s()
        if self._dropped[0]:
            lost = {"lines": self._dropped[0]}
            if self._emit(encode_line(now_s, "warning", self.name, "log_lines_dropped", lost)):
                self._dropped[0] = 0
        if not self._emit(encode_line(now_s, level, self.name, event, {**self.bound, **fields})):
            self._dropped[0] += 1

    def _emit(self, line: bytes) -> bool:
        stream = self.stream or sys.stdout.buffer
        try:
            if not _takes_a_line(stream):
                return False
            stream.write(line)
            stream.flush()
        except (OSError, ValueError):
            return False  # nobody reads the log any more: the program's work matters more
        return True


def encode_line(now_s: float, level: str, logger: str, event: str, fields: Mapping[str, object]) -> bytes:
    """Encode one log line, ending in a newline, at most LINE_BYTES_MAX long; secrets are replaced."""
    instant = dt.datetime.fromtimestamp(now_s, dt.UTC)
    head = {
        "time": instant.isoformat(timespec="milliseconds"),
        "level": level,
        "logger": logger,
        "event": event,
    }
    for value_chars_max in (VALUE_CHARS_MAX, SHORT_VALUE_CHARS_MAX):
        body = redact(dict(fields), value_chars_max=value_chars_max)
        line = msgspec.json.encode({**head, **body, **head} if isinstance(body, dict) else head)
        if len(line) < LINE_BYTES_MAX:
            return line + b"\n"
    return msgspec.json.encode({**head, "cut": f"line of {len(line)} bytes, limit {LINE_BYTES_MAX}"}) + b"\n"


def _takes_a_line(stream: BinaryIO) -> bool:
    """Tell whether a write would not block; true for what has no descriptor (memory)."""
    try:
        poller = select.poll()
        poller.register(stream.fileno(), select.POLLOUT)
    except (OSError, ValueError, AttributeError):
        return True
    return bool(poller.poll(0))


def get_logger(name: str, *, stream: BinaryIO | None = None, clock: Clock | None = None) -> Logger:
    """Return the logger called `name`; without `stream` it writes to standard output as it is at that moment."""
    return Logger(name, stream, clock or SystemClock())
