"""The archive: same input, same bytes; anything the writer cannot make is refused (JNT-50)."""

from __future__ import annotations

import io
import lzma
import tarfile
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import FormatError
from wire.package import Health, Manifest, Resources, encode_manifest
from wire.package_archive import (
    BLOCK_BYTES,
    UNPACKED_BYTES_MAX,
    FileData,
    PackageFile,
    PackageReader,
    build_package,
    read_package,
)

MANIFEST = Manifest(
    v=1,
    operator="acme-home",
    software="lights",
    version="1.0",
    release=1,
    series=("PR-500",),
    makers=("KI",),
    runtime="python-zipapp",
    entry="app.pyz",
    resources=Resources(memory_bytes=16 * 2**20),
    health=Health(kind="exit"),
)
FILES = {
    "app.pyz": PackageFile(b"PK" * 700, executable=True),
    "data/empty": PackageFile(b""),
    "data/" + "d" * 100 + "/x": PackageFile(b"\x00" * 512),
}


def test_the_same_content_gives_the_same_bytes_in_any_order():
    first = build_package(MANIFEST, FILES)
    second = build_package(MANIFEST, dict(reversed(FILES.items())))
    assert first == second
    assert read_package(first) == (MANIFEST, FILES)


def test_gnu_tar_form_has_no_owner_time_or_links():
    with tarfile.open(fileobj=io.BytesIO(build_package(MANIFEST, FILES))) as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == ["manifest.json", *sorted("files/" + p for p in FILES)]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.type) for m in members} == {(0, 0, 0, "", "", b"0")}
    assert {m.mode for m in members} == {0o644, 0o755}


@given(st.integers(1, 700))
def test_pieces_of_any_size_give_the_same_files(piece):
    data = build_package(MANIFEST, FILES)
    reader = PackageReader()
    content = b""
    for start in range(0, len(data), piece):
        content += b"".join(
            e.data for e in reader.feed(data[start : start + piece]) if isinstance(e, FileData)
        )
    assert reader.finish() == MANIFEST
    assert content == b"".join(FILES[path].data for path in sorted(FILES))


@given(st.integers(0, 10**9), st.integers(0, 7))
def test_one_flipped_bit_never_gives_other_content(position, bit):
    data = bytearray(build_package(MANIFEST, FILES))
    data[position % len(data)] ^= 1 << bit
    try:
        result = read_package(bytes(data))
    except FormatError:
        return
    assert result == (MANIFEST, FILES)


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -40])
def test_a_truncated_archive_is_refused(cut):
    with pytest.raises(FormatError, match="too early"):
        read_package(build_package(MANIFEST, FILES)[:cut])


def test_bytes_behind_the_archive_are_refused():
    data = build_package(MANIFEST, FILES)
    for tail in (b"x", bytes(4), data):
        with pytest.raises(FormatError, match="behind the end"):
            read_package(data + tail)
    reader = PackageReader()
    list(reader.feed(data))
    with pytest.raises(FormatError, match="behind the end"):
        list(reader.feed(b"x"))


SMALL = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 2**20}]


def compressed(data, filters=SMALL):
    return lzma.compress(data, filters=filters)


def crafted(*entries, tail=bytes(1024), filters=SMALL):
    """An archive of raw (TarInfo, data) entries behind a good manifest."""
    encoded = encode_manifest(MANIFEST)
    head = tarfile.TarInfo("manifest.json")
    parts = []
    for info, data in ((head, encoded), *entries):
        info.size = len(data)
        parts += [info.tobuf(tarfile.USTAR_FORMAT), data, bytes(-len(data) % 512)]
    return compressed(b"".join(parts) + tail, filters)


def entry(name, data=b"x", **fields):
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


APP = entry("files/app.pyz")


def test_the_crafting_helper_makes_good_archives_too():
    assert read_package(crafted(APP))[0] == MANIFEST


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([entry("files/app.pyz", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")], "only regular files"),
        ([APP, entry("files/b", b"", type=tarfile.LNKTYPE, linkname="files/app.pyz")], "only regular files"),
        ([entry("files/dev", b"", type=tarfile.CHRTYPE)], "only regular files"),
        ([entry("files/dev", b"", type=tarfile.BLKTYPE)], "only regular files"),
        ([entry("files/fifo", b"", type=tarfile.FIFOTYPE)], "only regular files"),
        ([entry("files/dir", b"", type=tarfile.DIRTYPE)], "only regular files"),
        ([entry("files/x", b"", type=tarfile.XHDTYPE)], "only regular files"),
        ([entry("files/x", b"", type=tarfile.GNUTYPE_LONGNAME)], "only regular files"),
        ([entry("files/app.pyz", mode=0o4755)], "mode must be"),
        ([entry("files/app.pyz", mode=0o2755)], "mode must be"),
        ([entry("files/app.pyz", mode=0o666)], "mode must be"),
        ([entry("files/app.pyz", uid=1000)], "canonical"),
        ([entry("files/app.pyz", mtime=1)], "canonical"),
        ([entry("files/app.pyz", uname="root")], "canonical"),
        ([entry("/etc/passwd")], "expected an entry below files/"),
        ([entry("../x")], "expected an entry below files/"),
        ([entry("files/../../x")], "package path"),
        ([entry("files//etc/passwd")], "package path"),
        ([APP, APP], "ascending order"),
        ([entry("files/b"), APP], "ascending order"),
        ([APP, entry("files/app.pyz/x")], "lies below a file"),
        ([entry("files/other")], "entry app.pyz is not among"),
        ([], "entry app.pyz is not among"),
    ],
)
def test_what_the_writer_cannot_make_is_refused(entries, why):
    with pytest.raises(FormatError, match=why):
        read_package(crafted(*entries))


def test_a_manifest_that_is_not_first_is_refused():
    blob = compressed(APP[0].tobuf(tarfile.USTAR_FORMAT) + bytes(512 + 1024))
    with pytest.raises(FormatError, match=r"expected manifest\.json first"):
        read_package(blob)


def test_dirt_in_the_padding_is_refused():
    tar = lzma.decompress(crafted(APP))
    at = tar.index(b"x" + bytes(511)) + 1
    with pytest.raises(FormatError, match="padding"):
        read_package(compressed(tar[:at] + b"!" + tar[at + 1 :]))


@pytest.mark.parametrize("tail", [bytes(512), bytes(1536), bytes(1024) + b"x", bytes(1000)])
def test_the_archive_ends_with_exactly_two_zero_blocks(tail):
    with pytest.raises(FormatError, match=r"too early|behind the end"):
        read_package(crafted(APP, tail=tail))


def test_a_bomb_is_stopped_at_the_unpacked_limit_with_small_memory():
    bomb = crafted(entry("files/app.pyz", bytes(UNPACKED_BYTES_MAX + 8 * 2**20)))
    assert len(bomb) < 2**20
    reader = PackageReader()
    tracemalloc.start()
    with pytest.raises(FormatError, match="unpacks to more than"):
        for start in range(0, len(bomb), BLOCK_BYTES):
            for _ in reader.feed(bomb[start : start + BLOCK_BYTES]):
                pass
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4 * 2**20


def test_a_dictionary_that_needs_much_memory_is_refused():
    big = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 64 * 2**20}]
    with pytest.raises(FormatError, match="not a readable xz stream"):
        read_package(crafted(APP, filters=big))


def test_the_writer_refuses_what_the_reader_would():
    with pytest.raises(FormatError, match="not among"):
        build_package(MANIFEST, {"b": PackageFile(b"")})
    with pytest.raises(FormatError, match="package path"):
        build_package(MANIFEST, {**FILES, "../x": PackageFile(b"")})
    with pytest.raises(FormatError, match="lies below a file"):
        build_package(MANIFEST, {**FILES, "app.pyz/x": PackageFile(b"")})
    with pytest.raises(FormatError, match="at most"):
        build_package(MANIFEST, {"app.pyz": PackageFile(bytes(UNPACKED_BYTES_MAX + 1))})
