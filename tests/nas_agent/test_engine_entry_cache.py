"""The entry cache never gives back what was not written, whatever happened to its file."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import zstandard

from nas_agent.adapters.entry_cache import EntryCacheWriter, read_entry_cache
from nas_agent.core.change import Remembered
from wire.vault.entry import Entry, Kind, Span

LINES = [
    Remembered(
        number,
        number + 1,
        Entry(
            path=b"%06d" % number,
            kind=Kind.FILE,
            mode=0o600,
            uid=1,
            gid=2,
            mtime_ns=-3,
            size=10,
            content=(Span(b"\x07" * 32, number, 10),),
        ),
    )
    for number in range(1500)
]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    writer = EntryCacheWriter(tmp_path / "cache")
    for line in LINES:
        writer.add(line)
    writer.finish()
    return tmp_path / "cache"


def test_lines_come_back_in_order(cache: Path) -> None:
    assert list(read_entry_cache(cache)) == LINES


def test_a_truncated_cache_gives_the_whole_blocks_before_the_cut(cache: Path) -> None:
    cache.write_bytes(cache.read_bytes()[:-1])
    found = list(read_entry_cache(cache))
    assert found == LINES[: len(found)]
    assert 0 < len(found) < len(LINES)


def test_a_block_that_decodes_but_is_not_the_one_written_ends_the_cache(cache: Path) -> None:
    data = cache.read_bytes()
    length, checksum = struct.unpack_from(">II", data)
    plain = zstandard.ZstdDecompressor().decompress(data[8 : 8 + length])
    altered = zstandard.ZstdCompressor().compress(plain.replace(b"\x07" * 32, b"\x08" * 32))
    cache.write_bytes(struct.pack(">II", len(altered), checksum) + altered + data[8 + length :])
    assert list(read_entry_cache(cache)) == []


def test_a_missing_cache_is_empty_and_an_abandoned_one_is_gone(tmp_path: Path) -> None:
    assert list(read_entry_cache(tmp_path / "none")) == []
    writer = EntryCacheWriter(tmp_path / "cache")
    writer.add(LINES[0])
    writer.abandon()
    assert list(tmp_path.iterdir()) == []
