"""The manifest as a stream: records in order, cut into chunks, and read back (vault-format.md §7).

Rules
- The writer cuts after records chosen by a hash of their path, so that a change moves few cut points.
- The reader takes bytes in any pieces, gives entries, and refuses disorder, repetition and orphans.
- It does not do: encryption, storage, or holding a manifest in memory; both sides keep one cut or record at most.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final

from wire.errors import FormatError
from wire.vault.entry import RECORD_BYTES_MAX, Entry, Kind, decode_entry, encode_entry, sort_key
from wire.vault.root import MANIFEST_CHUNK_BYTES_MAX, MANIFEST_ITEMS_MAX

CUT_BYTES_MIN: Final = 64 << 10
CUT_BYTES_MAX: Final = 512 << 10
_CUT_MASK: Final = 0x3FF
_PREFIX: Final = struct.Struct(">I")
_ITEM: Final = struct.Struct(">32sI")
LIST_CHUNK_ITEMS: Final = 4096
"""Items per chunk of a chunk list; 4096 × 36 bytes."""


class ManifestWriter:
    """Collects entries and gives back chunks of the stream."""

    def __init__(self) -> None:
        """Start an empty stream; `total_bytes` is its length so far."""
        self._buffer = bytearray()
        self.total_bytes = 0

    def add(self, entry: Entry) -> list[bytes]:
        """Append one entry (the caller keeps the order) and return the chunks that are now complete."""
        record = encode_entry(entry)
        self._buffer += _PREFIX.pack(len(record))
        self._buffer += record
        size = len(self._buffer)
        if size < CUT_BYTES_MIN or (size < CUT_BYTES_MAX and zlib.crc32(entry.path) & _CUT_MASK):
            return []
        return self.finish()

    def finish(self) -> list[bytes]:
        """Return what is left, as chunks."""
        data = bytes(self._buffer)
        self._buffer.clear()
        self.total_bytes += len(data)
        step = MANIFEST_CHUNK_BYTES_MAX
        return [data[start : start + step] for start in range(0, len(data), step)]


class ManifestReader:
    """Turns the bytes of a manifest into entries, checking what one record alone cannot show."""

    def __init__(self) -> None:
        """Start before the first byte."""
        self._rest = bytearray()
        self._last_key: bytes | None = None
        self._parents: list[bytes] = []
        self.total_bytes = 0

    def feed(self, data: bytes) -> Iterator[Entry]:
        """Yield the entries completed by `data`.

        Raises `FormatError` for a malformed record, one out of order, or one whose parent is no earlier directory.
        """
        self._rest += data
        self.total_bytes += len(data)
        start = 0
        while len(self._rest) - start >= _PREFIX.size:
            (length,) = _PREFIX.unpack_from(self._rest, start)
            if not 0 < length <= RECORD_BYTES_MAX:
                message = f"manifest: expected a record of 1 to {RECORD_BYTES_MAX} bytes, got {length}"
                raise FormatError(message)
            end = start + _PREFIX.size + length
            if end > len(self._rest):
                break
            entry = decode_entry(bytes(self._rest[start + _PREFIX.size : end]))
            self._check_place(entry)
            start = end
            yield entry
        del self._rest[:start]

    def finish(self) -> None:
        """Raise `FormatError` if the stream ended inside a record or had no entry at all."""
        if self._rest or self._last_key is None:
            message = f"manifest: ends inside a record ({len(self._rest)} bytes left) or is empty"
            raise FormatError(message)

    def _check_place(self, entry: Entry) -> None:
        key = sort_key(entry.path)
        if self._last_key is None:
            if entry.path or entry.kind is not Kind.DIRECTORY:
                message = "manifest: the first entry is not the root directory"
                raise FormatError(message)
        elif key <= self._last_key:
            message = f"manifest: {entry.path[:80]!r} is out of order or stands twice"
            raise FormatError(message)
        else:
            self._check_parent(entry)
        self._last_key = key
        if entry.kind is Kind.DIRECTORY:
            self._parents.append(entry.path)

    def _check_parent(self, entry: Entry) -> None:
        parent = entry.path.rpartition(b"/")[0]
        while self._parents and self._parents[-1] != parent:
            self._parents.pop()
        if not self._parents:
            message = f"manifest: {entry.path[:80]!r} has no directory above it"
            raise FormatError(message)


def encode_items(items: list[tuple[bytes, int]]) -> bytes:
    """Return a piece of a chunk list: (chunk ID, length) items joined."""
    return b"".join(_ITEM.pack(chunk, length) for chunk, length in items)


def decode_items(data: bytes) -> list[tuple[bytes, int]]:
    """Return the items of one chunk of a chunk list; raises `FormatError`."""
    if not data or len(data) % _ITEM.size:
        message = f"manifest list: expected whole items of {_ITEM.size} bytes, got {len(data)} bytes"
        raise FormatError(message)
    items = [(bytes(chunk), int(length)) for chunk, length in _ITEM.iter_unpack(data)]
    if any(not 0 < length <= MANIFEST_CHUNK_BYTES_MAX for _, length in items):
        message = "manifest list: a chunk length is out of range"
        raise FormatError(message)
    return items


def fits_root(items: list[tuple[bytes, int]]) -> bool:
    """Say whether a chunk list is short enough to stand in the root."""
    return len(items) <= MANIFEST_ITEMS_MAX
