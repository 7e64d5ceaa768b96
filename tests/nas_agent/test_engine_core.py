"""The engine's decisions one by one: segments, codecs, change check, pack limits."""

from __future__ import annotations

import os
import random
import zlib

import pytest

from nas_agent.core.change import (
    NEVER_CTIME,
    Parent,
    Remembered,
    is_unchanged,
    trusted_ctime,
)
from nas_agent.core.chunking import CHUNK_MAX, Compressor
from nas_agent.core.observed import Observed
from nas_agent.core.packing import (
    BUFFER_BYTES,
    FRAMES_PER_PACK_MAX,
    PACK_TARGET_BYTES,
    PackBuilder,
    SessionKeys,
)
from nas_agent.core.segments import (
    SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
    SMALL_FILE_MAX,
    Segment,
    looks_random,
)
from wire.signing import SigningKey
from wire.vault.entry import Entry, Kind, sort_key
from wire.vault.frame import Algorithm, Codec, frame_body
from wire.vault.pack import PACK_BYTES_MAX, verify_pack

TEXT = b"".join(b"%d some words of a log line\n" % number for number in range(40_000))
KEYS = SessionKeys(b"\1" * 16, b"\2" * 32, Algorithm.AES_256_GCM, SigningKey(b"\3" * 32))


@pytest.mark.parametrize("size", [64, 100, 300, 5000])
def test_content_that_does_not_compress_is_told_from_a_sample(size: int) -> None:
    rng = random.Random(size)
    assert looks_random(memoryview(rng.randbytes(size)))
    assert looks_random(memoryview(zlib.compress(rng.randbytes(20_000).hex().encode(), 9)[200 : 200 + size]))
    assert not looks_random(memoryview(TEXT[1000 : 1000 + size]))
    assert not looks_random(memoryview(bytes(size)))
    assert not looks_random(memoryview(b""))


def test_a_chunk_is_stored_in_the_smaller_form() -> None:
    compressor, noise = Compressor(), os.urandom(100_000)
    assert compressor.body(noise)[0] == Codec.RAW
    text = compressor.body(TEXT[:100_000])
    assert text[0] == Codec.ZSTD
    assert len(text) < 30_000
    assert compressor.body(b"x")[0] == Codec.RAW


def test_a_segment_ends_when_full_or_after_a_path_that_hashes_so() -> None:
    segment = Segment()
    ends = [path for path in (b"file%d" % n for n in range(200)) if not zlib.crc32(path) & 0x1F]
    assert not segment.is_complete(ends[0])  # too short yet
    while segment.length < SEGMENT_BYTES_MIN:
        segment.append(SMALL_FILE_MAX)
    assert segment.is_complete(ends[0])
    assert not segment.is_complete(ends[0] + b"?")
    while segment.length < SEGMENT_BYTES_MAX:
        segment.append(SMALL_FILE_MAX)
    assert segment.is_complete(ends[0] + b"?")
    data = segment.take()
    assert len(data) <= CHUNK_MAX
    assert segment.length == 0


def test_the_largest_chunk_fits_an_empty_pack_and_a_full_pack_takes_no_more() -> None:
    builder = PackBuilder(KEYS, bytes(32), memoryview(bytearray(BUFFER_BYTES)))
    body = frame_body(Codec.RAW, CHUNK_MAX, bytes(CHUNK_MAX))
    count = 0
    while builder.has_room(body):
        builder.add(count.to_bytes(32, "big"), body)
        count += 1
    assert count == 3
    pack = builder.finish()
    assert PACK_TARGET_BYTES * 0.7 < len(pack.data) <= min(BUFFER_BYTES, PACK_BYTES_MAX)
    assert verify_pack(pack.data, name=pack.name, device_key=KEYS.device.public).items == pack.items


def test_a_pack_of_tiny_chunks_is_bounded_by_their_number() -> None:
    builder = PackBuilder(KEYS, bytes(32), memoryview(bytearray(BUFFER_BYTES)))
    body = frame_body(Codec.RAW, 1, b"x")
    count = 0
    while builder.has_room(body):
        builder.add(count.to_bytes(32, "big"), body)
        count += 1
    assert count == FRAMES_PER_PACK_MAX
    pack = builder.finish()
    assert len(verify_pack(pack.data, name=pack.name).items) == count


def entry(path: bytes = b"a", **changes: object) -> Entry:
    fields: dict[str, object] = {"kind": Kind.FILE, "mode": 0, "uid": 0, "gid": 0, "mtime_ns": 5, "size": 7}
    return Entry(path=path, **(fields | changes))  # type: ignore[arg-type]


def test_unchanged_means_equal_ctime_inode_size_mtime_and_a_regular_file() -> None:
    seen, then = Observed(entry=entry(), ctime_ns=3, inode=4), Remembered(3, 4, entry())
    assert is_unchanged(seen, then)
    for other in (
        Remembered(4, 4, entry()),
        Remembered(3, 5, entry()),
        Remembered(3, 4, entry(size=8)),
        Remembered(3, 4, entry(mtime_ns=6)),
        Remembered(3, 4, entry(kind=Kind.FIFO)),
        Remembered(NEVER_CTIME, 4, entry()),
        None,
    ):
        assert not is_unchanged(seen, other)


@pytest.mark.parametrize(
    ("ctime_ns", "age_ns", "trusted"),
    [
        (1_000_000_001, 19_000_000, False),
        (1_000_000_001, 21_000_000, True),
        (1_000_000_001, -5, False),
        (1_000_000_000, 1_999_000_000, False),  # whole seconds: the file system may count in them
        (1_000_000_000, 2_001_000_000, True),
    ],
)
def test_a_file_written_just_before_it_was_read_is_not_trusted(
    ctime_ns: int, age_ns: int, trusted: bool
) -> None:
    observed = Observed(entry=entry(), ctime_ns=ctime_ns, inode=1)
    assert trusted_ctime(observed, ctime_ns + age_ns) == (ctime_ns if trusted else NEVER_CTIME)


def test_the_parent_is_joined_in_manifest_order_whatever_came_or_went() -> None:
    then = sorted([b"", b"a", b"a/x", b"a.b", b"c", b"c/d/e", b"z"], key=sort_key)
    now = sorted([b"", b"a", b"a/w", b"a/x", b"a.b", b"b", b"c/d/e", b"zz"], key=sort_key)
    parent = Parent(iter([Remembered(1, number, entry(path)) for number, path in enumerate(then)]))
    found = {path: parent.find(path) for path in now}
    assert {path for path, line in found.items() if line is not None} == set(then) & set(now)
    assert all(line.entry.path == path for path, line in found.items() if line is not None)
