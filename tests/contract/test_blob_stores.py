"""Every blob engine keeps the contract of `carrier.storage.ports.BlobStore`."""

from __future__ import annotations

import os
import stat
import time

import pytest

from carrier.engines.blob_files import INCOMING_LIFE_S, FilesBlobStore
from carrier.engines.blob_memory import MemoryBlobStore
from carrier.errors import CorruptDataError, LocalCarrierError, UnavailableError

KEY = "AZK0000000001/" + "ab" * 32 + "-" + "cd" * 16
OTHER = "AZK0000000002/" + "ab" * 32 + "-" + "ef" * 16


@pytest.fixture(params=["memory", "files"])
def store(request, tmp_path):
    store = MemoryBlobStore(time.time) if request.param == "memory" else FilesBlobStore(tmp_path / "blobs")
    store.open()
    return store


def put(store, key, *parts):
    writer = store.begin()
    for part in parts:
        writer.write(part)
    writer.publish(key)
    writer.discard()


def test_published_blob_reads_back_whole_and_in_parts(store):
    put(store, KEY, b"hello ", b"blob")
    assert store.size(KEY) == 10
    assert store.read(KEY, 0, 10) == b"hello blob"
    assert store.read(KEY, 6, 4) == b"blob"


def test_nothing_is_visible_before_publish(store):
    writer = store.begin()
    writer.write(b"half")
    assert store.size(KEY) is None
    assert list(store.list_blobs()) == []
    writer.discard()
    writer.discard()
    assert store.size(KEY) is None


def test_writer_reads_what_was_written_so_far(store):
    writer = store.begin()
    writer.write(b"0123")
    writer.write(b"4567")
    assert writer.read(2, 4) == b"2345"
    writer.discard()


def test_missing_and_short_blobs_are_corrupt_data(store):
    with pytest.raises(CorruptDataError):
        store.read(KEY, 0, 1)
    put(store, KEY, b"1234")
    with pytest.raises(CorruptDataError):
        store.read(KEY, 2, 3)


def test_delete_is_idempotent(store):
    put(store, KEY, b"x")
    store.delete(KEY)
    store.delete(KEY)
    assert store.size(KEY) is None


def test_list_names_every_blob_with_size_and_time(store):
    put(store, KEY, b"12")
    put(store, OTHER, b"123")
    listed = list(store.list_blobs())
    assert [(blob.key, blob.size_bytes) for blob in listed] == [(KEY, 2), (OTHER, 3)]
    assert all(abs(blob.modified_at - time.time()) < 5 for blob in listed)


def test_empty_blob_is_a_blob(store):
    put(store, KEY)
    assert store.size(KEY) == 0
    assert store.read(KEY, 0, 0) == b""


def test_discard_after_publish_leaves_the_blob(store):
    put(store, KEY, b"x")
    assert store.size(KEY) == 1


@pytest.mark.parametrize(
    "key",
    [
        "",
        "../" + KEY,
        "AZK0000000001/../../etc/passwd",
        "/etc/passwd",
        KEY + "/x",
        KEY + "\n",
        KEY.upper(),
        "AZK0000000001/" + "ab" * 32,
        "AZK000000000１/" + "ab" * 32 + "-" + "cd" * 16,
    ],
)
def test_key_of_another_form_is_our_mistake_and_never_a_path(store, key):
    for call in (
        store.size,
        store.delete,
        lambda name: store.read(name, 0, 1),
        lambda name: put(store, name),
    ):
        with pytest.raises(LocalCarrierError):
            call(key)


@pytest.fixture
def files(tmp_path):
    store = FilesBlobStore(tmp_path / "blobs")
    store.open()
    return store, tmp_path / "blobs"


def test_files_cannot_be_rewritten_by_accident(files):
    store, root = files
    put(store, KEY, b"x")
    (path,) = root.glob("AZK*/*/*")
    assert stat.S_IMODE(path.stat().st_mode) == 0o440


def test_files_left_by_a_crash_go_when_no_upload_can_own_them(files):
    store, root = files
    old, young = store.begin(), store.begin()
    old.write(b"x")
    (old_path, young_path) = sorted((root / "incoming").iterdir(), key=lambda path: -path.stat().st_size)
    long_ago = time.time() - INCOMING_LIFE_S - 1
    os.utime(old_path, (long_ago, long_ago))
    store.open()
    assert list((root / "incoming").iterdir()) == [young_path]
    young.discard()
    old.discard()


def test_files_are_fsynced_before_and_after_the_rename(files, tmp_path):
    """The order of system calls is the crash argument; strace is the witness."""
    import shutil
    import subprocess
    import sys

    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    script = (
        "from carrier.engines.blob_files import FilesBlobStore; from pathlib import Path;"
        f"s = FilesBlobStore(Path({str(tmp_path / 'blobs')!r}));"
        f"w = s.begin(); w.write(b'x'); w.publish({KEY!r}); w.discard()"
    )
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-e", "trace=write,fsync,rename,renameat,renameat2", "-o", str(trace)]
    done = subprocess.run(
        [*command, sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    calls = [line for line in trace.read_text().splitlines() if "/blobs" in line]
    written = next(n for n, line in enumerate(calls) if "write(" in line and "/incoming/" in line)
    synced = next(n for n, line in enumerate(calls) if "fsync(" in line and "/incoming/" in line)
    renamed = next(n for n, line in enumerate(calls) if "rename" in line)
    assert written < synced < renamed
    assert renamed < len(calls) - 1
    assert "fsync(" in calls[-1], "the directory entry is made durable last"
    assert f"/{KEY[:13]}/ab>" in calls[-1]


def test_full_disk_is_unavailable_not_a_crash(files):
    store, _ = files
    writer = store.begin()
    os.close(writer._fd)
    with pytest.raises(UnavailableError):
        writer.write(b"x")
    writer._fd = -1
    writer.discard()
