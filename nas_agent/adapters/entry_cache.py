"""The previous generation's entries on the NAS, as a file that is read once from start to end.

Rules: blocks of entries, each compressed and with a checksum, so that a damaged file costs reading the source again and
never puts wrong content into a generation. Written beside, fsynced, then named by the catalogue. One block in memory.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import zstandard

from nas_agent.core.change import Remembered
from runtime.files import fsync_dir

_BLOCK_ENTRIES: Final = 512
_BLOCK_SPANS: Final = 4096
_BLOCK_BYTES_MAX: Final = 64 << 20
_PREFIX: Final = struct.Struct(">II")
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(list[Remembered])


class EntryCacheWriter:
    """Writes the lines of one run; `finish` makes them durable."""

    def __init__(self, path: Path) -> None:
        """Create the file (or empty an abandoned one)."""
        self._path = path
        self._file = path.open("wb", buffering=1 << 16)
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._lines: list[Remembered] = []
        self._spans = 0

    def add(self, line: Remembered) -> None:
        """Append one line; the caller keeps manifest order."""
        self._lines.append(line)
        self._spans += len(line.entry.content)
        if len(self._lines) >= _BLOCK_ENTRIES or self._spans >= _BLOCK_SPANS:
            self._write_block()

    def finish(self) -> None:
        """Write what is left and fsync file and directory."""
        self._write_block()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        fsync_dir(self._path.parent)

    def abandon(self) -> None:
        """Close without keeping anything."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _write_block(self) -> None:
        if self._lines:
            block = self._compressor.compress(_encoder.encode(self._lines))
            self._file.write(_PREFIX.pack(len(block), zlib.crc32(block)) + block)
            self._lines.clear()
            self._spans = 0


def read_entry_cache(path: Path) -> Iterator[Remembered]:
    """Yield the lines of a cache; ends early where the file is missing, truncated or damaged."""
    decompressor = zstandard.ZstdDecompressor()
    try:
        with path.open("rb", buffering=1 << 16) as file:
            while len(prefix := file.read(_PREFIX.size)) == _PREFIX.size:
                length, checksum = _PREFIX.unpack(prefix)
                block = file.read(min(length, _BLOCK_BYTES_MAX))
                if len(block) != length or zlib.crc32(block) != checksum:
                    return
                yield from _decoder.decode(decompressor.decompress(block))
    except (FileNotFoundError, msgspec.MsgspecError, zstandard.ZstdError):
        return
