"""JSON lines to one stream: one event per line, bounded, without secrets.

Rules: the event name is a constant in snake_case, facts are fields. Values under a key that names a secret
are replaced, long values are cut, the line has a size limit, and a failing stream never fails the program.
(structlog would import asyncio into the gateway's always-on process.) Cores and libraries do not log.
"""

from __future__ import annotations

import datetime as dt
import re
import sys
from collections.abc import Mapping
from typing import BinaryIO

import attrs
import msgspec

from runtime.clock import Clock, SystemClock

VALUE_CHARS_MAX = 2048
LINE_BYTES_MAX = 16 * 1024
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


def redact(value: object, *, depth: int = 0) -> object:
    """Return `value` fit for a log: secrets replaced, strings, lists and nesting cut to their limits."""
    if isinstance(value, bool | int | float) or value is None:
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if depth >= DEPTH_MAX:
        return "…"
    if isinstance(value, Mapping):
        return {
            str(key): REDACTED if is_secret_name(str(key)) else redact(item, depth=depth + 1)
            for key, item in list(value.items())[:ITEMS_MAX]
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item, depth=depth + 1) for item in list(value)[:ITEMS_MAX]]
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= VALUE_CHARS_MAX else text[: VALUE_CHARS_MAX - 1] + "…"


@attrs.frozen
class Logger:
    """Writes events of one program part. `bind` adds facts to every later line of the returned logger."""

    name: str
    stream: BinaryIO | None = None
    clock: Clock = attrs.field(factory=SystemClock)
    bound: Mapping[str, object] = attrs.field(factory=dict)

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
        line = encode_line(self.clock.now_s(), level, self.name, event, {**self.bound, **fields})
        stream = self.stream or sys.stdout.buffer
        try:
            stream.write(line)
            stream.flush()
        except (OSError, ValueError):
            return  # nobody reads the log any more: the program's work matters more


def encode_line(now_s: float, level: str, logger: str, event: str, fields: Mapping[str, object]) -> bytes:
    """Encode one log line, ending in a newline, at most LINE_BYTES_MAX long; secrets are replaced."""
    instant = dt.datetime.fromtimestamp(now_s, dt.UTC)
    head = {
        "time": instant.isoformat(timespec="milliseconds"),
        "level": level,
        "logger": logger,
        "event": event,
    }
    body = redact(fields)
    line = msgspec.json.encode({**head, **body, **head} if isinstance(body, dict) else head)
    if len(line) >= LINE_BYTES_MAX:
        line = msgspec.json.encode({**head, "cut": f"line of {len(line)} bytes, limit {LINE_BYTES_MAX}"})
    return line + b"\n"


def get_logger(name: str, *, stream: BinaryIO | None = None, clock: Clock | None = None) -> Logger:
    """Return the logger called `name`; without `stream` it writes to standard output as it is at that moment."""
    return Logger(name, stream, clock or SystemClock())
